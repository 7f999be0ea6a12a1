package trace

import (
	"context"
	"encoding/hex"
	"strconv"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// Start is what a head knows of a request that it has checked.
type Start struct {
	From        Context // the client's own trace
	ID          [16]byte
	Arrived     time.Time
	Model       string
	Prompt      int // tokens
	Choices     int
	MaxTokens   int
	Temperature float32
	TopP        float32
}

// Request is one request's trace on its head; nil: it has none. It belongs to
// whoever reads the request's stream.
type Request struct {
	tracer trace.Tracer
	ctx    context.Context // of the request's span

	root, queue, route, attempt trace.Span // nil: not open
	before                      trace.SpanContext
}

// Request begins a request's trace, unless it is not sampled.
func (t *Tracer) Request(s Start) *Request {
	if t == nil {
		return nil
	}
	from := s.From.in()
	if !trace.SpanContextFromContext(from).IsValid() {
		from = trace.ContextWithSpanContext(from, trace.NewSpanContext(trace.SpanContextConfig{TraceID: s.ID}))
	}
	if s.Arrived.IsZero() {
		s.Arrived = time.Now()
	}
	r := &Request{tracer: t.tracer}
	r.ctx, r.root = t.tracer.Start(from, "llm_request", trace.WithSpanKind(trace.SpanKindServer), trace.WithTimestamp(s.Arrived))
	if !r.root.IsRecording() {
		return nil
	}
	r.root.SetAttributes( // vLLM's (vllm/tracing.py)
		attribute.String("gen_ai.request.id", hex.EncodeToString(s.ID[:])), attribute.String("gen_ai.response.model", s.Model),
		attribute.Int("gen_ai.request.n", s.Choices), attribute.Int("gen_ai.request.max_tokens", s.MaxTokens),
		attribute.Float64("gen_ai.request.temperature", decimal(s.Temperature)), attribute.Float64("gen_ai.request.top_p", decimal(s.TopP)),
		attribute.Int("gen_ai.usage.prompt_tokens", s.Prompt),
	)
	_, receive := t.tracer.Start(r.ctx, "receive", trace.WithTimestamp(s.Arrived))
	receive.End()
	r.Queue()
	return r
}

// Queue begins to wait for a replica.
func (r *Request) Queue() {
	if r != nil && r.queue == nil {
		_, r.queue = r.tracer.Start(r.ctx, "queue")
	}
}

// Attempt begins a sending to the replica that was chosen, and gives what its node
// continues the trace from.
func (r *Request) Attempt(number uint32, replica, node string, epoch uint64) Context {
	if r == nil {
		return Context{}
	}
	end(&r.queue)
	options := []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(
		attribute.Int64("manta.attempt", int64(number)), attribute.String("manta.replica", replica),
		attribute.String("manta.node", node), attribute.Int64("manta.epoch", int64(epoch)),
	)}
	if r.before.IsValid() {
		options = append(options, trace.WithLinks(trace.Link{SpanContext: r.before}))
	}
	var ctx context.Context
	ctx, r.attempt = r.tracer.Start(r.ctx, "attempt", options...)
	_, r.route = r.tracer.Start(ctx, "route")
	return of(ctx)
}

// Sent tells that the replica's node was reached.
func (r *Request) Sent() {
	if r != nil {
		end(&r.route)
	}
}

// First tells of the first token.
func (r *Request) First() {
	if r != nil {
		r.root.AddEvent("first token")
	}
}

// Lost ends a sending that came to nothing after so many tokens of the answer.
func (r *Request) Lost(cause error, tokens int) {
	if r == nil {
		return
	}
	r.root.AddEvent("lost", trace.WithAttributes(attribute.String("manta.cause", cause.Error()), attribute.Int("manta.tokens", tokens)))
	if r.attempt != nil {
		r.before = r.attempt.SpanContext()
		fail(r.attempt, cause)
	}
	end(&r.route)
	end(&r.attempt)
}

// End is what a request came to.
type End struct {
	Err        error // nil: it is answered
	Tokens     int   // of all choices
	Queue      time.Duration
	FirstToken time.Duration // 0: there was none
	Prefill    time.Duration
	Decode     time.Duration
	Total      time.Duration
}

// End ends the trace's part on this head.
func (r *Request) End(e End) {
	if r == nil {
		return
	}
	if e.Err != nil {
		fail(r.root, e.Err)
		if r.attempt != nil {
			fail(r.attempt, e.Err)
		}
	}
	r.root.SetAttributes(attribute.Int("gen_ai.usage.completion_tokens", e.Tokens), seconds("e2e", e.Total), seconds("time_in_queue", e.Queue))
	if e.FirstToken > 0 {
		r.root.SetAttributes(seconds("time_to_first_token", e.FirstToken), seconds("time_in_model_prefill", e.Prefill),
			seconds("time_in_model_decode", e.Decode), seconds("time_in_model_inference", e.Prefill+e.Decode))
	}
	for _, span := range []*trace.Span{&r.route, &r.attempt, &r.queue, &r.root} {
		end(span)
	}
}

func seconds(name string, d time.Duration) attribute.KeyValue {
	return attribute.Float64("gen_ai.latency."+name, d.Seconds())
}

// decimal is the number that a client wrote: 0.8 is not float64(float32(0.8)).
func decimal(f float32) float64 {
	d, _ := strconv.ParseFloat(strconv.FormatFloat(float64(f), 'g', -1, 32), 64) // what FormatFloat wrote is a number
	return d
}

func fail(span trace.Span, cause error) { span.SetStatus(codes.Error, cause.Error()) }

// end ends a span that is open.
func end(span *trace.Span) {
	if *span != nil {
		(*span).End()
		*span = nil
	}
}
