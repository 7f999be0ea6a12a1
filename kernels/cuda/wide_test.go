//go:build cuda

package cuda

import (
	"fmt"
	"math/rand/v2"
	"slices"
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
			stack := func(first, second kernels.Matrix) (kernels.Weight, error) { return o.Weight(first, second) }
			if a.Gated {
				stack = o.Pair
			}
			a.Weight = must(stack(must(m.SliceRows(0, c.width/2)), must(m.SliceRows(c.width/2, c.width))))
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
				if !tile.takes(int32(a.Weight.(*weight).segments), false) {
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

// Heads that the product turns and stores itself are, bit for bit, those that Attention
// would have turned and stored, in every tile, whole and cut, for rows of prompts and for
// rows that stand alone beside them.
func TestHeadsOfProductsKeepBits(t *testing.T) {
	cases := []struct {
		name                     string
		heads, kv, size, columns int
		bias                     bool
		window                   int
	}{
		{"heads of 128", 8, 2, 128, 1088, false, 0},
		{"an odd number of heads of 64, biased, windowed", 9, 3, 64, 576, true, 50},
		{"many heads of 128", 32, 8, 128, 192, true, 0},
	}
	// Rows of each sequence, step by step.
	steps := [][]int{{130, 17}, {1, 1, 300, 33}, {70, 1, 2, 1, 500}, {1, 1, 1, 1, 1}}
	defer func(all []wideTile) { wideTiles = all }(wideTiles)
	all := wideTiles
	for _, compute := range []kernels.DType{kernels.BF16, kernels.F16} {
		wideTiles = all // which say what kernels are loaded
		o := open(t, compute)
		if !o.wideKernels {
			t.Skip("no Hopper device")
		}
		for _, c := range cases {
			r := rand.New(rand.NewPCG(8, uint64(c.size)))
			width := (c.heads + 2*c.kv) * c.size
			product := kernels.Linear{Weight: must(o.Weight(matrix(r, width, c.columns, 0.05))),
				Norm: &kernels.Norm{Kind: kernels.RMSNorm, Weight: must(o.Vector(random(r, c.columns, 1))), Eps: 1e-5}}
			if c.bias {
				product.Bias = must(o.Vector(random(r, width, 0.3)))
			}
			a := kernels.Attention{Heads: c.heads, KVHeads: c.kv, HeadDim: c.size, Scale: 0.11, Layer: 1, Group: 1, Window: c.window}
			for h := range c.heads {
				a.HeadMap = append(a.HeadMap, int32(h*c.kv/c.heads))
			}
			inverse := make([]float32, c.size/2)
			for i := range inverse {
				inverse[i] = 1 / float32(1+i)
			}
			a.Rope = must(o.Rope(inverse, 1, 1024))
			const blocks = 200
			order := r.Perm(blocks)
			run := func(turned bool) (results [][]float32) {
				a := a
				a.Cache = must(o.Cache(kernels.CacheSpec{Layers: 2, Blocks: blocks, KVHeads: c.kv, HeadDim: c.size, Type: compute}))
				product := product
				if turned {
					product.Attention = &a
				}
				r, done := rand.New(rand.NewPCG(9, 9)), make([]int, 5)
				for _, counts := range steps {
					b := &kernels.Batch{}
					for s, count := range counts {
						table := make([]int32, (done[s]+count+15)/16)
						for i := range table {
							table[i] = int32(order[s*40+i])
							if c.window > 0 && (i+1)*16 <= done[s]-c.window+1 {
								table[i] = -1
							}
						}
						b.Spans = append(b.Spans, kernels.Span{Row: len(b.Tokens), Count: count, Start: done[s], Blocks: [][]int32{make([]int32, len(table)), table}})
						for range count {
							b.Tokens, b.Positions = append(b.Tokens, 0), append(b.Positions, int32(done[s]))
							done[s]++
						}
					}
					rows := len(b.Tokens)
					x, qkv, out := tensor(t, o, rows, c.columns, random(r, rows*c.columns, 1)), must(o.Tensor(rows, width)), must(o.Tensor(rows, c.heads*c.size))
					poison(t, o, qkv)
					poison(t, o, out)
					step(t, o, b, func() {
						o.Linear(qkv, x, product)
						if turned && rows >= headRows && !bufferOf(qkv).turned {
							t.Fatalf("%d rows: the product left its heads to Attention", rows)
						}
						o.Attention(out, qkv, a)
					})
					results = append(results, read(t, o, out))
				}
				return results
			}
			wideTiles = all
			want := run(false)
			for _, tile := range all {
				if tile.use != makesHeads {
					continue
				}
				t.Run(fmt.Sprintf("%s/%s/%s", compute, c.name, tile.kernel("")), func(t *testing.T) {
					wideTiles = append([]wideTile{tile}, all...)
					wideTiles = slices.DeleteFunc(wideTiles, func(other wideTile) bool { return other.use == makesHeads && other != tile })
					for i, got := range run(true) {
						sameBits(t, fmt.Sprintf("step %d", i), got, want[i])
					}
				})
			}
		}
	}
}
