package engine_test

import (
	"fmt"
	"testing"

	"manta/kernels/cpu"
	"manta/parallel/shard"
	"manta/runtime/engine"
	"manta/runtime/sched"
)

// BenchmarkSmolLM2 runs the real model through the engine: prompt tokens a second,
// and output tokens a second alone and with company.
func BenchmarkSmolLM2(b *testing.B) {
	for _, c := range []struct{ streams, prompt, output int }{{1, 8, 128}, {1, 512, 1}, {16, 128, 128}} {
		b.Run(fmt.Sprintf("%d streams %d in %d out", c.streams, c.prompt, c.output), func(b *testing.B) {
			r := serveOn(b, pullSmolLM2(b), shard.Layout{Tensor: 1, Pipeline: 1}, sched.Limits{
				Blocks: []int{1024}, MaxSequences: 16, MaxRows: 512, MaxWanted: 16, MaxLen: 1024,
			}, cpu.Options{}, 0)
			defer r.stop()
			n := 0
			for b.Loop() {
				var requests []engine.Request
				for i := range c.streams {
					prompt := make([]int32, c.prompt)
					for j := range prompt {
						prompt[j] = int32(1000 + 7*i + j)
					}
					requests = append(requests, engine.Request{ID: engine.RequestID{byte(i), byte(n), byte(n >> 8)}, Attempt: 1, Prompt: prompt, Choices: 1, Params: greedy(c.output)})
				}
				n++
				r.generate(b, requests)
			}
			seconds := b.Elapsed().Seconds() / float64(b.N)
			if c.output > 1 {
				b.ReportMetric(float64(c.streams*c.output)/seconds, "tokens/s")
			}
			b.ReportMetric(float64(c.streams*(c.prompt+c.output))/seconds, "in+out/s")
		})
	}
}
