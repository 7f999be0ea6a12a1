package ref

import (
	"math"
	"math/rand/v2"
	"slices"
	"sort"
	"testing"

	"manta/kernels"
)

// plain is a row that draws from the model's own distribution.
func plain() kernels.SampleRow {
	return kernels.SampleRow{Target: -1, Temperature: 1, TopP: 1, RepetitionPenalty: 1, TopLogprobs: -1}
}

func randomLogits(r *rand.Rand, n int, spread float64) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(r.NormFloat64() * spread)
	}
	return x
}

// keptBySorting is the definition of min_p, top_k and top_p in float64: sort
// everything, then cut.
func keptBySorting(logits []float32, row kernels.SampleRow) []int32 {
	type entry struct {
		token int32
		p     float64
	}
	list := make([]entry, len(logits))
	best := math.Inf(-1)
	for t, v := range logits {
		best = max(best, float64(v/row.Temperature))
		list[t] = entry{int32(t), float64(v / row.Temperature)}
	}
	for i := range list {
		list[i].p = math.Exp(list[i].p - best)
	}
	sort.SliceStable(list, func(a, b int) bool { return list[a].p > list[b].p })
	list = list[:sort.Search(len(list), func(i int) bool { return list[i].p < float64(row.MinP)*list[0].p })]
	if row.TopK > 0 && int(row.TopK) < len(list) {
		list = list[:row.TopK]
	}
	total, sum := 0.0, 0.0
	for _, e := range list {
		total += e.p
	}
	var tokens []int32
	for _, e := range list {
		if len(tokens) > 0 && row.TopP < 1 && sum >= float64(row.TopP)*total {
			break
		}
		tokens = append(tokens, e.token)
		sum += e.p
	}
	slices.Sort(tokens)
	return tokens
}

// The kept set of the histogram is that of sorting the whole vocabulary, ties
// (rounded logits have many) and flat or steep distributions included.
func TestKeptSetIsThatOfSorting(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 400 {
		logits := randomLogits(r, 1+r.IntN(3000), []float64{0, 0.01, 1, 4, 60}[i%5])
		if i%3 == 0 {
			for j := range logits {
				logits[j] = float32(math.Round(float64(logits[j])))
			}
		}
		row := plain()
		row.Temperature = []float32{0.3, 1, 2.5}[r.IntN(3)]
		row.TopK = []int32{0, -1, 1, 7, 50, 2999}[r.IntN(6)]
		row.TopP = []float32{1, 0.999, 0.95, 0.5, 0.01}[r.IntN(5)]
		row.MinP = []float32{0, 0, 0.1, 1}[r.IntN(4)]
		var s Sampler
		s.draw(logits, row, nil)
		var got []int32
		for _, c := range s.kept {
			got = append(got, c.token)
		}
		if want := keptBySorting(logits, row); !slices.Equal(got, want) {
			t.Fatalf("case %d: %d logits, %+v: kept %d tokens, sorting keeps %d", i, len(logits), row, len(got), len(want))
		}
	}
}

// Draws follow the distribution: each token's share is within five standard
// deviations of its probability, over positions, with the same seed.
func TestDrawsFollowProbabilities(t *testing.T) {
	logits := []float32{0, 1, 2, -1, 0.5, float32(math.Inf(-1))}
	total := 0.0
	for _, v := range logits {
		total += math.Exp(float64(v))
	}
	const draws = 20000
	counts := make([]int, len(logits))
	var s Sampler
	row := plain()
	row.Seed = 42
	for p := range uint32(draws) {
		row.Position = p
		counts[s.Sample(logits, row, nil).Token]++
	}
	for i, n := range counts {
		p := math.Exp(float64(logits[i])) / total
		if d := math.Abs(float64(n) - p*draws); d > 5*math.Sqrt(p*(1-p)*draws) {
			t.Errorf("token %d came %d times of %d, want about %.0f", i, n, draws, p*draws)
		}
	}
}

