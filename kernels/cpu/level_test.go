package cpu

import (
	"fmt"
	"testing"

	"manta/kernels"
)

// Instruction sets compute the same bits: a sequence may move between unlike
// machines. Plain Go has its own order of sums; AVX2 lacks bfloat16 products.
func TestLevelsAgreeBitForBit(t *testing.T) {
	var assembled []*kernelSet
	for _, set := range sets() {
		if set.name != "go" {
			set.dots = nil
			assembled = append(assembled, set)
		}
	}
	for i, set := range assembled {
		if i == 0 {
			continue
		}
		for _, precision := range []Precision{Float32, Int16, Int8} {
			for _, dtype := range allTypes {
				for _, m := range []int{1, 2, 3, 4, 5, 6, 7, 12, 25} {
					const rows, cols = 192, 512
					rng := newRand(uint64(m))
					weight, x, scale := matrix(rng, dtype, rows, cols), random(rng, m*cols), random(rng, cols)
					run := func(set *kernelSet) []float32 {
						o := deviceOf(t, Options{Threads: 1, Precision: precision}, set)
						y := tensor(t, o, m, rows/3, nil)
						n := &kernels.Norm{Weight: vectorOf(t, o, scale), Eps: 1e-5}
						o.Linear(y, tensor(t, o, m, cols, x), kernels.Linear{Weight: weightOf(t, o, rowsOf(weight, rows/3)), Norm: n, Softcap: 9, Activation: kernels.GELU})
						gated := tensor(t, o, m, rows/2, nil)
						o.Linear(gated, tensor(t, o, m, cols, x), kernels.Linear{Weight: weightOf(t, o, weight), Gated: true, Activation: kernels.SiLU})
						return append(get(t, o, y), get(t, o, gated)...)
					}
					same(t, fmt.Sprint(set.name, " ", precision, " ", dtype, " ", m, " rows"), run(set), run(assembled[0]))
				}
			}
		}
		for _, c := range attentionCases() {
			got, want := c.run(t, device(t, 1, set), c.chunks, true), c.run(t, device(t, 1, assembled[0]), c.chunks, true)
			for s := range want {
				same(t, fmt.Sprint(set.name, " ", c.name), got[s], want[s])
			}
		}
	}
}

// rowsOf gives the first rows of a matrix.
func rowsOf(m kernels.Matrix, rows int) kernels.Matrix {
	m.Rows, m.Data = rows, m.Data[:rows*m.Stride]
	return m
}
