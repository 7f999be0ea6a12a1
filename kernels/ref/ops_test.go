package ref

import (
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"manta/kernels"
)

// floatMatrix gives random values as a matrix and as float64 rows.
func floatMatrix(r *rand.Rand, rows, cols int) (kernels.Matrix, [][]float64) {
	m := kernels.Matrix{Name: "w", Type: kernels.F32, Rows: rows, Cols: cols, Stride: 4 * cols}
	wide := make([][]float64, rows)
	for i := range wide {
		for range cols {
			v := float32(r.NormFloat64())
			m.Data = binary.LittleEndian.AppendUint32(m.Data, math.Float32bits(v))
			wide[i] = append(wide[i], float64(v))
		}
	}
	return m, wide
}

// floatTensor gives random values as a tensor and as float64 rows.
func floatTensor(t *testing.T, o *Ops, r *rand.Rand, rows, cols int) (kernels.Tensor, [][]float64) {
	t.Helper()
	x, err := o.Tensor(rows, cols)
	if err != nil {
		t.Fatal(err)
	}
	wide := make([][]float64, rows)
	for i := range wide {
		for j := range cols {
			row(x, i)[j] = float32(r.NormFloat64())
			wide[i] = append(wide[i], float64(row(x, i)[j]))
		}
	}
	return x, wide
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func near(t *testing.T, what string, got float32, want float64) {
	t.Helper()
	if d := math.Abs(float64(got) - want); !(d <= 2e-5*max(1, math.Abs(want))) {
		t.Fatalf("%s is %g, want %g", what, got, want)
	}
}

func rms(x []float64, w []float32, eps float64) []float64 {
	squares := 0.0
	for _, v := range x {
		squares += v * v
	}
	out := make([]float64, len(x))
	for i, v := range x {
		out[i] = v / math.Sqrt(squares/float64(len(x))+eps) * float64(w[i])
	}
	return out
}

func silu(x float64) float64 { return x / (1 + math.Exp(-x)) }

// Linear is the formula at its declaration, with every part of it in use.
func TestLinear(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	o := New()
	x, wide := floatTensor(t, o, r, 3, 7)
	top, wideTop := floatMatrix(r, 4, 7)
	bottom, wideBottom := floatMatrix(r, 6, 7)
	w, wideW := must(o.Weight(top, bottom)), append(wideTop, wideBottom...)
	bias := make([]float32, 10)
	norm := make([]float32, 7)
	for i := range bias {
		bias[i] = float32(r.NormFloat64())
	}
	for i := range norm {
		norm[i] = float32(r.NormFloat64())
	}
	product := func(row, i int, normed, biased bool) float64 {
		in, sum := wide[row], 0.0
		if normed {
			in = rms(in, norm, 1e-5)
		}
		for j, v := range in {
			sum += v * wideW[i][j]
		}
		if biased {
			sum += float64(bias[i])
		}
		return sum
	}
	n := &kernels.Norm{Kind: kernels.RMSNorm, Weight: must(o.Vector(norm)), Eps: 1e-5}
	b := must(o.Vector(bias))
	for _, c := range []struct {
		name string
		a    kernels.Linear
		cols int
		want func(row, i int) float64
	}{
		{"plain", kernels.Linear{}, 10, func(row, i int) float64 { return product(row, i, false, false) }},
		{"norm and bias", kernels.Linear{Norm: n, Bias: b}, 10, func(row, i int) float64 { return product(row, i, true, true) }},
		{"gated", kernels.Linear{Bias: b, Gated: true, Activation: kernels.SiLU}, 5, func(row, i int) float64 {
			return silu(product(row, i, false, true)) * product(row, i+5, false, true)
		}},
		{"accumulated", kernels.Linear{Accumulate: true}, 10, func(row, i int) float64 { return 2 + product(row, i, false, false) }},
		{"capped", kernels.Linear{Softcap: 3}, 10, func(row, i int) float64 { return 3 * math.Tanh(product(row, i, false, false)/3) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			out := must(o.Tensor(3, c.cols))
			for i := range values(out) {
				values(out)[i] = 2
			}
			c.a.Weight = w
			o.Linear(out, x, c.a)
			for r := range 3 {
				for i, v := range row(out, r) {
					near(t, "an output", v, c.want(r, i))
				}
			}
		})
	}
}

// The nonlinearities at a few points, from their papers' definitions.
func TestActivate(t *testing.T) {
	for _, x := range []float64{-30, -2, -0.5, 0, 0.1, 1, 4, 30} {
		near(t, "SiLU", Activate(kernels.SiLU, float32(x)), silu(float64(float32(x))))
		near(t, "GELU", Activate(kernels.GELU, float32(x)), float64(float32(x))*math.Erfc(-float64(float32(x))/math.Sqrt2)/2)
		inner := math.Sqrt(2/math.Pi) * (x + 0.044715*x*x*x)
		near(t, "GELUTanh", Activate(kernels.GELUTanh, float32(x)), x/(1+math.Exp(-2*inner)))
		near(t, "Identity", Activate(kernels.Identity, float32(x)), x)
	}
}

// Norms over rows of odd width; out may be x.
func TestNorms(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	o := New()
	x, wide := floatTensor(t, o, r, 4, 13)
	w, b := make([]float32, 13), make([]float32, 13)
	for i := range w {
		w[i], b[i] = float32(r.NormFloat64()), float32(r.NormFloat64())
	}
	y, _ := floatTensor(t, o, r, 4, 13)
	copy(values(y), values(x))
	o.Norm(y, y, kernels.Norm{Kind: kernels.RMSNorm, Weight: must(o.Vector(w)), Eps: 1e-6})
	z := must(o.Tensor(4, 13))
	o.Norm(z, x, kernels.Norm{Kind: kernels.LayerNorm, Weight: must(o.Vector(w)), Bias: must(o.Vector(b)), Eps: 1e-5})
	for i, in := range wide {
		mean, variance := 0.0, 0.0
		for _, v := range in {
			mean += v / 13
		}
		for _, v := range in {
			variance += (v - mean) * (v - mean) / 13
		}
		want := rms(in, w, 1e-6)
		for j := range in {
			near(t, "RMSNorm", row(y, i)[j], want[j])
			near(t, "LayerNorm", row(z, i)[j], (in[j]-mean)/math.Sqrt(variance+1e-5)*float64(w[j])+float64(b[j]))
		}
	}
	before := slices.Clone(values(x))
	o.Add(x, z, nil)
	for i, v := range values(x) {
		near(t, "Add", v, float64(before[i])+float64(values(z)[i]))
	}
}

// A token is the batch's, or what was sampled or fed last for a seat, or the last
// of a seat's prompt and output.
func TestEmbed(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	o := New()
	table, wide := floatMatrix(r, 20, 5)
	positions, widePositions := floatMatrix(r, 8, 5)
	o.Seat(0, []int32{3, 4}, nil)
	o.Seat(1, []int32{3}, []int32{5, 6})
	o.Seat(2, []int32{3}, nil)
	o.Feed(2, 7)
	o.Seat(3, []int32{1}, nil)
	logits := must(o.Tensor(1, 20))
	row(logits, 0)[11] = 9
	o.Sample(logits, []kernels.SampleRow{{Seat: 3, Target: -1, RepetitionPenalty: 1, TopLogprobs: -1}})
	b := &kernels.Batch{Tokens: []int32{2, -1, -2, -3, -4}, Positions: []int32{0, 1, 2, 3, 4}, Spans: []kernels.Span{{Count: 5}}, Wanted: []int32{1, 4}}
	if err := o.Begin(b); err != nil {
		t.Fatal(err)
	}
	out := must(o.Tensor(5, 5))
	o.Embed(out, kernels.Embed{Table: must(o.Weight(table)), Scale: 3, Positions: must(o.Weight(positions))})
	for i, token := range []int{2, 4, 6, 7, 11} {
		for j, v := range row(out, i) {
			near(t, "an embedding", v, 3*wide[token][j]+widePositions[i][j])
		}
	}
	top := must(o.Tensor(2, 5))
	o.Gather(top, out)
	if !slices.Equal(values(top), append(slices.Clone(row(out, 1)), row(out, 4)...)) {
		t.Error("gathered other rows than those wanted")
	}
}

// Each row goes through its best experts alone, weighed by the router's softmax.
func TestExperts(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 4))
	o := New()
	const hidden, inner, count = 6, 5, 4
	x, wide := floatTensor(t, o, r, 9, hidden)
	router, wideRouter := floatMatrix(r, count, hidden)
	a := kernels.Experts{Router: must(o.Weight(router)), TopK: 2, Activation: kernels.SiLU}
	var gateUp, down [][][]float64
	for range count {
		g, wideG := floatMatrix(r, 2*inner, hidden)
		d, wideD := floatMatrix(r, hidden, inner)
		a.GateUp, a.Down = append(a.GateUp, must(o.Weight(g))), append(a.Down, must(o.Weight(d)))
		gateUp, down = append(gateUp, wideG), append(down, wideD)
	}
	dot := func(x, y []float64) (sum float64) {
		for i := range x {
			sum += x[i] * y[i]
		}
		return
	}
	for _, renormalise := range []bool{false, true} {
		a.Renormalise = renormalise
		out := must(o.Tensor(9, hidden))
		o.Experts(out, x, a)
		for i, in := range wide {
			p := make([]float64, count)
			sum := 0.0
			for e := range p {
				p[e] = math.Exp(dot(in, wideRouter[e]))
				sum += p[e]
			}
			order := []int{0, 1, 2, 3}
			slices.SortFunc(order, func(a, b int) int {
				if p[a] > p[b] {
					return -1
				}
				return 1
			})
			if renormalise {
				sum = p[order[0]] + p[order[1]]
			}
			want := make([]float64, hidden)
			for _, e := range order[:2] {
				h := make([]float64, inner)
				for k := range h {
					h[k] = silu(dot(in, gateUp[e][k])) * dot(in, gateUp[e][k+inner])
				}
				for j := range want {
					want[j] += p[e] / sum * dot(h, down[e][j])
				}
			}
			for j := range want {
				near(t, "an output", row(out, i)[j], want[j])
			}
		}
	}
}

