package model

import (
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"testing"

	"manta/kernels"
	"manta/parallel/shard"
)

// bits compares logits exactly.
func bits(a, b []float32) bool {
	return slices.EqualFunc(a, b, func(x, y float32) bool { return math.Float32bits(x) == math.Float32bits(y) })
}

// The law of bits: the logits of a row are the same bits at every batch size from
// 1 to 64, and however its sequence was cut into steps, for each type of cache.
func TestLawOfBits(t *testing.T) {
	for _, folder := range goldenModels(t) {
		prompts := readGolden(t, folder).Prompts
		prompt := prompts[len(prompts)-1].IDs
		for _, kind := range []kernels.DType{kernels.F32, kernels.BF16, kernels.F16} {
			t.Run(fmt.Sprintf("%s/%s", filepath.Base(folder), kind), func(t *testing.T) {
				r := newRunner(t, folder, kind, testContext)
				whole := r.sequence(prompt)
				want := r.step(part{whole, len(prompt)})[0]
				for _, chunk := range []int{1, 7, 16, 64} {
					s := r.sequence(prompt)
					for s.computed < len(prompt) {
						at := s.computed
						for i, row := range r.step(part{s, min(chunk, len(prompt)-at)})[0] {
							if !bits(row, want[at+i]) {
								t.Fatalf("chunks of %d: position %d differs", chunk, at+i)
							}
						}
					}
				}
				r.next = make([]int32, len(r.groups))
				s := r.sequence(prompt)
				others := make([]*sequence, 63)
				for i := range others {
					others[i] = r.sequence(prompt[i%7:])
				}
				r.step(part{s, len(prompt) - 1})
				for size := 1; size <= 64; size++ {
					s.computed = len(prompt) - 1
					parts := []part{{s, 1}}
					for i, other := range others[:size-1] {
						other.computed = min(other.computed, i%5)
						parts = append(parts, part{other, 1})
					}
					if i := size / 2; size > 2 { // not always the first row
						parts[0], parts[i] = parts[i], parts[0]
					}
					rows := r.step(parts...)
					for i, p := range parts {
						if p.sequence == s && !bits(rows[i][0], want[len(prompt)-1]) {
							t.Fatalf("batch of %d: the row differs", size)
						}
					}
				}
			})
		}
	}
}

// Every tensor degree and every number of stages gives the reference's tokens,
// and logits within the bound; the ranks of a stage agree bit for bit.
func TestGoldenModelsOnManyRanks(t *testing.T) {
	for _, folder := range goldenModels(t) {
		g := readGolden(t, folder)
		for _, layout := range []shard.Layout{
			{Tensor: 2, Pipeline: 1},
			{Tensor: 3, Pipeline: 1},
			{Tensor: 1, Pipeline: 2},
			{Tensor: 1, Pipeline: 3},
			{Tensor: 2, Pipeline: 2},
			{Tensor: 3, Pipeline: 1, TensorShares: []int{5, 1, 2}},
		} {
			t.Run(fmt.Sprintf("%s/%dx%d", filepath.Base(folder), layout.Tensor, layout.Pipeline), func(t *testing.T) {
				r := newCluster(t, folder, kernels.F32, testContext, layout)
				for i, p := range g.Prompts {
					s := r.sequence(p.IDs)
					last := r.prompt(s, 32)
					compare(t, fmt.Sprintf("prompt %d", i), last, p.LogitsLast)
					checkGreedy(t, r, s, last, p.Greedy, p.Margin)
				}
			})
		}
	}
}
