//go:build cuda

package cuda

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"manta/kernels"
	"manta/kernels/ref"
)

type linearCase struct {
	name           string
	width, columns int
	norm           string // "", "rms", "layer"
	bias, gated    bool
	accumulate     bool
	activation     kernels.Activation
	softcap        float32
	narrow         bool // x is what an activation left behind
	rows           []int
}

var linearCases = []linearCase{
	{name: "one block", width: 8, columns: 32, rows: []int{1, 8, 9}},
	{name: "odd everything", width: 37, columns: 45, bias: true, rows: []int{1, 2, 3, 5, 7, 17, 33}},
	{name: "rms, several segments", width: 200, columns: 2500, norm: "rms", rows: []int{1, 2, 4, 6, 8, 9, 16, 31, 64, 65, 129}},
	{name: "rms, two or three units a block", width: 2500, columns: 1088, norm: "rms", rows: []int{1, 2, 9}},
	{name: "rms, gate, ten units a block", width: 2 * 10560, columns: 192, norm: "rms", gated: true, activation: kernels.SiLU, rows: []int{1, 3, 20}},
	{name: "rms, gate", width: 176, columns: 576, norm: "rms", gated: true, activation: kernels.SiLU, rows: []int{1, 4, 5, 8, 15, 40, 130}},
	{name: "gate of no whole blocks", width: 2 * 45, columns: 100, norm: "rms", gated: true, bias: true, activation: kernels.GELUTanh, rows: []int{1, 3, 12, 70}},
	{name: "layer norm, gelu", width: 96, columns: 130, norm: "layer", bias: true, activation: kernels.GELU, rows: []int{1, 3, 11, 66}},
	{name: "residual", width: 576, columns: 1536, accumulate: true, rows: []int{1, 3, 8, 33, 100}},
	{name: "residual of an activation", width: 1000, columns: 1088, accumulate: true, narrow: true, rows: []int{1, 3, 8, 33, 128, 200}},
	{name: "part of a sum of an activation", width: 1000, columns: 1088, narrow: true, rows: []int{1, 3, 9}},
	{name: "an activation of odd width", width: 40, columns: 100, narrow: true, rows: []int{1, 5, 20}},
	{name: "deep", width: 24, columns: 14336, accumulate: true, narrow: true, rows: []int{1, 2, 4, 8, 20}},
	{name: "tiles of 192 rows", width: 4096, columns: 512, accumulate: true, narrow: true, rows: []int{1, 9, 570}},
	{name: "tiles of 256 rows", width: 4096, columns: 64, norm: "rms", gated: true, activation: kernels.SiLU, rows: []int{1, 9, 1000}},
	{name: "logits, capped", width: 4099, columns: 576, norm: "rms", softcap: 3, rows: []int{1, 7, 48}},
}

