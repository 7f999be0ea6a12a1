//go:build !windows

package main

import (
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"manta/internal/processtest"
	"manta/internal/trace/tracetest"
)

// The trace that a client began goes on through the head to the driver's node and,
// when that dies, to the next one: an attempt that is linked to the one before.
func TestTraceGoesWhereTheRequestGoes(t *testing.T) {
	receiver := tracetest.New()
	server := httptest.NewServer(receiver)
	defer server.Close()
	c := newCluster(t, 1, "MANTA_OTLP_TRACES_ENDPOINT="+server.URL+"/v1/traces", "OTEL_BSP_SCHEDULE_DELAY=50")
	for _, name := range []string{"node-a", "node-b"} {
		c.Node(name, "--devices", "sim:1@0.005") // an answer takes seconds: the driver dies within it
	}
	c.until("nodes", 0, "/api/cluster", func(_ int, text string) bool {
		return strings.Contains(text, `"id":"node-a-`) && strings.Contains(text, `"id":"node-b-`)
	})
	c.deploy(tiny(t))
	const client = "0af7651916cd43dd8448eb211c80319c"
	dead := c.driver(0)
	if _, err := c.stream(0, func() { c.Kill(dead) }, "Traceparent", "00-"+client+"-b7ad6b7169203331-01"); err != nil {
		t.Fatal(err)
	}
	limit := time.After(processtest.Patience)
	for {
		spans, more, faults := receiver.Spans()
		if len(faults) > 0 {
			t.Fatal(faults)
		}
		var ours []tracetest.Span
		for _, s := range spans {
			if s.Trace == client {
				ours = append(ours, s)
			}
		}
		// The head may have asked the dying node more than once.
		attempts, engines := tracetest.Named(ours, "attempt"), tracetest.Named(ours, "engine")
		if requests := tracetest.Named(ours, "llm_request"); len(requests) == 1 && len(engines) > 0 && len(attempts) > 1 {
			last := attempts[len(attempts)-1]
			if first := attempts[0].Text("manta.node"); !strings.HasPrefix(first, dead) || strings.HasPrefix(last.Text("manta.node"), dead) || len(last.Links) != 1 {
				t.Errorf("%s died; the first attempt went to %s, the last to %s", dead, first, last.Text("manta.node"))
			}
			e := engines[len(engines)-1]
			if string(e.ParentSpanId) != string(last.SpanId) || e.Service != "manta-node" || e.Text("manta.tokens") == "0" || e.Text("manta.steps") == "0" {
				t.Errorf("the last engine: %v", e)
			}
			for _, name := range []string{"receive", "queue", "route", "engine.queue", "engine.prefill", "engine.decode"} {
				if len(tracetest.Named(ours, name)) == 0 {
					t.Errorf("no span %s", name)
				}
			}
			if got := requests[0].Text("gen_ai.usage.completion_tokens"); got != "400" {
				t.Errorf("%s tokens", got)
			}
			t.Logf("\n%s", tracetest.Tree(ours))
			return
		}
		select {
		case <-more:
		case <-limit:
			t.Fatalf("not in time:\n%s", tracetest.Tree(ours))
		}
	}
}
