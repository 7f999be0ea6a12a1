// Package trace sends OpenTelemetry traces of requests: where one waited, which
// replica it went to, what it did there, and where it went on when that was lost.
//
//	llm_request          head: from arrival to the last piece
//	├ receive            reading, checking, rendering, tokenizing
//	├ queue              again after each loss
//	└ attempt            one for each sending, linked to the one before
//	  ├ route            choosing a replica, reaching its node
//	  └ engine           node: queue, prefill, decode, their steps counted
//
// A client's traceparent is continued. Without one the trace's id is the request's,
// so that a stream that goes on at another head goes on in the same trace. A nil
// *Tracer is one that is off: then all methods do nothing and allocate nothing.
//
// The composition roots own the one Tracer of their process. The package decides
// nothing, and nobody waits for it: what can't be sent in time is dropped.
package trace

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"manta/internal/version"
)

// closing is how long the last spans may take to leave.
const closing = 3 * time.Second

// Config says where traces go. The environment says the rest, by OpenTelemetry's
// names: OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER,
// OTEL_BSP_*, OTEL_EXPORTER_OTLP_*.
type Config struct {
	// Endpoint takes OTLP over HTTP, a URL in full; empty: what the environment says,
	// and where that says nothing there are no traces.
	Endpoint string
	Service  string // OTEL_SERVICE_NAME's default
	Instance string // name of this process among those of its service
	Logger   *slog.Logger
}

// Tracer makes spans and sends them; nil: tracing is off. It is safe for concurrent use.
type Tracer struct {
	provider *sdk.TracerProvider
	tracer   trace.Tracer
	log      *slog.Logger
}

// Open makes a tracer, or none if traces are not asked for.
func Open(cfg Config) (*Tracer, error) {
	if os.Getenv("OTEL_SDK_DISABLED") == "true" || os.Getenv("OTEL_TRACES_EXPORTER") == "none" {
		return nil, nil
	}
	to, err := newClient(cfg.Endpoint)
	if to == nil || err != nil {
		return nil, err
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { cfg.Logger.Warn("traces", "error", err) }))
	ctx := context.Background()
	about, err := resource.New(ctx, resource.WithTelemetrySDK(), resource.WithAttributes(
		attribute.String("service.name", cfg.Service),
		attribute.String("service.version", version.String()), attribute.String("service.instance.id", cfg.Instance),
	), resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	exporter, err := otlptrace.New(ctx, to)
	if err != nil {
		return nil, err
	}
	provider := sdk.NewTracerProvider(sdk.WithBatcher(exporter), sdk.WithResource(about))
	tracer := provider.Tracer("manta", trace.WithInstrumentationVersion(version.String()))
	return &Tracer{provider: provider, tracer: tracer, log: cfg.Logger}, nil
}

// Close sends what is left, for a few seconds.
func (t *Tracer) Close() {
	if t == nil {
		return
	}
	ctx, stop := context.WithTimeout(context.Background(), closing)
	defer stop()
	if err := t.provider.Shutdown(ctx); err != nil {
		t.log.Warn("the last traces are lost", "error", err)
	}
}

// Context is a place in a trace, as W3C's Trace Context writes it: the headers
// traceparent and tracestate. The zero Context is none.
type Context struct{ Parent, State string }

// in gives a context that spans are made children of.
func (c Context) in() context.Context {
	return propagation.TraceContext{}.Extract(context.Background(),
		propagation.MapCarrier{"traceparent": c.Parent, "tracestate": c.State})
}

// of gives the place of a context's span.
func of(ctx context.Context) Context {
	to := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, to)
	return Context{Parent: to["traceparent"], State: to["tracestate"]}
}