// Each parameter does what vLLM's does, in its order.
func TestSampleParameters(t *testing.T) {
	logits := []float32{1, 3, 3, 2, -4}
	for _, c := range []struct {
		name   string
		change func(*kernels.SampleRow)
		counts *Counts
		want   int32
	}{
		{"greedy takes the lower id of equal logits", func(r *kernels.SampleRow) {}, nil, 1},
		{"bias moves the best", func(r *kernels.SampleRow) { r.Bias = []kernels.TokenBias{{Token: 4, Bias: 10}} }, nil, 4},
		{"bias past the vocabulary is harmless", func(r *kernels.SampleRow) { r.Bias = []kernels.TokenBias{{Token: 99, Bias: 10}, {Token: -1, Bias: 5}} }, nil, 1},
		{"banned", func(r *kernels.SampleRow) { r.Banned = []int32{1} }, nil, 2},
		{"a ban outweighs a bias", func(r *kernels.SampleRow) {
			r.Banned, r.Bias = []int32{1}, []kernels.TokenBias{{Token: 1, Bias: 100}}
		}, nil, 2},
		{"mask", func(r *kernels.SampleRow) { r.Mask = []uint64{0b11001} }, nil, 3},
		{"a mask that ends early forbids the rest", func(r *kernels.SampleRow) { r.Mask = []uint64{} }, nil, -1},
		{"presence looks at the output", func(r *kernels.SampleRow) { r.PresencePenalty = 0.5 }, NewCounts([]int32{2}, []int32{1}), 2},
		{"frequency counts", func(r *kernels.SampleRow) { r.FrequencyPenalty = 0.6 }, NewCounts(nil, []int32{1, 1, 2, 2}), 3},
		{"repetition looks at the prompt too", func(r *kernels.SampleRow) { r.RepetitionPenalty = 2 }, NewCounts([]int32{1}, []int32{2}), 3},
		{"repetition multiplies what is negative", func(r *kernels.SampleRow) {
			r.RepetitionPenalty, r.Mask = 2, []uint64{0b10001}
			r.Bias = []kernels.TokenBias{{Token: 0, Bias: -4.9}} // -3.9 · 2 < -4
		}, NewCounts([]int32{0}, nil), 4},
		{"top_k of one is greedy", func(r *kernels.SampleRow) { r.Temperature, r.TopK = 5, 1 }, nil, 1},
		{"top_p of nearly nothing keeps the best", func(r *kernels.SampleRow) { r.Temperature, r.TopP = 5, 1e-6 }, nil, 1},
		{"min_p of one keeps the best", func(r *kernels.SampleRow) {
			r.Temperature, r.MinP, r.Banned = 5, 1, []int32{1}
		}, nil, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			row := plain()
			row.Temperature = 0
			c.change(&row)
			before := slices.Clone(logits)
			var s Sampler
			if got := s.Sample(logits, row, c.counts).Token; got != c.want {
				t.Errorf("drew %d, want %d", got, c.want)
			}
			if !slices.Equal(before, logits) {
				t.Error("the logits changed")
			}
		})
	}
}

// Log probabilities are the raw model's, whatever the sampling parameters.
func TestLogprobs(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	logits := randomLogits(r, 500, 3)
	logits[7], logits[9] = 20, 20
	total := 0.0
	for _, v := range logits {
		total += math.Exp(float64(v))
	}
	row := plain()
	row.Temperature, row.Banned, row.TopLogprobs = 0, []int32{7}, 5
	var s Sampler
	got := s.Sample(logits, row, nil)
	if got.Token != 9 || got.Rank != 2 || len(got.Top) != 5 || got.Top[0].Token != 7 || got.Top[1].Token != 9 {
		t.Fatalf("got %+v", got)
	}
	for _, p := range append(got.Top, kernels.TokenLogprob{Token: got.Token, Logprob: got.Logprob}) {
		if want := float64(logits[p.Token]) - math.Log(total); math.Abs(float64(p.Logprob)-want) > 1e-5 {
			t.Errorf("token %d: log probability %g, want %g", p.Token, p.Logprob, want)
		}
	}
	row.Target, row.TopLogprobs = 123, 0
	got = s.Sample(logits, row, nil)
	rank := int32(1)
	for i, v := range logits {
		if v > logits[123] || v == logits[123] && i < 123 {
			rank++
		}
	}
	if got.Token != 123 || got.Rank != rank || len(got.Top) != 0 {
		t.Errorf("scoring token 123: %+v, want rank %d", got, rank)
	}
}

// Numbers that a broken model may give never panic and never yield a token
// outside the vocabulary.
func TestSampleSurvivesBrokenLogits(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	for _, logits := range [][]float32{
		{nan, nan}, {-inf, -inf}, {inf, 1, inf}, {nan, 1, -inf}, {inf, nan, -inf}, {math.MaxFloat32, -math.MaxFloat32}, {0},
	} {
		for _, temperature := range []float32{0, 1e-4, 1, 1e30} {
			row := plain()
			row.Temperature, row.TopK, row.TopP, row.MinP, row.TopLogprobs = temperature, 1, 0.5, 0.1, 2
			var s Sampler
			if got := s.Sample(logits, row, nil).Token; got < -1 || int(got) >= len(logits) {
				t.Errorf("%v at temperature %g gave token %d", logits, temperature, got)
			}
		}
	}
}

// exp agrees with math.Exp within two units in the last place.
func TestExp(t *testing.T) {
	for x := float32(-87.2); x <= 0; x += 0.0037 {
		want := math.Exp(float64(x))
		if d := math.Abs(float64(exp(x))-want) / want; d > 2.4e-7 {
			t.Fatalf("exp(%g) is off by %g", x, d)
		}
	}
	if exp(0) != 1 || exp(float32(math.Inf(-1))) != 0 || exp(float32(math.NaN())) != 0 {
		t.Error("exp at its ends")
	}
}

func BenchmarkSample(b *testing.B) {
	logits := randomLogits(rand.New(rand.NewPCG(5, 6)), 151936, 2.5)
	for _, c := range []struct {
		name   string
		change func(*kernels.SampleRow)
	}{
		{"greedy", func(r *kernels.SampleRow) { r.Temperature = 0 }},
		{"plain", func(r *kernels.SampleRow) {}},
		{"top_k50", func(r *kernels.SampleRow) { r.TopK, r.TopP = 50, 0.95 }},
		{"top_p95", func(r *kernels.SampleRow) { r.TopP = 0.95 }},
		{"min_p", func(r *kernels.SampleRow) { r.MinP = 0.05 }},
		{"logprobs20", func(r *kernels.SampleRow) { r.Temperature, r.TopLogprobs = 0, 20 }},
	} {
		b.Run(c.name, func(b *testing.B) {
			row := plain()
			c.change(&row)
			var s Sampler
			for b.Loop() {
				row.Position++
				s.Sample(logits, row, nil)
			}
		})
	}
}
