//go:build cuda

package cuda

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"manta/kernels"
	"manta/kernels/ref"
)

func sampleRows(r *rand.Rand, vocabulary int) []kernels.SampleRow {
	base := kernels.SampleRow{Target: -1, Temperature: 1, TopP: 1, RepetitionPenalty: 1, TopLogprobs: -1}
	list := []func(*kernels.SampleRow){
		func(s *kernels.SampleRow) { s.Temperature = 0 },
		func(s *kernels.SampleRow) {},
		func(s *kernels.SampleRow) { s.TopK = 1 },
		func(s *kernels.SampleRow) { s.TopK = 40 },
		func(s *kernels.SampleRow) { s.TopK = int32(vocabulary - 1) },
		func(s *kernels.SampleRow) { s.TopP = 0.9 },
		func(s *kernels.SampleRow) { s.TopP = 0 },
		func(s *kernels.SampleRow) { s.TopK, s.TopP, s.Temperature = 50, 0.95, 0.8 },
		func(s *kernels.SampleRow) { s.MinP = 0.05 },
		func(s *kernels.SampleRow) { s.MinP, s.TopP, s.Temperature = 0.01, 0.5, 2 },
		func(s *kernels.SampleRow) { s.PresencePenalty, s.FrequencyPenalty = 0.7, 0.4 },
		func(s *kernels.SampleRow) { s.RepetitionPenalty, s.TopK = 1.3, 20 },
		func(s *kernels.SampleRow) { s.Temperature, s.RepetitionPenalty = 0, 5 },
		func(s *kernels.SampleRow) {
			s.Bias = []kernels.TokenBias{{Token: 3, Bias: 50}, {Token: 3, Bias: -10}, {Token: int32(vocabulary) + 5, Bias: 1}}
		},
		func(s *kernels.SampleRow) {
			s.Temperature, s.Banned = 0, []int32{1, 2, 3, int32(vocabulary - 1), -4}
		},
		func(s *kernels.SampleRow) {
			s.Mask, s.TopP = make([]uint64, (vocabulary+63)/64-1), 0.8
			for i := range s.Mask {
				s.Mask[i] = r.Uint64() & r.Uint64()
			}
		},
		func(s *kernels.SampleRow) { s.Mask = []uint64{} }, // nothing may be drawn
		func(s *kernels.SampleRow) { s.Target, s.Seat, s.TopLogprobs = 5, -1, 3 },
		func(s *kernels.SampleRow) { s.TopLogprobs = 0 },
		func(s *kernels.SampleRow) { s.TopK, s.TopLogprobs = 5, 20 },
	}
	rows := make([]kernels.SampleRow, 0, 3*len(list))
	for round := range 3 {
		for i, f := range list {
			s := base
			s.Row, s.Seat = int32(len(rows)), int32(len(rows))
			s.Seed, s.Choice, s.Position = r.Uint64(), uint32(round), uint32(i)
			f(&s)
			rows = append(rows, s)
		}
	}
	return rows
}

// Sampling draws the tokens that ref draws, over several steps in which penalties
// build up, and scores them alike.
func TestSampleDrawsWhatTheReferenceDraws(t *testing.T) {
	device := open(t, kernels.BF16)
	for _, vocabulary := range []int{7, 1000, 32003, 151936} {
		for _, shape := range []string{"normal", "ties", "flat"} {
			t.Run(fmt.Sprintf("%d/%s", vocabulary, shape), func(t *testing.T) {
				var results [2][]kernels.Sampled
				for i, o := range []kernels.Ops{ref.New(), device} {
					r := rand.New(rand.NewPCG(11, uint64(vocabulary)))
					rows := sampleRows(r, vocabulary)
					if d, ok := o.(*Ops); ok {
						if err := d.Vocabulary(vocabulary); err != nil {
							t.Fatal(err)
						}
					}
					for _, s := range rows {
						if s.Seat >= 0 {
							o.Seat(s.Seat, []int32{1, 2, 2, 5, s.Seat % int32(vocabulary)}, []int32{2, 4})
						}
					}
					for round := range 3 {
						x := random(r, len(rows)*vocabulary, 3)
						for j := range x {
							switch shape {
							case "ties":
								x[j] = float32(math.Round(float64(x[j])))
							case "flat":
								x[j] = 1
							}
						}
						x[3] = float32(math.NaN())
						x[vocabulary+2] = float32(math.Inf(-1))
						for j := range rows {
							rows[j].Position += uint32(100 * round)
						}
						logits := tensor(t, o, len(rows), vocabulary, x)
						results[i] = append(results[i], step(t, o, rowsOnly(1), func() { o.Sample(logits, rows) })...)
					}
				}
				rows := sampleRows(rand.New(rand.NewPCG(11, uint64(vocabulary))), vocabulary)
				for i, want := range results[0] {
					got, at := results[1][i], fmt.Sprintf("row %d of step %d", i%len(rows), i/len(rows))
					if got.Token != want.Token || got.Rank != want.Rank || len(got.Top) != len(want.Top) {
						t.Fatalf("%s: token %d rank %d top %d, want %d, %d, %d: %+v", at, got.Token, got.Rank, len(got.Top), want.Token, want.Rank, len(want.Top), rows[i%len(rows)])
					}
					if math.Abs(float64(got.Logprob-want.Logprob)) > 1e-5 {
						t.Fatalf("%s: logprob %v, want %v", at, got.Logprob, want.Logprob)
					}
					for k := range want.Top {
						if got.Top[k].Token != want.Top[k].Token || math.Abs(float64(got.Top[k].Logprob-want.Top[k].Logprob)) > 1e-5 {
							t.Fatalf("%s: top %d is %v, want %v", at, k, got.Top[k], want.Top[k])
						}
					}
				}
			})
		}
	}
}

