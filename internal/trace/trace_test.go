package trace

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"manta/internal/trace/tracetest"
)

func TestMain(m *testing.M) {
	for _, variable := range os.Environ() { // whatever this machine traces to
		if name, _, _ := strings.Cut(variable, "="); strings.HasPrefix(name, "OTEL_") {
			os.Unsetenv(name)
		}
	}
	goleak.VerifyTestMain(m)
}

// open gives a tracer whose spans reach a receiver; closed by the caller.
func open(t *testing.T, handler http.Handler, cfg Config) *Tracer {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	cfg.Endpoint, cfg.Logger = server.URL+"/v1/traces", slog.New(slog.DiscardHandler)
	tracer, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return tracer
}

const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

// life is a request's way over two nodes, as head and nodes tell of it.
func life(head, node *Tracer, from Context) {
	r := head.Request(Start{From: from, ID: [16]byte{1, 2}, Arrived: time.Now(), Model: "m", Prompt: 7, Choices: 1, MaxTokens: 9, Temperature: 0.8, TopP: 0.95})
	first := node.Work(r.Attempt(1, "m-1", "n1", 3), "m-1", 1)
	r.Sent()
	first.Output(0, 1, 4, Progress{Started: time.Now(), Steps: 2})
	r.First()
	first.End(errors.New("the replica is lost"))
	r.Lost(errors.New("driver lost"), 1)
	r.Queue()
	at := r.Attempt(2, "m-2", "n2", 5)
	second := node.Work(at, "m-2", 1)
	r.Sent()
	second.Move(at)
	second.Output(0, 8, 0, Progress{Started: time.Now(), Steps: 8, Preemptions: 1})
	second.End(nil)
	second.End(errWhatever) // what has ended stays so
	r.End(End{Tokens: 9, Queue: time.Millisecond, FirstToken: 2 * time.Millisecond, Prefill: time.Millisecond, Decode: 3 * time.Millisecond, Total: 6 * time.Millisecond})
}

var errWhatever = errors.New("whatever")

// A request's spans make one tree over processes, the failover in it, with vLLM's
// names; a client's trace is continued.
func TestOneTreeOverProcesses(t *testing.T) {
	for name, from := range map[string]Context{"of its own": {}, "of the client's": {Parent: parent, State: "vendor=1"}} {
		t.Run(name, func(t *testing.T) {
			receiver := tracetest.New()
			head, node := open(t, receiver, Config{Service: "manta-head"}), open(t, receiver, Config{Service: "manta-node"})
			life(head, node, from)
			head.Close()
			node.Close()
			spans, _, faults := receiver.Spans()
			if len(faults) > 0 {
				t.Fatal(faults)
			}
			const want = `manta-head: llm_request [first token] [lost]
  manta-head: receive
  manta-head: queue
  manta-head: attempt failed
    manta-head: route
    manta-node: engine failed
      manta-node: engine.queue
      manta-node: engine.prefill
      manta-node: engine.decode
  manta-head: queue
  manta-head: attempt linked
    manta-head: route
    manta-node: engine [taken over] linked
      manta-node: engine.queue
      manta-node: engine.prefill
      manta-node: engine.decode
`
			if got := tracetest.Tree(spans); got != want {
				t.Errorf("got\n%swant\n%s", got, want)
			}
			id := "01020000000000000000000000000000" // the request's
			if from.Parent != "" {
				id = strings.Split(parent, "-")[1]
			}
			for _, s := range spans {
				if s.Trace != id {
					t.Errorf("%s is in trace %s, want %s", s.Name, s.Trace, id)
				}
				if from.State != s.TraceState {
					t.Errorf("%s has tracestate %q", s.Name, s.TraceState)
				}
			}
			for attribute, want := range map[string]string{
				"gen_ai.request.id": "01020000000000000000000000000000", "gen_ai.response.model": "m", "gen_ai.request.n": "1",
				"gen_ai.request.max_tokens": "9", "gen_ai.request.temperature": "0.8", "gen_ai.request.top_p": "0.95",
				"gen_ai.usage.prompt_tokens": "7", "gen_ai.usage.completion_tokens": "9", "gen_ai.latency.time_in_queue": "0.001",
				"gen_ai.latency.time_to_first_token": "0.002", "gen_ai.latency.time_in_model_prefill": "0.001",
				"gen_ai.latency.time_in_model_decode": "0.003", "gen_ai.latency.time_in_model_inference": "0.004", "gen_ai.latency.e2e": "0.006",
			} {
				if got := tracetest.Named(spans, "llm_request")[0].Text(attribute); got != want {
					t.Errorf("%s is %q, want %q", attribute, got, want)
				}
			}
		})
	}
}

// Off costs nothing: no allocation in a whole request.
func TestOffIsFree(t *testing.T) {
	var off *Tracer
	cause := errors.New("cause")
	allocations := testing.AllocsPerRun(100, func() {
		r := off.Request(Start{Model: "m"})
		w := off.Work(r.Attempt(1, "r", "n", 1), "r", 1)
		r.Sent()
		r.First()
		w.Output(0, 1, 0, Progress{})
		w.Move(Context{})
		w.End(nil)
		r.Lost(cause, 1)
		r.Queue()
		r.End(End{})
	})
	if allocations != 0 {
		t.Errorf("%v allocations a request", allocations)
	}
	off.Close()
}