// A batch whose parts contradict each other is refused with the part's name.
func TestBeginRefuses(t *testing.T) {
	blocks := [][]int32{{0}}
	for _, c := range []struct {
		name string
		b    kernels.Batch
	}{
		{"positions missing", kernels.Batch{Tokens: []int32{1}, Spans: []kernels.Span{{Count: 1, Blocks: blocks}}}},
		{"a gap", kernels.Batch{Tokens: []int32{1, 2}, Positions: []int32{0, 0}, Spans: []kernels.Span{{Row: 1, Count: 1, Blocks: blocks}}}},
		{"rows without a span", kernels.Batch{Tokens: []int32{1, 2}, Positions: []int32{0, 0}, Spans: []kernels.Span{{Count: 1, Blocks: blocks}}}},
		{"a span past the end", kernels.Batch{Tokens: []int32{1}, Positions: []int32{0}, Spans: []kernels.Span{{Count: 2, Blocks: blocks}}}},
		{"another position", kernels.Batch{Tokens: []int32{1}, Positions: []int32{3}, Spans: []kernels.Span{{Count: 1, Blocks: blocks}}}},
		{"too few blocks", kernels.Batch{Tokens: []int32{1}, Positions: []int32{16}, Spans: []kernels.Span{{Start: 16, Count: 1, Blocks: blocks}}}},
		{"a wanted row past the end", kernels.Batch{Tokens: []int32{1}, Positions: []int32{0}, Spans: []kernels.Span{{Count: 1, Blocks: blocks}}, Wanted: []int32{1}}},
		{"wanted rows out of order", kernels.Batch{Tokens: []int32{1, 2}, Positions: []int32{0, 1}, Spans: []kernels.Span{{Count: 2, Blocks: blocks}}, Wanted: []int32{1, 0}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := New().Begin(&c.b); !errors.Is(err, ErrShape) {
				t.Errorf("got %v, want %v", err, ErrShape)
			}
		})
	}
}

// What is put comes back, bit for bit, and other sizes are refused.
func TestPutGet(t *testing.T) {
	o := New()
	x := must(o.Tensor(2, 3)).Top(1)
	src := []byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}
	dst := make([]byte, x.Rows*o.RowBytes(x))
	if err := errors.Join(o.Put(x, src), o.Get(dst, x)); err != nil || !slices.Equal(src, dst) {
		t.Errorf("put %v, got %v (%v)", src, dst, err)
	}
	if o.Put(x, src[:8]) == nil || o.Get(dst[:8], x) == nil {
		t.Error("a short buffer passed")
	}
}
