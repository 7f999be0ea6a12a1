package api

import (
	"bufio"
	"net/http"
	"net/http/httptest"
	"testing"

	"manta/head/dispatch"
	"manta/head/dispatch/dispatchtest"
	"manta/node/wire"
	"manta/runtime/sample"
)

// discard is a client that takes everything at once.
type discard struct {
	header http.Header
	bytes  int
}

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) WriteHeader(int)             {}
func (d *discard) Flush()                      {}
func (d *discard) Write(p []byte) (int, error) { d.bytes += len(p); return len(p), nil }

// What a head spends to bring one token of one frame to one client, without the
// network: decode the frame, find its request, make text, write the event.
func BenchmarkRelayToken(b *testing.B) {
	cluster := dispatchtest.New()
	defer cluster.Close()
	dispatcher := dispatch.New(dispatch.Config{Head: "h", Views: cluster, Link: cluster, Meter: dispatchtest.Meter{}})
	cluster.Attach(dispatcher)
	cluster.AddReplica("m", "r1", "n1", 1, 8)
	text := fakeText(b)
	j := &job{
		model: &served{text: text}, n: 1, prompts: []prompt{{tokens: []int32{1}}}, stream: true, params: sample.Default(),
	}
	j.model.Name = "smollm2"
	form := &chatForm{job: j}
	server := New(Config{Views: cluster, Dispatch: dispatcher})
	e := server.newSSE(&discard{header: http.Header{}}, j)
	tally := newTally(j)
	frame := wire.Frame{Version: wire.Version, Attempt: 1, Epoch: 1, Tokens: []int32{'a'}}
	data, err := wire.Marshal(&frame)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		var got wire.Frame
		if err := wire.Unmarshal(data, &got); err != nil {
			b.Fatal(err)
		}
		dispatcher.Frame(got)
		if err := e.piece(j, form, tally, &piece{Event: dispatch.Event{Text: "a", Tokens: got.Tokens, Offset: 1}}); err != nil {
			b.Fatal(err)
		}
		if err := e.flush(); err != nil {
			b.Fatal(err)
		}
	}
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
