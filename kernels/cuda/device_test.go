//go:build cuda

package cuda

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"testing"

	"manta/kernels"
	"manta/kernels/ref"
)

// computeTypes with the relative error (L2) that their rounding may bring: float32
// sums of other order; operands of 8 and 11 bits.
var computeTypes = []struct {
	compute   kernels.DType
	tolerance float64
}{{kernels.F32, 2e-5}, {kernels.BF16, 6e-3}, {kernels.F16, 8e-4}}

// open gives device 0. A machine without one fails: these tests are for machines
// that have a GPU, and the plain test run does not build them.
func open(t testing.TB, compute kernels.DType) *Ops {
	t.Helper()
	options := Options{Compute: compute}
	if folder := os.Getenv("MANTA_CUDA_IMAGES"); folder != "" {
		options.Images = os.DirFS(folder)
	}
	o, err := New(0, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := o.Close(); err != nil {
			t.Error(err)
		}
	})
	return o.(*Ops)
}

// Kernels of two Ops of one process stand beside each other on a device, so neither is
// alone on it as long as both are open.
func TestAloneOnTheDevice(t *testing.T) {
	first := open(t, kernels.BF16)
	second, err := New(0, Options{Compute: kernels.BF16})
	if err != nil {
		t.Fatal(err)
	}
	if first.alone() || second.(*Ops).alone() {
		t.Error("two on one device, and one of them says that it is alone")
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	if !first.alone() {
		t.Error("the other is closed, and this one does not say that it is alone")
	}
}

func random(r *rand.Rand, n int, scale float32) []float32 {
	v := make([]float32, n)
	for i := range v {
		v[i] = scale * float32(r.NormFloat64())
	}
	return v
}

// matrix gives random values as bfloat16, so that every compute type but F16 holds them.
func matrix(r *rand.Rand, rows, cols int, scale float32) kernels.Matrix {
	m := kernels.Matrix{Name: fmt.Sprintf("random %d×%d", rows, cols), Type: kernels.BF16, Rows: rows, Cols: cols, Stride: 2 * cols, Data: make([]byte, 2*rows*cols)}
	for i := range rows * cols {
		binary.LittleEndian.PutUint16(m.Data[2*i:], ref.ToBrain(scale*float32(r.NormFloat64())))
	}
	return m
}

func floatBytes(v []float32) []byte {
	b := make([]byte, 4*len(v))
	for i, f := range v {
		binary.LittleEndian.PutUint32(b[4*i:], math.Float32bits(f))
	}
	return b
}

// tensor makes a tensor on o that holds v.
func tensor(t testing.TB, o kernels.Ops, rows, cols int, v []float32) kernels.Tensor {
	t.Helper()
	x, err := o.Tensor(rows, cols)
	if err == nil {
		err = o.Put(x, floatBytes(v))
	}
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// poison fills a tensor with not-a-number.
func poison(t testing.TB, o kernels.Ops, x kernels.Tensor) {
	t.Helper()
	v := make([]float32, x.Rows*x.Cols)
	for i := range v {
		v[i] = float32(math.NaN())
	}
	if err := o.Put(x, floatBytes(v)); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, o kernels.Ops, x kernels.Tensor) []float32 {
	t.Helper()
	b := make([]byte, 4*x.Rows*x.Cols)
	if err := o.Get(b, x); err != nil {
		t.Fatal(err)
	}
	v := make([]float32, x.Rows*x.Cols)
	for i := range v {
		v[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
	}
	return v
}

// distance is ‖got - want‖ / ‖want‖; not-a-number counts as infinite.
func distance(got, want []float32) float64 {
	var d, n float64
	for i := range want {
		d += math.Pow(float64(got[i])-float64(want[i]), 2)
		n += float64(want[i]) * float64(want[i])
	}
	if math.IsNaN(d) {
		return math.Inf(1)
	}
	return math.Sqrt(d / max(n, 1e-30))
}

func sameBits(t testing.TB, what string, got, want []float32) {
	t.Helper()
	for i := range want {
		if math.Float32bits(got[i]) != math.Float32bits(want[i]) {
			t.Fatalf("%s: value %d is %v (%#x), want the bits of %v (%#x)", what, i, got[i], math.Float32bits(got[i]), want[i], math.Float32bits(want[i]))
		}
	}
}

// rowsOnly is a batch of n rows of one sequence, without blocks.
func rowsOnly(n int, wanted ...int32) *kernels.Batch {
	b := &kernels.Batch{Tokens: make([]int32, n), Positions: make([]int32, n), Wanted: wanted, Spans: []kernels.Span{{Count: n}}}
	for i := range n {
		b.Positions[i] = int32(i)
	}
	return b
}

// step runs f as one step.
func step(t testing.TB, o kernels.Ops, b *kernels.Batch, f func()) []kernels.Sampled {
	t.Helper()
	if err := o.Begin(b); err != nil {
		t.Fatal(err)
	}
	f()
	sampled, err := o.End().Wait()
	if err != nil {
		t.Fatal(err)
	}
	return sampled
}
