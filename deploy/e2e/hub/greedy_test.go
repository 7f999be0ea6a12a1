//go:build e2e

package hub

import (
	"encoding/binary"
	"math"
	"testing"

	"manta/kernels"
	"manta/parallel/shard"
	"manta/runtime/model"
	"manta/runtime/model/modeltest"
	"manta/runtime/weights"
)

// greedy continues a prompt on a device without the engine: one sequence, the
// prompt in one step, then token by token. It fails where two tokens are too close
// to tell which one another device would take.
func greedy(t *testing.T, ops kernels.Ops, w *weights.Model, prompt []int32, count int) []int32 {
	t.Helper()
	spec, err := model.Describe(w)
	must(t, err)
	slice, err := shard.Whole(spec.Shape())
	must(t, err)
	const context = 128 // as the server under test
	limits := model.Limits{MaxRows: context, MaxWanted: 1, MaxContext: context, CacheType: kernels.F32}
	var blocks [][]int32
	for range spec.Shapes().Groups() {
		var list []int32
		for b := range context / kernels.BlockTokens {
			list = append(list, int32(b))
		}
		blocks, limits.Blocks = append(blocks, list), append(limits.Blocks, len(list))
	}
	m, err := model.Load(ops, w, spec, slice, limits, nil)
	must(t, err)
	tokens, computed := append([]int32{}, prompt...), 0
	for len(tokens) < len(prompt)+count {
		b := &kernels.Batch{Tokens: tokens[computed:], Spans: []kernels.Span{{Count: len(tokens) - computed, Start: computed, Blocks: blocks}}}
		for i := range b.Tokens {
			b.Positions = append(b.Positions, int32(computed+i))
		}
		b.Wanted = []int32{int32(len(b.Tokens) - 1)}
		computed = len(tokens)
		must(t, ops.Begin(b))
		logits, err := m.Forward(b)
		must(t, err)
		row := make([]byte, ops.RowBytes(logits))
		must(t, ops.Get(row, logits))
		_, err = ops.End().Wait()
		must(t, err)
		best, margin := largest(row)
		if margin < modeltest.Margin {
			t.Fatalf("after %v two tokens are %g apart: take another seed", tokens, margin)
		}
		tokens = append(tokens, best)
	}
	return tokens[len(prompt):]
}

// largest gives the greatest of float32 values and how far the next is below it.
func largest(row []byte) (best int32, margin float64) {
	first, second := math.Inf(-1), math.Inf(-1)
	for i := range len(row) / 4 {
		v := float64(math.Float32frombits(binary.LittleEndian.Uint32(row[4*i:])))
		switch {
		case v > first:
			best, first, second = int32(i), v, first
		case v > second:
			second = v
		}
	}
	return best, first - second
}
