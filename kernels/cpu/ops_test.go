package cpu

import (
	"fmt"
	"math"
	"testing"

	"manta/kernels"
	"manta/kernels/ref"
)

// The small operations are the definition's.
func TestNormAddEmbedGather(t *testing.T) {
	const rows, cols = 19, 37
	rng := newRand(1)
	x, y, w, b := random(rng, rows*cols), random(rng, rows*cols), random(rng, cols), random(rng, cols)
	table, places := matrix(rng, kernels.BF16, 50, cols), matrix(rng, kernels.F32, 64, cols)
	batch := &kernels.Batch{Wanted: []int32{0, 7, 18}}
	for r := range rows {
		batch.Tokens = append(batch.Tokens, int32(r*5%50))
		batch.Positions = append(batch.Positions, int32(r+3))
	}
	batch.Tokens[4] = -1 - 2 // what seat 2 sampled last
	batch.Spans = []kernels.Span{{Count: rows, Start: 3}}
	operations := []struct {
		name string
		run  func(o kernels.Ops) []float32
	}{
		{"rms norm", func(o kernels.Ops) []float32 {
			out := tensor(t, o, rows, cols, nil)
			o.Norm(out, tensor(t, o, rows, cols, x), kernels.Norm{Weight: vectorOf(t, o, w), Eps: 1e-6})
			return get(t, o, out)
		}},
		{"layer norm in place", func(o kernels.Ops) []float32 {
			out := tensor(t, o, rows, cols, x)
			o.Norm(out, out, kernels.Norm{Kind: kernels.LayerNorm, Weight: vectorOf(t, o, w), Bias: vectorOf(t, o, b), Eps: 1e-6})
			return get(t, o, out)
		}},
		{"add", func(o kernels.Ops) []float32 {
			out := tensor(t, o, rows, cols, x)
			o.Add(out, tensor(t, o, rows, cols, y), nil)
			return get(t, o, out)
		}},
		{"add norm", func(o kernels.Ops) []float32 {
			out := tensor(t, o, rows, cols, x)
			o.Add(out, tensor(t, o, rows, cols, y), &kernels.Norm{Weight: vectorOf(t, o, w), Eps: 1e-6})
			return get(t, o, out)
		}},
		{"embed, positions", func(o kernels.Ops) []float32 {
			o.Seat(2, []int32{9, 31}, nil)
			if err := o.Begin(batch); err != nil {
				t.Fatal(err)
			}
			out := tensor(t, o, rows, cols, nil)
			o.Embed(out, kernels.Embed{Table: weightOf(t, o, table), Scale: 3, Positions: weightOf(t, o, places)})
			return get(t, o, out)
		}},
		{"gather", func(o kernels.Ops) []float32 {
			if err := o.Begin(batch); err != nil {
				t.Fatal(err)
			}
			out := tensor(t, o, rows, cols, nil)
			o.Gather(out, tensor(t, o, rows, cols, x))
			return get(t, o, out.Top(3))
		}},
	}
	for _, set := range sets() {
		for _, operation := range operations {
			near(t, set.name+"/"+operation.name, operation.run(device(t, 2, set)), operation.run(ref.New()), 1e-6)
		}
	}
}

// Experts are the definition's, whether or not their halves are whole groups, and
// a row's do not depend on its neighbours.
func TestExpertsAreRefs(t *testing.T) {
	for _, set := range sets() {
		for _, width := range []int{64, 40} {
			const rows, cols, experts = 13, 96, 5
			rng := newRand(6)
			x, start, w := random(rng, rows*cols), random(rng, rows*cols), random(rng, cols)
			router := matrix(rng, kernels.F32, experts, cols)
			var gates, downs []kernels.Matrix
			for range experts {
				gates, downs = append(gates, matrix(rng, kernels.Q8_0, 2*width, cols)), append(downs, matrix(rng, kernels.BF16, cols, width))
			}
			run := func(o kernels.Ops, lo, hi int) []float32 {
				a := kernels.Experts{Norm: &kernels.Norm{Weight: vectorOf(t, o, w), Eps: 1e-6}, Router: weightOf(t, o, router), TopK: 2, Renormalise: true, Activation: kernels.SiLU, Accumulate: true}
				for e := range experts {
					a.GateUp, a.Down = append(a.GateUp, weightOf(t, o, gates[e])), append(a.Down, weightOf(t, o, downs[e]))
				}
				out := tensor(t, o, hi-lo, cols, start[lo*cols:hi*cols])
				o.Experts(out, tensor(t, o, hi-lo, cols, x[lo*cols:hi*cols]), a)
				return get(t, o, out)
			}
			name := fmt.Sprintf("%s/width %d", set.name, width)
			whole := run(device(t, 2, set), 0, rows)
			near(t, name, whole, run(ref.New(), 0, rows), 1e-5)
			for r := range rows {
				same(t, fmt.Sprint(name, " row ", r), run(device(t, 2, set), r, r+1), whole[r*cols:(r+1)*cols])
			}
		}
	}
}

