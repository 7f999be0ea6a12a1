package cpu

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"manta/kernels"
	"manta/kernels/ref"
)

// device makes an Ops with the given kernels that ends with the test.
func device(t testing.TB, threads int, set *kernelSet) *Ops {
	t.Helper()
	return deviceOf(t, Options{Threads: threads}, set)
}

func deviceOf(t testing.TB, options Options, set *kernelSet) *Ops {
	t.Helper()
	o, err := newOps(options, set)
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

// sets are the kernels to test on this machine: of every instruction set it has.
func sets() []*kernelSet { return levels() }

func random(rng *rand.Rand, n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(rng.NormFloat64())
	}
	return x
}

// matrix makes random numbers of a type.
func matrix(rng *rand.Rand, t kernels.DType, rows, cols int) kernels.Matrix {
	stride := t.Bytes(cols)
	data := make([]byte, rows*stride)
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	m := kernels.Matrix{Name: fmt.Sprint(t), Type: t, Rows: rows, Cols: cols, Stride: stride, Data: data}
	half := func(at int, v float64) { binary.LittleEndian.PutUint16(data[at:], ref.ToHalf(float32(v))) }
	switch t {
	case kernels.F32:
		for i := 0; i < len(data); i += 4 {
			binary.LittleEndian.PutUint32(data[i:], math.Float32bits(float32(rng.NormFloat64())))
		}
	case kernels.F16:
		for i := 0; i < len(data); i += 2 {
			half(i, rng.NormFloat64())
		}
	case kernels.BF16:
		for i := 0; i < len(data); i += 2 {
			binary.LittleEndian.PutUint16(data[i:], ref.ToBrain(float32(rng.NormFloat64())))
		}
	default:
		for i := 0; i < len(data); i += t.BlockBytes() {
			scale := (0.5 + rng.Float64()) / 8
			switch t {
			case kernels.Q4_0, kernels.Q8_0, kernels.Q5_0:
				half(i, scale)
			case kernels.Q6_K:
				half(i+208, scale/256)
			case kernels.Q4_K, kernels.Q5_K:
				half(i, scale/32)
				half(i+2, scale/8)
			default:
				half(i, scale)
				half(i+2, -7*scale*rng.Float64())
			}
		}
	}
	return m
}

// tensor makes a tensor with the given values; fill NaN where x is nil.
func tensor(t testing.TB, o kernels.Ops, rows, cols int, x []float32) kernels.Tensor {
	t.Helper()
	made, err := o.Tensor(rows, cols)
	if err != nil {
		t.Fatal(err)
	}
	if x == nil {
		x = make([]float32, rows*cols)
		for i := range x {
			x[i] = float32(math.NaN())
		}
	}
	put(t, o, made, x)
	return made
}

func put(t testing.TB, o kernels.Ops, to kernels.Tensor, x []float32) {
	t.Helper()
	if err := o.Put(to, bytesOf(x)); err != nil {
		t.Fatal(err)
	}
}

func get(t testing.TB, o kernels.Ops, x kernels.Tensor) []float32 {
	t.Helper()
	y := make([]float32, x.Rows*x.Cols)
	if err := o.Get(bytesOf(y), x); err != nil {
		t.Fatal(err)
	}
	return y
}

// near fails unless got is within tolerance of want, relative to want's largest.
func near(t testing.TB, name string, got, want []float32, tolerance float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d values, want %d", name, len(got), len(want))
	}
	scale := 1e-3
	for _, v := range want {
		scale = max(scale, math.Abs(float64(v)))
	}
	for i := range got {
		if d := math.Abs(float64(got[i] - want[i])); !(d <= tolerance*scale) {
			t.Fatalf("%s: value %d is %g, want %g (largest %g)", name, i, got[i], want[i], scale)
		}
	}
}

// same fails unless got and want are equal bit for bit.
func same(t testing.TB, name string, got, want []float32) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d values, want %d", name, len(got), len(want))
	}
	for i := range got {
		if math.Float32bits(got[i]) != math.Float32bits(want[i]) {
			t.Fatalf("%s: value %d is %g, want %g bit for bit", name, i, got[i], want[i])
		}
	}
}

func vectorOf(t testing.TB, o kernels.Ops, x []float32) kernels.Vector {
	t.Helper()
	v, err := o.Vector(x)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func weightOf(t testing.TB, o kernels.Ops, parts ...kernels.Matrix) kernels.Weight {
	t.Helper()
	w, err := o.Weight(parts...)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 1)) }
