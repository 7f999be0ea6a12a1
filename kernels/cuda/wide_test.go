//go:build cuda

package cuda

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"manta/kernels"
)

// Every tile of wide products, whole or cut, gives the bits that few rows have by
// themselves, whatever leaves it and however (DESIGN.md, the law of bits).
func TestWideTilesKeepBits(t *testing.T) {
	cases := []struct {
		name           string
		width, columns int
		linear         kernels.Linear
		norm           bool
	}{
		{"several segments, scaled", 1320, 1088, kernels.Linear{}, true},
		{"several segments, onto a residual", 4096, 2112, kernels.Linear{Accumulate: true}, false},
		{"a gate of several segments", 2 * 640, 1088, kernels.Linear{Gated: true, Activation: kernels.SiLU}, true},
		{"another gate", 2 * 200, 576, kernels.Linear{Gated: true, Activation: kernels.GELU}, false},
		{"one segment, a gate", 2 * 4096, 192, kernels.Linear{Gated: true, Activation: kernels.SiLU}, true},
		{"one segment, capped", 4099, 128, kernels.Linear{Softcap: 3}, false},
		{"an activation", 520, 320, kernels.Linear{Activation: kernels.GELUTanh}, false},
	}
	defer func(all []wideTile) { wideTiles = all }(wideTiles)
	all := wideTiles
	for _, compute := range []kernels.DType{kernels.BF16, kernels.F16} {
		wideTiles = all
		o := open(t, compute)
		if !o.wideKernels {
			t.Skip("no Hopper device")
		}
		for _, c := range cases {
			r := rand.New(rand.NewPCG(6, uint64(c.width)))
			outputs := c.width
			if c.linear.Gated {
				outputs /= 2
			}
			const most = 600
			x, residual, a := random(r, most*c.columns, 1), random(r, most*outputs, 1), c.linear
			m := matrix(r, c.width, c.columns, 0.05)
			a.Weight = must(o.Weight(must(m.SliceRows(0, c.width/2)), must(m.SliceRows(c.width/2, c.width))))
			if c.norm {
				a.Norm = &kernels.Norm{Kind: kernels.RMSNorm, Weight: must(o.Vector(random(r, c.columns, 1))), Eps: 1e-5}
			} else if !a.Accumulate {
				a.Bias = must(o.Vector(random(r, c.width, 0.3)))
			}
			run := func(rows int) []float32 {
				in, out := tensor(t, o, rows, c.columns, x[:rows*c.columns]), tensor(t, o, rows, outputs, residual[:rows*outputs])
				if !a.Accumulate {
					poison(t, o, out)
				}
				step(t, o, rowsOnly(rows), func() { o.Linear(out, in, a) })
				return read(t, o, out)
			}
			wideTiles = all
			few, whole := run(8), run(most)
			for _, tile := range all {
				if !tile.takes(int32(a.Weight.(*weight).segments)) {
					continue
				}
				t.Run(fmt.Sprintf("%s/%s/%s", compute, c.name, tile.kernel("")), func(t *testing.T) {
					wideTiles = []wideTile{tile}
					for _, rows := range []int{9, tile.rows, most} {
						got := run(rows)
						sameBits(t, fmt.Sprintf("%d rows", rows), got, whole[:rows*outputs])
						sameBits(t, "the first 8", got[:8*outputs], few)
					}
				})
			}
		}
	}
}