// Sampling is the definition's, greedy too: the first of equal logits, and no
// token where nothing may be drawn.
func TestSampleIsRefs(t *testing.T) {
	const vocabulary = 5000
	rng := newRand(3)
	logits := random(rng, 6*vocabulary)
	logits[3*vocabulary+4100], logits[3*vocabulary+77], logits[3*vocabulary+78] = 9, 9, 9
	for i := range vocabulary {
		logits[4*vocabulary+i] = float32(math.Inf(-1))
		logits[5*vocabulary+i] = float32(math.NaN())
	}
	logits[5*vocabulary+3000] = -7
	plain := kernels.SampleRow{Seat: 1, Target: -1, TopLogprobs: -1, TopP: 1, RepetitionPenalty: 1}
	var rows []kernels.SampleRow
	for i := range int32(6) {
		r := plain
		r.Row = i
		rows = append(rows, r)
	}
	warm := plain
	warm.Seat, warm.Temperature, warm.TopK, warm.TopP, warm.Seed, warm.PresencePenalty, warm.TopLogprobs = 2, 0.8, 40, 0.9, 12, 0.5, 3
	scored := plain
	scored.Target, scored.TopLogprobs, scored.Seat = 17, 0, -1
	rows = append(rows, warm, scored)
	run := func(o kernels.Ops) []kernels.Sampled {
		o.Seat(1, []int32{1, 2}, []int32{3}) // a seat has one row in a step
		o.Seat(2, []int32{1, 2}, []int32{2199, 3})
		if err := o.Begin(&kernels.Batch{}); err != nil {
			t.Fatal(err)
		}
		o.Sample(tensor(t, o, 6, vocabulary, logits), rows)
		s, err := o.End().Wait()
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	want := run(ref.New())
	for _, set := range sets() {
		got := run(device(t, 2, set))
		for i := range want {
			if fmt.Sprint(got[i]) != fmt.Sprint(want[i]) {
				t.Errorf("%s: row %d is %v, want %v", set.name, i, got[i], want[i])
			}
		}
	}
}

// A batch that does not fit, a cache of a strange type and a torn matrix are
// refused.
func TestRefusals(t *testing.T) {
	o := device(t, 1, fastest())
	for name, b := range map[string]*kernels.Batch{
		"rows without span": {Tokens: []int32{1}, Positions: []int32{0}},
		"wrong position":    {Tokens: []int32{1}, Positions: []int32{2}, Spans: []kernels.Span{{Count: 1}}},
		"too few blocks":    {Tokens: []int32{1}, Positions: []int32{16}, Spans: []kernels.Span{{Count: 1, Start: 16, Blocks: [][]int32{{3}}}}},
		"wanted outside":    {Tokens: []int32{1}, Positions: []int32{0}, Spans: []kernels.Span{{Count: 1}}, Wanted: []int32{1}},
	} {
		if err := o.Begin(b); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := o.Cache(kernels.CacheSpec{Type: kernels.Q8_0}); err == nil {
		t.Error("cache of Q8_0: no error")
	}
	torn := matrix(newRand(1), kernels.Q4_1, 4, 64)
	torn.Data = torn.Data[:len(torn.Data)-1]
	if _, err := o.Weight(torn); err == nil {
		t.Error("torn matrix: no error")
	}
}

// The functions of single values are the definition's, at the ends too, and a NaN
// stays one.
func TestActivations(t *testing.T) {
	rng := newRand(2)
	var x []float32
	for i := -1200; i <= 1200; i++ {
		x = append(x, float32(i)/40, float32(rng.NormFloat64()))
	}
	x = append(x, 1e-12, -1e-12, 200, -200, 1e9, -1e9)
	last := len(x)
	x = append(x, float32(math.NaN()))
	for _, set := range sets() {
		for _, f := range []struct {
			name string
			run  func(dst, x *float32, n uintptr)
			want func(float32) float32
		}{
			{"silu", set.siluTo, func(v float32) float32 { return ref.Activate(kernels.SiLU, v) }},
			{"gelu", set.geluTo, func(v float32) float32 { return ref.Activate(kernels.GELU, v) }},
			{"gelu tanh", set.geluTanhTo, func(v float32) float32 { return ref.Activate(kernels.GELUTanh, v) }},
			{"softcap", func(dst, x *float32, n uintptr) { set.softcapTo(dst, x, 30, 2./30, n) }, func(v float32) float32 { return ref.Softcap(30, v) }},
		} {
			y := make([]float32, len(x))
			f.run(&y[0], &x[0], uintptr(len(x)))
			for i, v := range x[:last] {
				want := f.want(v)
				if d := math.Abs(float64(y[i] - want)); d > 1e-6*max(1, math.Abs(float64(want))) && !(f.name == "softcap" && d < 4e-6) {
					t.Fatalf("%s %s: f(%g) = %g, want %g", set.name, f.name, v, y[i], want)
				}
			}
			if y[last] == y[last] {
				t.Errorf("%s %s: f(NaN) = %g", set.name, f.name, y[last])
			}
		}
		scores := []float32{3, -50, -200, 1, float32(math.NaN())}
		sum := set.expSum(&scores[0], 4, 3)
		want := 1 + math.Exp(-53) + math.Exp(-2)
		if math.Abs(float64(sum)-want) > 1e-6 || scores[2] != 0 {
			t.Errorf("%s: exponentials add to %g with %g, want %g", set.name, sum, scores[2], want)
		}
		if sum := set.expSum(&scores[0], 5, 3); sum == sum {
			t.Errorf("%s: a NaN score adds up to %g", set.name, sum)
		}
	}
}
