//go:build cuda

package model

import (
	"fmt"
	"math"
	"path/filepath"
	"testing"

	"manta/kernels"
	"manta/kernels/cuda"
	"manta/kernels/ref"
	"manta/parallel/shard"
	"manta/runtime/weights"
)

// onGPU makes the runners of a test use device 0.
func onGPU(t *testing.T, compute kernels.DType) {
	t.Helper()
	before := newOps
	t.Cleanup(func() { newOps = before })
	newOps = func(t testing.TB) kernels.Ops {
		o, err := cuda.New(0, cuda.Options{Compute: compute})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := o.Close(); err != nil {
				t.Error(err)
			}
		})
		return o
	}
}

// In the float32 mode a GPU holds the references as the CPU does: logits within
// the bound and equal greedy tokens, whole, in chunks, in mixed batches and on
// several ranks.
func TestGoldenModelsOnGPU(t *testing.T) {
	onGPU(t, kernels.F32)
	t.Run("alone", TestGoldenModels)
	t.Run("mixed", TestGoldenModelsInMixedBatches)
	t.Run("ranks", TestGoldenModelsOnManyRanks)
	t.Run("bits", TestLawOfBits)
}

// In bfloat16 the bits of a prompt's logits are those of any chunking, and their
// error against the float32 reference is what 8-bit operands bring: it is printed,
// and bounded at 5% of the logits' size.
func TestGoldenModelsInBrainOnGPU(t *testing.T) {
	onGPU(t, kernels.BF16)
	for _, folder := range goldenModels(t) {
		t.Run(filepath.Base(folder), func(t *testing.T) {
			g := readGolden(t, folder)
			w, err := weights.Open(folder)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			s, err := Describe(w)
			if err != nil {
				t.Fatal(err)
			}
			r := clusterOf(t, w, s, kernels.BF16, testContext, shard.Layout{Tensor: 1, Pipeline: 1})
			equal, total := 0, 0
			var difference, size float64
			for i, p := range g.Prompts {
				var whole []float32
				for _, chunk := range []int{256, 1, 7, 64} {
					seq := r.sequence(p.IDs)
					last := r.prompt(seq, chunk)
					if chunk != 256 {
						if !bits(last, whole) {
							t.Errorf("prompt %d: chunks of %d give other bits than the whole", i, chunk)
						}
						r.next = make([]int32, len(r.groups))
						continue
					}
					whole = last
					for k, v := range last {
						difference += math.Pow(float64(v-p.LogitsLast[k]), 2)
						size += math.Pow(float64(p.LogitsLast[k]), 2)
					}
					for _, token := range p.Greedy {
						total++
						if ref.Argmax(last) == token {
							equal++
						}
						seq.tokens = append(seq.tokens, token)
						last = r.prompt(seq, 1)
					}
					r.next = make([]int32, len(r.groups))
				}
			}
			e := math.Sqrt(difference / size)
			fmt.Printf("%-20s error %.2e of the logits, %d of %d next tokens equal\n", filepath.Base(folder), e, equal, total)
			if !(e < 0.05) {
				t.Errorf("error %.2e", e)
			}
		})
	}
}