// A product agrees with ref, every output is written, and a row's bits are the
// same whatever rows stand beside it (DESIGN.md, the law of bits).
func TestLinearAgreesWithReferenceAndKeepsBits(t *testing.T) {
	for _, c := range computeTypes {
		o, plain := open(t, c.compute), ref.New()
		for _, l := range linearCases {
			t.Run(fmt.Sprintf("%s/%s", c.compute, l.name), func(t *testing.T) {
				r := rand.New(rand.NewPCG(1, uint64(l.width)))
				most := l.rows[len(l.rows)-1]
				w, x := matrix(r, l.width, l.columns, 0.05), random(r, most*l.columns, 1)
				outputs := l.width
				if l.gated {
					outputs /= 2
				}
				residual := random(r, most*outputs, 1)
				args := func(o kernels.Ops) kernels.Linear {
					stack := func(first, second kernels.Matrix) (kernels.Weight, error) { return o.Weight(first, second) }
					if l.gated {
						stack = o.Pair
					}
					weight, err := stack(must(w.SliceRows(0, l.width/2)), must(w.SliceRows(l.width/2, l.width)))
					if err != nil {
						t.Fatal(err)
					}
					r := rand.New(rand.NewPCG(2, 2))
					a := kernels.Linear{Weight: weight, Activation: l.activation, Gated: l.gated, Accumulate: l.accumulate, Softcap: l.softcap}
					vector := func(n int, around float32) kernels.Vector {
						v := random(r, n, 0.3)
						for i := range v {
							v[i] += around
						}
						return must(o.Vector(v))
					}
					if l.bias {
						a.Bias = vector(l.width, 0)
					}
					switch l.norm {
					case "rms":
						a.Norm = &kernels.Norm{Kind: kernels.RMSNorm, Weight: vector(l.columns, 1), Eps: 1e-5}
					case "layer":
						a.Norm = &kernels.Norm{Kind: kernels.LayerNorm, Weight: vector(l.columns, 1), Bias: vector(l.columns, 0), Eps: 1e-5}
					}
					return a
				}
				run := func(o kernels.Ops, a kernels.Linear, x []float32, rows int) []float32 {
					in, out := tensor(t, o, rows, l.columns, x[:rows*l.columns]), tensor(t, o, rows, outputs, residual[:rows*outputs])
					if !l.accumulate {
						poison(t, o, out)
					}
					step(t, o, rowsOnly(rows), func() {
						if l.narrow {
							identity(t, o, in)
						}
						o.Linear(out, in, a)
					})
					return read(t, o, out)
				}
				if l.narrow { // what the reference multiplies is what the device rounds to
					for i := range x {
						x[i] = ref.Brain(ref.ToBrain(x[i]))
					}
				}
				want := run(plain, args(plain), x, most)
				a := args(o)
				got := run(o, a, x, most)
				if d := distance(got, want); d > c.tolerance {
					t.Fatalf("%d rows: error %.2e, want at most %.0e", most, d, c.tolerance)
				}
				for _, rows := range l.rows {
					sameBits(t, fmt.Sprintf("%d rows", rows), run(o, a, x, rows), got[:rows*outputs])
				}
			})
		}
	}
}

