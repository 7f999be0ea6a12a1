//go:build !windows

package device

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"manta/node/serve"
	"manta/node/wire"
	"manta/parallel/shard"
)

// BenchmarkPipelineOnGPU runs the 8B shape of BENCH_DIR with random weights: whole; in
// two stages that share a process, and so pass rows over devices' memory; and on two
// nodes, whose rows go over NATS. GPU 0 has both stages if it is alone; all are of one
// process, so that kernels of both stages run side by side.
//
// A prompt of 64 tokens goes through the stages one after the other, alone: what it
// takes beyond the whole model is a hop of 64 rows. Prompts of 8192 show how busy both
// stages are.
func BenchmarkPipelineOnGPU(b *testing.B) {
	gpus, err := serve.FindCUDA()
	folder := os.Getenv("BENCH_DIR")
	if err != nil || len(gpus.Devices()) == 0 || folder == "" {
		b.Skipf("needs a GPU (%v) and BENCH_DIR", err)
	}
	path := filepath.Join(folder, "shapes/llama3-8b")
	for _, way := range []struct {
		name   string
		stages int
		nodes  []string
	}{{"whole", 1, []string{"n1"}}, {"one process", 2, []string{"n1"}}, {"NATS", 2, []string{"n1", "n2"}}} {
		b.Run(way.name, func(b *testing.B) {
			devices := gpus.Devices()
			replica := wire.Assignment{
				Replica: "r1", Deployment: "8b", Epoch: 1, Model: path, Layout: shard.Layout{Tensor: 1, Pipeline: way.stages},
				Blocks: []int{128 * 64}, MaxLen: 8448, Settings: wire.Settings{MaxNumSeqs: 128, MaxNumBatchedTokens: 8192, LoadFormat: "dummy"},
			}
			for stage := range way.stages {
				replica.Shards = append(replica.Shards, wire.Shard{Stage: stage, Node: way.nodes[stage%len(way.nodes)], Device: devices[stage%len(devices)].ID})
			}
			p := newPipeline(b, replica, gpus, false, way.nodes...)
			defer p.stop()
			p.decode(b, streams{64, 64, 8}) // shapes of steps are seen, graphs made
			for b.Loop() {
				b.ReportMetric(0, "ns/op")
				var firsts []float64
				for range 21 {
					firsts = append(firsts, p.decode(b, streams{1, 64, 1}).first)
				}
				slices.Sort(firsts)
				b.ReportMetric(1e3*firsts[10], "64-rows-ms")
				for _, work := range []streams{{1, 8192, 1}} {
					p.decode(b, work)
					b.ReportMetric(1e3*p.decode(b, work).first, fmt.Sprintf("%dx8192-rows-ms", work.count))
				}
				for _, work := range []streams{{1, 512, 48}, {64, 512, 48}, {128, 512, 48}} {
					p.decode(b, work)
					b.ReportMetric(1e3*p.decode(b, work).clock/float64(work.output), fmt.Sprintf("%d-streams-ms", work.count))
				}
			}
		})
	}
}