// A request that is not sampled has no span anywhere.
func TestNotSampled(t *testing.T) {
	for name, set := range map[string]struct{ sampler, parent string }{
		"by the client": {"", strings.TrimSuffix(parent, "1") + "0"}, "by the sampler": {"parentbased_always_off", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("OTEL_TRACES_SAMPLER", set.sampler)
			receiver := tracetest.New()
			tracer := open(t, receiver, Config{})
			life(tracer, tracer, Context{Parent: set.parent})
			tracer.Close()
			if spans, _, _ := receiver.Spans(); len(spans) > 0 {
				t.Errorf("sent\n%s", tracetest.Tree(spans))
			}
		})
	}
}

// A receiver that is overloaded is asked again; headers and compression are those
// of the environment, and so is the service's name.
func TestSending(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20key, x-tenant=a")
	t.Setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
	t.Setenv("OTEL_SERVICE_NAME", "mine")
	t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "k8s.pod.name=p")
	receiver := tracetest.New()
	var calls atomic.Int32
	tracer := open(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/traces" || r.Header.Get("Authorization") != "Bearer key" || r.Header.Get("X-Tenant") != "a" || r.Header.Get("Content-Encoding") != "gzip" {
			t.Errorf("%s %v", r.URL, r.Header)
		}
		if calls.Add(1) == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		receiver.ServeHTTP(w, r)
	}), Config{Service: "manta"})
	tracer.Request(Start{}).End(End{})
	tracer.Close()
	spans, _, faults := receiver.Spans()
	if len(spans) == 0 || spans[0].Service != "mine" || len(faults) > 0 {
		t.Errorf("%d spans after %d calls, faults %v", len(spans), calls.Load(), faults)
	}
}

// A receiver that refuses is not asked again; one that hangs holds nothing up for
// longer than a batch may take.
func TestBounds(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "50")
	var refused atomic.Int32
	gone := make(chan struct{})
	for name, handler := range map[string]http.HandlerFunc{
		"refuses": func(w http.ResponseWriter, _ *http.Request) {
			refused.Add(1)
			w.WriteHeader(http.StatusUnauthorized)
		},
		"hangs": func(http.ResponseWriter, *http.Request) { <-gone },
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(handler)
			c, err := newClient(server.URL)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.UploadTraces(context.Background(), nil); err == nil {
				t.Error("no error")
			}
			if name == "hangs" {
				close(gone)
			}
			c.Stop(context.Background())
			server.Close()
		})
	}
	if refused.Load() != 1 {
		t.Errorf("asked %d times", refused.Load())
	}
}

// What the environment asks for and can't be had is refused by its name.
func TestSettings(t *testing.T) {
	const endpoint = "http://collector:4318/v1/traces"
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		flag, variable, value string
		goes                  string // where traces go; "": nowhere
		refusal               string
	}{
		{},
		{flag: endpoint, goes: endpoint},
		{variable: "OTEL_EXPORTER_OTLP_ENDPOINT", value: "http://collector:4318/", goes: endpoint},
		{variable: "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", value: "https://collector/otlp", goes: "https://collector/otlp"},
		{flag: endpoint, variable: "OTEL_EXPORTER_OTLP_ENDPOINT", value: "http://other:4318", goes: endpoint},
		{flag: "grpc://collector:4317", refusal: "--otlp-traces-endpoint grpc://collector:4317: give a URL"},
		{variable: "OTEL_EXPORTER_OTLP_ENDPOINT", value: "collector:4317", refusal: "OTEL_EXPORTER_OTLP_ENDPOINT"},
		{flag: endpoint, variable: "OTEL_EXPORTER_OTLP_PROTOCOL", value: "grpc", refusal: "OTEL_EXPORTER_OTLP_PROTOCOL=grpc"},
		{flag: endpoint, variable: "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", value: "10s", refusal: "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT=10s: give milliseconds"},
		{flag: endpoint, variable: "OTEL_EXPORTER_OTLP_COMPRESSION", value: "zstd", refusal: "give gzip or none"},
		{flag: endpoint, variable: "OTEL_EXPORTER_OTLP_HEADERS", value: "secret", refusal: "OTEL_EXPORTER_OTLP_HEADERS: give NAME=VALUE"},
		{flag: endpoint, variable: "OTEL_EXPORTER_OTLP_CERTIFICATE", value: empty, refusal: "no certificate"},
	} {
		t.Run(test.flag+" "+test.variable, func(t *testing.T) {
			if test.variable != "" {
				t.Setenv(test.variable, test.value)
			}
			c, err := newClient(test.flag)
			switch {
			case test.refusal != "":
				if err == nil || !strings.Contains(err.Error(), test.refusal) {
					t.Errorf("%v, want %q", err, test.refusal)
				}
			case err != nil:
				t.Error(err)
			case (c == nil) != (test.goes == "") || c != nil && c.endpoint != test.goes:
				t.Errorf("%+v, want %q", c, test.goes)
			}
		})
	}
	for name, value := range map[string]string{"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "none"} {
		t.Setenv(name, value)
		if tracer, err := Open(Config{Endpoint: endpoint}); tracer != nil || err != nil {
			t.Errorf("%s=%s: %v %v", name, value, tracer, err)
		}
		os.Unsetenv(name)
	}
}
