package cpu

import (
	"fmt"
	"math"
	"testing"

	"manta/kernels"
	"manta/kernels/ref"
)

var quantizedTypes = []kernels.DType{kernels.Q4_0, kernels.Q4_1, kernels.Q5_0, kernels.Q5_1, kernels.Q8_0, kernels.Q4_K, kernels.Q5_K, kernels.Q6_K}

// Integer products are near the definition's: a value's error is at most half a
// step of its block, so within a few 2⁻¹⁵ (or 2⁻⁷) of the row's size.
func TestIntegerProducts(t *testing.T) {
	for _, set := range sets() {
		for precision, tolerance := range map[Precision]float64{Int16: 3e-4, Int8: 4e-2} {
			for _, dtype := range quantizedTypes {
				for _, shape := range []struct{ m, rows, cols int }{{1, 66, 256}, {2, 64, 512}, {5, 130, 256}, {29, 64, 256}} {
					rng := newRand(4)
					weight := matrix(rng, dtype, shape.rows, shape.cols)
					x, scale := random(rng, shape.m*shape.cols), random(rng, shape.cols)
					x[3], x[shape.cols-1] = 40, 1e-20 // an outlier, and what it drowns
					clear(x[32:64])
					run := func(o kernels.Ops, normed bool) []float32 {
						a := kernels.Linear{Weight: weightOf(t, o, weight)}
						if normed {
							a.Norm = &kernels.Norm{Weight: vectorOf(t, o, scale), Eps: 1e-5}
						}
						y := tensor(t, o, shape.m, shape.rows, nil)
						o.Linear(y, tensor(t, o, shape.m, shape.cols, x), a)
						return get(t, o, y)
					}
					for _, normed := range []bool{false, true} {
						o := deviceOf(t, Options{Threads: 2, Precision: precision}, set)
						near(t, fmt.Sprint(set.name, precision, dtype, shape, normed), run(o, normed), run(ref.New(), normed), tolerance)
					}
				}
			}
		}
	}
}

// Products of bfloat16 with bfloat16 are the definition's on rounded activations,
// with and without a norm, on odd shapes.
func TestBrainProducts(t *testing.T) {
	for _, set := range sets() {
		if set.dots == nil {
			continue
		}
		for i, shape := range []struct{ m, rows, cols int }{{1, 66, 250}, {2, 64, 512}, {3, 128, 9}, {5, 130, 31}, {12, 1, 32}, {29, 64, 264}} {
			rng := newRand(uint64(i))
			weight := matrix(rng, kernels.BF16, shape.rows, shape.cols)
			x, scale := random(rng, shape.m*shape.cols), random(rng, shape.cols)
			rounded := make([]float32, len(x))
			for i, v := range x {
				rounded[i] = ref.Brain(ref.ToBrain(v))
			}
			run := func(o kernels.Ops, x []float32, n *kernels.Norm) []float32 {
				y := tensor(t, o, shape.m, shape.rows, nil)
				o.Linear(y, tensor(t, o, shape.m, shape.cols, x), kernels.Linear{Weight: weightOf(t, o, weight), Norm: n})
				return get(t, o, y)
			}
			o, definition := deviceOf(t, Options{Threads: 2, Precision: Int8}, set), ref.New()
			near(t, fmt.Sprint(set.name, shape), run(o, x, nil), run(definition, rounded, nil), 1e-5)
			norm := func(o kernels.Ops) *kernels.Norm { return &kernels.Norm{Weight: vectorOf(t, o, scale), Eps: 1e-5} }
			near(t, fmt.Sprint(set.name, shape, "norm"), run(o, x, norm(o)), run(definition, x, norm(definition)), 1e-2)
		}
	}
}

// The law of bits holds for products of records too, where two workers share the
// middle one of three groups as well; a NaN stays one.
func TestRecordsLawOfBits(t *testing.T) {
	types := append(quantizedTypes[:len(quantizedTypes):len(quantizedTypes)], kernels.BF16)
	for _, set := range sets() {
		if set.integers == nil {
			continue
		}
		for _, precision := range []Precision{Int16, Int8} {
			for i, dtype := range types {
				recordsLawOfBits(t, set, precision, dtype, i%2 == 1)
			}
		}
	}
}

func recordsLawOfBits(t *testing.T, set *kernelSet, precision Precision, dtype kernels.DType, gated bool) {
	const most, width, cols = 40, 3 * groupRows, 256
	rows := width
	if gated {
		rows *= 2
	}
	name := fmt.Sprintf("%s %d %s", set.name, precision, dtype)
	rng := newRand(5)
	weight := matrix(rng, dtype, rows, cols)
	x := random(rng, most*cols)
	x[7*cols+9] = float32(math.NaN())
	var want []float32
	for threads := 1; threads <= 3; threads++ {
		o := deviceOf(t, Options{Threads: threads, Precision: precision}, set)
		w := weightOf(t, o, weight)
		run := func(lo, hi int) []float32 {
			y := tensor(t, o, hi-lo, width, nil)
			o.Linear(y, tensor(t, o, hi-lo, cols, x[lo*cols:hi*cols]), kernels.Linear{Weight: w, Gated: gated, Activation: kernels.SiLU})
			return get(t, o, y)
		}
		if want == nil {
			for r := range most {
				want = append(want, run(r, r+1)...)
			}
		}
		for m := 1; m <= most; m++ {
			lo := (m * 7) % (most - m + 1)
			same(t, fmt.Sprintf("%s, %d threads, rows [%d,%d)", name, threads, lo, lo+m), run(lo, lo+m), want[lo*width:(lo+m)*width])
		}
	}
	if v := want[7*width]; v == v {
		t.Errorf("%s: a row with NaN gives %g", name, v)
	}
}
