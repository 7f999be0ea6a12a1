//go:build cuda

package cuda

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"manta/kernels"
)

// A product whose segments a cluster adds gives the bits that few rows have by themselves,
// and so does the product after it, whether that reads what the first made of its outputs
// or what prepare makes of them (DESIGN.md, the law of bits).
func TestJointProductsKeepBits(t *testing.T) {
	cases := []struct{ width, columns int }{{1024, 2048}, {1024, 3072}, {2048, 2048}, {640, 1088}, {3072, 2048}}
	for _, compute := range []kernels.DType{kernels.BF16, kernels.F16} {
		o := open(t, compute)
		if !o.wideKernels {
			t.Skip("no Hopper device")
		}
		for _, c := range cases {
			t.Run(fmt.Sprintf("%s/%d×%d", compute, c.width, c.columns), func(t *testing.T) {
				r := rand.New(rand.NewPCG(7, uint64(c.columns)))
				const most, after = 300, 2 * 192
				in, residual := random(r, most*c.columns, 1), random(r, most*c.width, 1)
				first := kernels.Linear{Weight: must(o.Weight(matrix(r, c.width, c.columns, 0.05))), Accumulate: true}
				second := kernels.Linear{Weight: must(o.Pair(matrix(r, after/2, c.width, 0.05), matrix(r, after/2, c.width, 0.05))), Gated: true, Activation: kernels.SiLU,
					Norm: &kernels.Norm{Kind: kernels.RMSNorm, Weight: must(o.Vector(random(r, c.width, 1))), Eps: 1e-5}}
				run := func(rows int, together bool) (x, y []float32, names []string) {
					attended, xs, ys := tensor(t, o, rows, c.columns, in[:rows*c.columns]), tensor(t, o, rows, c.width, residual[:rows*c.width]), must(o.Tensor(rows, after/2))
					poison(t, o, ys)
					one, two := func() { identity(t, o, attended); o.Linear(xs, attended, first) }, func() { o.Linear(ys, xs, second) }
					if together {
						step(t, o, rowsOnly(rows), func() { one(); two(); names = slices.Clone(o.step.names) })
					} else {
						step(t, o, rowsOnly(rows), one)
						step(t, o, rowsOnly(rows), two)
					}
					return read(t, o, xs), read(t, o, ys), names
				}
				fewX, fewY, _ := run(4, false)
				for _, rows := range []int{9, 16, 17, 48, 64, 100, 128, 192, 256, most} {
					apartX, apartY, _ := run(rows, false)
					x, y, names := run(rows, true)
					sameBits(t, fmt.Sprintf("%d rows", rows), x, apartX)
					sameBits(t, fmt.Sprintf("%d rows, the second product", rows), y, apartY)
					sameBits(t, "the first 4", x[:4*c.width], fewX)
					sameBits(t, "the first 4, the second product", y[:4*after/2], fewY)
					if c.width == 1024 && rows <= 256 && !strings.HasPrefix(names[1], "joint_") {
						t.Errorf("%d rows: %v, want a joint product", rows, names)
					}
					if compute == kernels.BF16 && strings.HasPrefix(names[1], "joint_") && c.width <= squareParts*partColumns && len(names) != 3 {
						t.Errorf("%d rows: %v, want no prepare between the products", rows, names)
					}
				}
			})
		}
	}
}
