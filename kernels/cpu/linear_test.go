package cpu

import (
	"errors"
	"fmt"
	"testing"

	"manta/kernels"
	"manta/kernels/ref"
)

var allTypes = []kernels.DType{kernels.F32, kernels.F16, kernels.BF16, kernels.Q4_0, kernels.Q4_1, kernels.Q5_0, kernels.Q5_1, kernels.Q8_0, kernels.Q4_K, kernels.Q5_K, kernels.Q6_K}

// Every type of weight gives what the definition gives, on odd shapes, through
// every form of a product.
func TestLinearIsRefs(t *testing.T) {
	forms := []struct {
		name string
		make func(o kernels.Ops, rows, cols int) kernels.Linear
	}{
		{"plain", func(o kernels.Ops, rows, cols int) kernels.Linear { return kernels.Linear{} }},
		{"bias, accumulate", func(o kernels.Ops, rows, cols int) kernels.Linear {
			return kernels.Linear{Bias: vectorOf(t, o, random(newRand(3), rows)), Accumulate: true}
		}},
		{"norm, gated", func(o kernels.Ops, rows, cols int) kernels.Linear {
			n := &kernels.Norm{Weight: vectorOf(t, o, random(newRand(4), cols)), Eps: 1e-5}
			return kernels.Linear{Norm: n, Gated: true, Activation: kernels.SiLU, Bias: vectorOf(t, o, random(newRand(3), rows))}
		}},
		{"layer norm, gelu", func(o kernels.Ops, rows, cols int) kernels.Linear {
			n := &kernels.Norm{Kind: kernels.LayerNorm, Weight: vectorOf(t, o, random(newRand(4), cols)), Bias: vectorOf(t, o, random(newRand(5), cols)), Eps: 1e-5}
			return kernels.Linear{Norm: n, Activation: kernels.GELUTanh, Accumulate: true}
		}},
		{"softcap, silu", func(o kernels.Ops, rows, cols int) kernels.Linear {
			return kernels.Linear{Softcap: 5, Activation: kernels.SiLU}
		}},
	}
	for _, set := range sets() {
		for _, dtype := range allTypes {
			for i, shape := range []struct{ m, rows, cols int }{{1, 2, 32}, {2, 70, 96}, {3, 128, 64}, {5, 256, 32}, {17, 130, 160}, {40, 66, 32}} {
				if dtype.BlockSize() == 1 {
					shape.cols -= []int{31, 3, 0, 7, 1, 16}[i]
				}
				if dtype.BlockSize() == 256 {
					shape.cols = 256 * (1 + i%2)
				}
				form := forms[i%len(forms)]
				for _, form := range append(forms[:1:1], form) {
					name := fmt.Sprintf("%s/%s/%s/%v", set.name, dtype, form.name, shape)
					rng := newRand(7)
					weight := matrix(rng, dtype, shape.rows, shape.cols)
					x := random(rng, shape.m*shape.cols)
					out := random(rng, shape.m*shape.rows)
					run := func(o kernels.Ops) []float32 {
						a := form.make(o, shape.rows, shape.cols)
						a.Weight = weightOf(t, o, weight)
						width := shape.rows
						if a.Gated {
							width /= 2
						}
						in := tensor(t, o, shape.m, shape.cols, x)
						start := out[:shape.m*width]
						if !a.Accumulate {
							start = nil // NaN: every value must be written
						}
						y := tensor(t, o, shape.m, width, start)
						o.Linear(y, in, a)
						return get(t, o, y)
					}
					near(t, name, run(device(t, 2, set)), run(ref.New()), 1e-5)
				}
			}
		}
	}
}

// Weights stacked from parts, of one type or several, are one matrix.
func TestWeightStacksParts(t *testing.T) {
	for _, set := range sets() {
		for _, types := range [][]kernels.DType{{kernels.Q4_1, kernels.Q4_1, kernels.Q4_1}, {kernels.Q4_K, kernels.Q6_K}, {kernels.BF16, kernels.F32}, {kernels.Q4_K, kernels.Q5_0, kernels.Q6_K}} {
			rng := newRand(11)
			var parts []kernels.Matrix
			rows := 0
			for i, dtype := range types {
				parts = append(parts, matrix(rng, dtype, 64+i*i, 256)) // of three types the last change is inside a group
				rows += 64 + i*i
			}
			x := random(rng, 256)
			run := func(o kernels.Ops) []float32 {
				y := tensor(t, o, 1, rows, nil)
				o.Linear(y, tensor(t, o, 1, 256, x), kernels.Linear{Weight: weightOf(t, o, parts...)})
				return get(t, o, y)
			}
			near(t, fmt.Sprint(set.name, types), run(device(t, 2, set)), run(ref.New()), 1e-5)
		}
	}
}

// Both factors of a gate have equally many rows (kernels.Ops).
func TestPairRefusesUnequalFactors(t *testing.T) {
	rng := newRand(12)
	gate, up := matrix(rng, kernels.BF16, 64, 256), matrix(rng, kernels.BF16, 63, 256)
	for name, o := range map[string]kernels.Ops{"ref": ref.New(), "cpu": device(t, 1, sets()[0])} {
		if _, err := o.Pair(gate, up); !errors.Is(err, ref.ErrShape) && !errors.Is(err, ErrShape) {
			t.Errorf("%s: got %v, want an error of shapes", name, err)
		}
	}
}

// stepOf skips some row counts where kernels are slow and all one function.
func stepOf(set *kernelSet) int {
	if set.name == "go" {
		return 9
	}
	return 1
}

// The law of bits: a row's product is the same whatever stands beside it and
// whatever the number of threads.
func TestLinearLawOfBits(t *testing.T) {
	const most, rows = 64, 256
	for _, set := range sets() {
		for _, dtype := range []kernels.DType{kernels.F32, kernels.F16, kernels.BF16, kernels.Q8_0, kernels.Q4_0, kernels.Q4_1, kernels.Q5_1, kernels.Q4_K, kernels.Q6_K} {
			for _, gated := range []bool{false, true} {
				rng, cols := newRand(5), max(160, dtype.BlockSize())
				weight := matrix(rng, dtype, rows, cols)
				x, scale := random(rng, most*cols), random(rng, cols)
				run := func(o *Ops, w kernels.Weight, n *kernels.Norm, lo, hi int) []float32 {
					width := rows
					if gated {
						width /= 2
					}
					y := tensor(t, o, hi-lo, width, nil)
					o.Linear(y, tensor(t, o, hi-lo, cols, x[lo*cols:hi*cols]), kernels.Linear{Weight: w, Norm: n, Gated: gated, Activation: kernels.SiLU})
					return get(t, o, y)
				}
				var want []float32
				for threads := 1; threads <= 3; threads++ {
					o := device(t, threads, set)
					w := weightOf(t, o, weight)
					n := &kernels.Norm{Weight: vectorOf(t, o, scale), Eps: 1e-5}
					if want == nil {
						for r := range most {
							want = append(want, run(o, w, n, r, r+1)...)
						}
					}
					width := len(want) / most
					for m := 1; m <= most; m += stepOf(set) {
						lo := (m * 7) % (most - m + 1)
						same(t, fmt.Sprintf("%s %s gated %v, %d threads, rows [%d,%d)", set.name, dtype, gated, threads, lo, lo+m), run(o, w, n, lo, lo+m), want[lo*width:(lo+m)*width])
					}
				}
			}
		}
	}
}
