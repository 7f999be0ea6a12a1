// Package tracetest receives OTLP over HTTP in a test, as a collector does.
package tracetest

import (
	"bytes"
	"compress/gzip"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"

	common "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// Span is one that was received.
type Span struct {
	Service string
	Trace   string // 32 hex digits
	*tracepb.Span
}

// Receiver takes spans. It is safe for concurrent use.
type Receiver struct {
	mu      sync.Mutex
	spans   []Span        // guarded by mu
	faults  []string      // guarded by mu: what no collector would take
	changed chan struct{} // guarded by mu: closed and renewed when more has come
}

// New gives a receiver; it is a handler for every path.
func New() *Receiver { return &Receiver{changed: make(chan struct{})} }

// ServeHTTP implements http.Handler.
func (r *Receiver) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	spans, err := read(request)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.faults = append(r.faults, err.Error())
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	r.spans = append(r.spans, spans...)
	close(r.changed)
	r.changed = make(chan struct{})
	w.Header().Set("Content-Type", "application/x-protobuf") // an empty ExportTraceServiceResponse
}

func read(request *http.Request) (spans []Span, err error) {
	if kind := request.Header.Get("Content-Type"); request.Method != http.MethodPost || kind != "application/x-protobuf" {
		return nil, fmt.Errorf("%s with Content-Type %q", request.Method, kind)
	}
	body, err := io.ReadAll(request.Body)
	if err != nil {
		return nil, err
	}
	if request.Header.Get("Content-Encoding") == "gzip" {
		unzipped, err := gzip.NewReader(bytes.NewReader(body))
		if err != nil {
			return nil, err
		}
		if body, err = io.ReadAll(unzipped); err != nil {
			return nil, err
		}
	}
	var data tracepb.TracesData
	if err := proto.Unmarshal(body, &data); err != nil {
		return nil, err
	}
	for _, of := range data.ResourceSpans {
		service := text(of.Resource.GetAttributes(), "service.name")
		for _, scope := range of.ScopeSpans {
			for _, span := range scope.Spans {
				spans = append(spans, Span{Service: service, Trace: hex.EncodeToString(span.TraceId), Span: span})
			}
		}
	}
	return spans, nil
}

// Spans gives what has come so far, in the order of starts, and a channel that is
// closed when there is more.
func (r *Receiver) Spans() (spans []Span, more <-chan struct{}, faults []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	spans = slices.Clone(r.spans)
	slices.SortStableFunc(spans, func(a, b Span) int { return int(int64(a.StartTimeUnixNano) - int64(b.StartTimeUnixNano)) })
	return spans, r.changed, slices.Clone(r.faults)
}

// Named gives the spans of a name.
func Named(spans []Span, name string) (found []Span) {
	for _, s := range spans {
		if s.Name == name {
			found = append(found, s)
		}
	}
	return found
}

// Text gives an attribute of a span as text; "" if there is none.
func (s Span) Text(name string) string { return text(s.Attributes, name) }

func text(attributes []*common.KeyValue, name string) string {
	for _, a := range attributes {
		if a.Key == name {
			switch v := a.Value.Value.(type) {
			case *common.AnyValue_StringValue:
				return v.StringValue
			case *common.AnyValue_IntValue:
				return fmt.Sprint(v.IntValue)
			case *common.AnyValue_DoubleValue:
				return fmt.Sprint(v.DoubleValue)
			}
		}
	}
	return ""
}

// Tree writes spans as their names, children below their parents, siblings in the
// order of starts.
func Tree(spans []Span) string {
	var b strings.Builder
	var write func(parent string, depth int)
	known := map[string]bool{}
	for _, s := range spans {
		known[string(s.SpanId)] = true
	}
	write = func(parent string, depth int) {
		for _, s := range spans {
			of := string(s.ParentSpanId)
			if of != parent && !(parent == "" && !known[of]) {
				continue
			}
			fmt.Fprintf(&b, "%s%s: %s", strings.Repeat("  ", depth), s.Service, s.Name)
			for _, e := range s.Events {
				fmt.Fprintf(&b, " [%s]", e.Name)
			}
			if len(s.Links) > 0 {
				b.WriteString(" linked")
			}
			if s.Status.GetCode() == tracepb.Status_STATUS_CODE_ERROR {
				b.WriteString(" failed")
			}
			b.WriteByte('\n')
			write(string(s.SpanId), depth+1)
		}
	}
	write("", 0)
	return b.String()
}