// A token that the host does not know yet is the one that was sampled last for its
// seat; Feed sets it; steps may follow each other before the first has ended, and
// a step seen often runs as a graph with the same result.
func TestStepsFollowEachOtherOnTheDevice(t *testing.T) {
	o := open(t, kernels.BF16)
	const vocabulary, columns = 500, 64
	r := rand.New(rand.NewPCG(12, 12))
	table := must(o.Weight(matrix(r, vocabulary, columns, 1)))
	head := must(o.Weight(matrix(r, vocabulary, columns, 1)))
	x, logits := must(o.Tensor(2, columns)), must(o.Tensor(2, vocabulary))
	run := func(first int32) kernels.Pending {
		b := &kernels.Batch{Tokens: []int32{first, -1 - 9}, Positions: []int32{0, 0}, Spans: []kernels.Span{{Row: 0, Count: 1}, {Row: 1, Count: 1}}, Wanted: []int32{0, 1}}
		if err := o.Begin(b); err != nil {
			t.Fatal(err)
		}
		o.Embed(x, kernels.Embed{Table: table, Scale: 1})
		for range 8 { // enough kernels for a graph
			o.Add(x, x, nil)
		}
		o.Linear(logits, x, kernels.Linear{Weight: head})
		o.Sample(logits, []kernels.SampleRow{
			{Row: 0, Seat: 8, Target: -1, TopP: 1, RepetitionPenalty: 1, TopLogprobs: -1},
			{Row: 1, Seat: 9, Target: -1, TopP: 1, RepetitionPenalty: 1, TopLogprobs: -1}})
		return o.End()
	}
	o.Seat(8, []int32{17}, nil)
	o.Seat(9, []int32{3, 17}, nil)
	var steps []kernels.Pending
	for i := range 3 * captureAt {
		if i == 2*captureAt {
			o.Feed(8, 17)
			o.Feed(9, 17)
		}
		steps = append(steps, run(-1-8))
		if len(steps) > 2 {
			if _, err := steps[len(steps)-3].Wait(); err != nil {
				t.Fatal(err)
			}
		}
	}
	var chain []int32
	for i, p := range steps {
		s, err := p.Wait()
		if err != nil {
			t.Fatal(err)
		}
		if s[0].Token != s[1].Token {
			t.Fatalf("step %d: seats that started alike drew %d and %d", i, s[0].Token, s[1].Token)
		}
		if i >= 2*captureAt && s[0].Token != chain[i-2*captureAt] {
			t.Fatalf("step %d drew %d, want %d as after the same token before", i, s[0].Token, chain[i-2*captureAt])
		}
		chain = append(chain, s[0].Token)
	}
	if o.hits == 0 {
		t.Fatal("no step ran as a graph")
	}
}

// A kernel that faults ends no process: the error sticks, and every later step has it.
func TestDeviceErrorSticks(t *testing.T) {
	o := open(t, kernels.BF16)
	x, y := must(o.Tensor(1, 64)), must(o.Tensor(1, 8))
	w := &weight{at: 64, rows: 8, cols: 64, chunks: 2, segment: 2, segments: 1} // no such memory
	for i := range 2 {
		if err := o.Begin(rowsOnly(1)); err != nil {
			if i == 0 {
				t.Fatal(err)
			}
			break
		}
		o.Linear(y, x, kernels.Linear{Weight: w})
		_, err := o.End().Wait()
		if err == nil {
			t.Fatalf("step %d ran on memory that is not there", i)
		}
	}
	if err := o.Begin(rowsOnly(1)); err == nil {
		t.Fatal("a step began on a broken device")
	}
	o.closed = true // nothing of a lost context can be freed
	close(o.work)
	o.thread.Wait()
}
