package api

import (
	"bufio"
	"context"
	"net/http/httptest"
	"syscall"
	"testing"

	"manta/head/dispatch"
	"manta/head/dispatch/dispatchtest"
	"manta/internal/telemetry"
	"manta/node/wire"
	"manta/runtime/sample"
)

// taking is a connection that takes everything at once.
type taking struct{ syscall.RawConn }

func (taking) Control(write func(uintptr)) error { write(0); return nil }

// made is drivers whose frames the benchmark makes.
type made struct {
	*dispatchtest.Cluster
	sent chan struct{}
}

func (m made) Send(context.Context, string, *wire.Request) error { m.sent <- struct{}{}; return nil }
func (made) Cancel(context.Context, string, *wire.Cancel) error  { return nil }

// What a head spends to bring one token to one client, but for the network: the frames
// of a step of 16 requests are decoded, each becomes text and an event.
func BenchmarkRelayToken(b *testing.B) {
	cluster := dispatchtest.New()
	defer cluster.Close()
	const streams = 16
	drivers := made{cluster, make(chan struct{}, streams)}
	dispatcher := dispatch.New(dispatch.Config{Head: "h", Views: cluster, Link: drivers, Meter: dispatch.Metered{Metrics: telemetry.New()}})
	cluster.Attach(dispatcher)
	cluster.AddReplica("m", "r1", "n1", 1, streams)
	server := New(Config{Views: cluster, Dispatch: dispatcher})
	step := wire.Frames{Version: wire.Version}
	for i := range streams {
		j := &job{
			id: wire.RequestID{byte(i)}, model: &served{text: fakeText(b)}, n: 1, prompts: []prompt{{tokens: []int32{1}}}, stream: true,
			params: sample.Default(), caller: &caller{},
		}
		j.model.Name = "m"
		e := server.newSSE(httptest.NewRecorder(), httptest.NewRequest("POST", "/", nil), j, &chatForm{job: j})
		e.direct = &direct{raw: taking{}}
		e.direct.try = func(uintptr) { e.direct.took = len(e.direct.rest) }
		done := make(chan error)
		ctx, stop := context.WithCancel(b.Context())
		defer func() { stop(); <-done }()
		go func() { done <- e.relay(ctx) }()
		step.Frames = append(step.Frames, wire.Frame{Version: wire.Version, Request: j.id, Attempt: 1, Epoch: 1, Tokens: []int32{'a'}})
	}
	steps := make([][]byte, b.N)
	for offset := range steps {
		for i := range step.Frames {
			step.Frames[i].Offset = offset
		}
		var err error
		if steps[offset], err = wire.Marshal(step); err != nil {
			b.Fatal(err)
		}
	}
	for range streams {
		<-drivers.sent
	}
	b.ReportAllocs()
	b.ResetTimer()
	for _, data := range steps {
		var got wire.Frames
		if err := wire.UnmarshalFrames(data, &got); err != nil {
			b.Fatal(err)
		}
		for i := range got.Frames {
			dispatcher.Frame(&got.Frames[i])
		}
	}
	b.StopTimer()
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/streams, "ns/token")
}

// The same through a real connection: a stream of made-up tokens, a frame each.
func BenchmarkStream(b *testing.B) {
	bench := newBench(b, nil)
	bench.cluster.Script = dispatchtest.Repeat("x")
	const tokens = 2000
	server := httptest.NewServer(bench.Config.Handler)
	defer server.Close()
	b.ReportAllocs()
	for b.Loop() {
		response := bench.open("POST", "/v1/completions", `{"prompt":"x","max_tokens":2000,"stream":true}`)
		lines := bufio.NewScanner(response.Body)
		for lines.Scan() {
		}
		response.Body.Close()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/tokens, "ns/token")
}
