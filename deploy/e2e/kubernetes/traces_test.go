//go:build kubernetes && linux

package kubernetes

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"testing"

	"manta/internal/trace/tracetest"
)

// traces are what all heads and nodes send (testdata/values.yaml).
var traces = tracetest.New()

// listenForTraces receives them until the program ends.
func listenForTraces() error {
	listener, err := net.Listen("tcp", ":4318")
	if err != nil {
		return err
	}
	go func() { _ = http.Serve(listener, traces) }() // it ends with the program
	return nil
}

// tracesOver looks for a request that lost a node: one trace from its head through
// the failed attempt to the linked one, and on to the node that took it.
func tracesOver(t *testing.T) {
	t.Helper()
	until(t, "a trace over a lost node", patience, func(context.Context) error {
		spans, _, faults := traces.Spans()
		if len(faults) > 0 {
			t.Fatal(faults)
		}
		byTrace := map[string][]tracetest.Span{}
		for _, s := range spans {
			byTrace[s.Trace] = append(byTrace[s.Trace], s)
		}
		moved, resumed, shown := 0, 0, ""
		for _, of := range byTrace {
			if len(tracetest.Named(of, "llm_request")) > 1 {
				resumed++
			}
			attempts := tracetest.Named(of, "attempt")
			last := attempts[max(0, len(attempts)-1):]
			if len(attempts) < 2 || attempts[0].Text("manta.node") == last[0].Text("manta.node") || len(last[0].Links) == 0 {
				continue
			}
			for _, e := range tracetest.Named(of, "engine") {
				if e.Service == "manta-node" && string(e.ParentSpanId) == string(last[0].SpanId) {
					moved++
					shown = tracetest.Tree(of)
				}
			}
		}
		if moved == 0 {
			return fmt.Errorf("none of %d traces, %d spans", len(byTrace), len(spans))
		}
		t.Logf("one of them:\n%s", shown)
		measured.note("%d traces, %d spans: %d requests moved to another node within their trace, %d went on at another head", len(byTrace), len(spans), moved, resumed)
		return nil
	})
}
