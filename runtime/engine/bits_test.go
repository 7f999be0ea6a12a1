package engine_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"manta/kernels/cpu"
	"manta/parallel/shard"
	"manta/runtime/engine"
	"manta/runtime/sched"
)

// bits is what a request gave, to the bit: tokens and the log probabilities of
// the best 20 at every position, prompt included.
func bits(outputs []engine.Output) []uint64 {
	var all []uint64
	add := func(list []engine.Logprob) {
		for _, l := range list {
			all = append(all, uint64(uint32(l.Token))<<32|uint64(math.Float32bits(l.Logprob)))
			for _, top := range l.Top {
				all = append(all, uint64(uint32(top.Token))<<32|uint64(math.Float32bits(top.Logprob)))
			}
		}
	}
	for _, o := range outputs {
		add(o.Prompt)
		add(o.Logprobs)
	}
	return all
}

// The law of bits through the whole engine: what a request gives does not depend,
// to the bit, on how many others run beside it, on chunks, steps in flight,
// threads, or a preemption.
func TestLawOfBits(t *testing.T) {
	path := folders(t)[0]
	rng := rand.New(rand.NewPCG(3, 3))
	var requests []engine.Request
	for i := range 64 {
		prompt := make([]int32, 1+rng.IntN(40))
		for j := range prompt {
			prompt[j] = int32(rng.IntN(900))
		}
		p := greedy(2 + rng.IntN(10))
		p.Logprobs, p.Temperature, p.Seed = 20, 1, uint64(i)
		if i%4 == 0 {
			p.PromptLogprobs = 20
		}
		requests = append(requests, engine.Request{ID: engine.RequestID{byte(i)}, Attempt: 1, Prompt: prompt, Choices: 1, Params: p})
	}
	run := func(batch, rows, blocks, depth, threads int, requests []engine.Request) map[engine.RequestID][]uint64 {
		limits := sched.Limits{Blocks: []int{blocks}, MaxSequences: batch, MaxRows: rows, MaxWanted: max(batch, 16), MaxLen: 64}
		r := serveOn(t, path, shard.Layout{Tensor: 1, Pipeline: 1}, limits, cpu.Options{Threads: threads}, depth)
		defer r.stop()
		got := make(map[engine.RequestID][]engine.Output)
		r.generateWith(t, requests, func(o engine.Output) { got[o.ID] = append(got[o.ID], o) })
		all := make(map[engine.RequestID][]uint64)
		for id, outputs := range got {
			all[id] = bits(outputs)
		}
		return all
	}
	alone := run(1, 64, 64, 1, 1, requests)
	for _, c := range []struct{ batch, rows, blocks, depth, threads int }{
		{1, 7, 64, 2, 1}, {1, 1, 64, 2, 2}, {2, 64, 64, 2, 1}, {3, 5, 64, 1, 2}, {8, 64, 64, 2, 2},
		{17, 31, 64, 2, 1}, {33, 33, 200, 2, 2}, {64, 200, 400, 1, 1}, {64, 64, 400, 2, 2}, {64, 64, 12, 2, 1},
	} {
		t.Run(fmt.Sprintf("batch %d rows %d blocks %d depth %d threads %d", c.batch, c.rows, c.blocks, c.depth, c.threads), func(t *testing.T) {
			for id, got := range run(c.batch, c.rows, c.blocks, c.depth, c.threads, requests) {
				if fmt.Sprint(got) != fmt.Sprint(alone[id]) {
					t.Errorf("request %d differs from what it gives alone", id[0])
				}
			}
		})
	}
}
