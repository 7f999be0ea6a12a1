package trace

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
)

// Work is a request's trace on the node of its driver; nil: it has none. Calls must
// not run at the same time.
type Work struct {
	tracer trace.Tracer
	ctx    context.Context
	span   trace.Span // nil: ended

	arrived, started, first, last time.Time
	tokens, cached                int
	choices                       []Progress
}

// Progress is how far one choice has come.
type Progress struct {
	Started     time.Time // when its first step was sent
	Steps       int       // that had rows of it
	Preemptions int
}

// Work continues a request's trace on its driver's node.
func (t *Tracer) Work(from Context, replica string, choices int) *Work {
	if t == nil || from.Parent == "" {
		return nil
	}
	w := &Work{tracer: t.tracer, arrived: time.Now(), choices: make([]Progress, choices)}
	w.ctx, w.span = t.tracer.Start(from.in(), "engine", trace.WithSpanKind(trace.SpanKindServer), trace.WithTimestamp(w.arrived),
		trace.WithAttributes(attribute.String("manta.replica", replica)))
	if !w.span.IsRecording() {
		return nil
	}
	return w
}

// Move tells that another attempt goes on with what is here.
func (w *Work) Move(to Context) {
	if w == nil || w.span == nil {
		return
	}
	w.span.AddEvent("taken over")
	if at := trace.SpanContextFromContext(to.in()); at.IsValid() {
		w.span.AddLink(trace.Link{SpanContext: at})
	}
}

// Output tells of a choice's new tokens, and of the prompt tokens that were cached.
func (w *Work) Output(choice, tokens, cached int, p Progress) {
	if w == nil || w.span == nil {
		return
	}
	w.choices[choice] = p
	w.tokens, w.cached, w.last = w.tokens+tokens, cached, time.Now()
	if w.first.IsZero() {
		w.first, w.started = w.last, p.Started
	}
}

// End ends the request's work, and shows its phases.
func (w *Work) End(cause error) {
	if w == nil || w.span == nil {
		return
	}
	var all Progress
	for _, p := range w.choices {
		all.Steps += p.Steps
		all.Preemptions += p.Preemptions
	}
	now := time.Now()
	phase := func(name string, from, to time.Time, about ...attribute.KeyValue) {
		if from.IsZero() {
			return
		}
		if to.IsZero() {
			to = now
		}
		_, span := w.tracer.Start(w.ctx, name, trace.WithTimestamp(from), trace.WithAttributes(about...))
		span.End(trace.WithTimestamp(to))
	}
	phase("engine.queue", w.arrived, w.started)
	phase("engine.prefill", w.started, w.first, attribute.Int("manta.cached_tokens", w.cached))
	phase("engine.decode", w.first, w.last, attribute.Int("manta.tokens", w.tokens))
	w.span.SetAttributes(attribute.Int("manta.steps", all.Steps), attribute.Int("manta.preemptions", all.Preemptions), attribute.Int("manta.tokens", w.tokens))
	if cause != nil {
		fail(w.span, cause)
	}
	end(&w.span)
}