// identity turns x into a tensor of the compute type, as an activation would.
func identity(t testing.TB, o kernels.Ops, x kernels.Tensor) {
	device, ok := o.(*Ops)
	if !ok || !device.half {
		return
	}
	b := bufferOf(x)
	n := normOf(x, nil)
	n.out, n.outStride = b.at, int32(x.Cols)
	copied := device.need("identity", 4*x.Rows*x.Cols)
	n.out = copied.at
	device.launch("prepare"+device.suffix, x.Rows, 1, 1, 512, 0, bytesOf(&n))
	b.at, b.narrow = copied.at, true
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// Every type that a file may store gives the weights that ref reads from it.
func TestWeightsLoadAsTheReferenceReadsThem(t *testing.T) {
	o := open(t, kernels.F32)
	r := rand.New(rand.NewPCG(3, 3))
	for kind := kernels.F32; kind <= kernels.Q6_K; kind++ {
		t.Run(kind.String(), func(t *testing.T) {
			const rows, cols = 13, 512
			m := kernels.Matrix{Name: kind.String(), Type: kind, Rows: rows, Cols: cols, Stride: kind.Bytes(cols) + 16}
			m.Data = make([]byte, rows*m.Stride)
			for i := range m.Data {
				m.Data[i] = byte(r.Uint32()) & 0x3f // no exponent that overflows
			}
			w, err := o.Weight(m)
			if err != nil {
				t.Fatal(err)
			}
			out := must(o.Tensor(rows, cols))
			b := rowsOnly(rows)
			for i := range b.Tokens {
				b.Tokens[i] = int32(i)
			}
			step(t, o, b, func() { o.Embed(out, kernels.Embed{Table: w, Scale: 1}) })
			want := make([]float32, rows*cols)
			for i := range rows {
				ref.Dequantize(m, i, want[i*cols:])
			}
			sameBits(t, "weights", read(t, o, out), want)
		})
	}
}

// Embed, Norm, Add and Gather agree with ref.
func TestRowsAgreeWithReference(t *testing.T) {
	const rows, cols, vocabulary = 21, 203, 331
	for _, c := range computeTypes {
		t.Run(c.compute.String(), func(t *testing.T) {
			run := func(o kernels.Ops) []float32 {
				r := rand.New(rand.NewPCG(4, 4))
				table, positions := must(o.Weight(matrix(r, vocabulary, cols, 1))), must(o.Weight(matrix(r, 64, cols, 1)))
				rms := kernels.Norm{Kind: kernels.RMSNorm, Weight: must(o.Vector(random(r, cols, 1))), Eps: 1e-6}
				layer := kernels.Norm{Kind: kernels.LayerNorm, Weight: must(o.Vector(random(r, cols, 1))), Bias: must(o.Vector(random(r, cols, 1))), Eps: 1e-6}
				x, y, top := must(o.Tensor(rows, cols)), must(o.Tensor(rows, cols)), must(o.Tensor(rows, cols))
				poison(t, o, x)
				poison(t, o, y)
				b := rowsOnly(rows, 0, 3, 7, 20)
				for i := range b.Tokens {
					b.Tokens[i] = r.Int32N(vocabulary)
				}
				step(t, o, b, func() {
					o.Embed(x, kernels.Embed{Table: table, Scale: 1.5, Positions: positions})
					o.Norm(y, x, rms)
					o.Add(x, y, &layer)
					o.Add(x, y, nil)
					o.Norm(x, x, layer)
					o.Gather(top, x)
				})
				return read(t, o, top.Top(4))
			}
			if d := distance(run(open(t, c.compute)), run(ref.New())); d > max(c.tolerance/100, 1e-5) {
				t.Fatalf("error %.2e", d)
			}
		})
	}
}

// The expert mix agrees with ref, and a row's bits do not depend on the others.
func TestExpertsAgreeWithReferenceAndKeepBits(t *testing.T) {
	cases := []struct {
		name                                string
		columns, hidden, experts, topK, row int
		renormalise, accumulate             bool
	}{
		{"mixtral", 192, 320, 8, 2, 70, true, true},
		{"many small experts", 130, 52, 33, 6, 40, false, false},
		{"one row", 64, 64, 4, 2, 1, true, false},
	}
	for _, c := range computeTypes {
		o := open(t, c.compute)
		for _, e := range cases {
			t.Run(fmt.Sprintf("%s/%s", c.compute, e.name), func(t *testing.T) {
				run := func(o kernels.Ops, rows int) []float32 {
					r := rand.New(rand.NewPCG(5, 5))
					a := kernels.Experts{TopK: e.topK, Renormalise: e.renormalise, Accumulate: e.accumulate, Activation: kernels.SiLU,
						Norm:   &kernels.Norm{Kind: kernels.RMSNorm, Weight: must(o.Vector(random(r, e.columns, 1))), Eps: 1e-5},
						Router: must(o.Weight(matrix(r, e.experts, e.columns, 0.5)))}
					for range e.experts {
						a.GateUp = append(a.GateUp, must(o.Pair(matrix(r, e.hidden, e.columns, 0.1), matrix(r, e.hidden, e.columns, 0.1))))
						a.Down = append(a.Down, must(o.Weight(matrix(r, e.columns, e.hidden, 0.1))))
					}
					v := random(r, e.row*e.columns, 1)
					x := tensor(t, o, rows, e.columns, v[:rows*e.columns])
					out := x
					if !e.accumulate {
						out = must(o.Tensor(rows, e.columns))
						poison(t, o, out)
					}
					step(t, o, rowsOnly(rows), func() { o.Experts(out, x, a) })
					return read(t, o, out)
				}
				want, got := run(ref.New(), e.row), run(o, e.row)
				if d := distance(got, want); d > 2*c.tolerance {
					t.Fatalf("error %.2e", d)
				}
				for _, rows := range []int{1, (e.row + 1) / 2} {
					sameBits(t, fmt.Sprintf("%d rows", rows), run(o, rows), got[:rows*e.columns])
				}
			})
		}
	}
}
