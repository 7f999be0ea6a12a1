package ref

import (
	"math"

	"manta/kernels"
)

// Counts is what the penalties of one sequence look at: each token it has seen,
// and how often it was produced.
type Counts struct{ produced map[int32]int32 }

// NewCounts counts a prompt and the output so far.
func NewCounts(prompt, output []int32) *Counts {
	c := &Counts{produced: make(map[int32]int32, len(prompt)+len(output))}
	for _, t := range prompt {
		c.produced[t] = 0
	}
	for _, t := range output {
		c.produced[t]++
	}
	return c
}

// Add counts one more produced token.
func (c *Counts) Add(token int32) { c.produced[token]++ }

// A Sampler draws tokens and keeps the memory that this takes between calls. One
// goroutine at a time uses it.
type Sampler struct {
	adjusted []float32   // a copy of the logits that bias, bans and penalties change
	kept     []candidate // what may still be drawn, in token order
	buckets  []bucket
	edge     []candidate
	maxima   []float32
}

// A candidate is a token that may be drawn, with its logit over the temperature
// and, once weighed, exp(logit - highest).
type candidate struct {
	logit, weight float32
	token         int32
}

// greedyBelow is the temperature under which sampling is greedy, as vLLM's.
const greedyBelow = 1e-5

// Sample draws (or, with Target, scores) one token. The order is vLLM's: log
// probabilities of the raw logits; bias; bans and mask; penalties; temperature;
// min_p; top_k; top_p; then the draw by inverse CDF in the order of token ids.
// Greedy takes the highest logit. Of equal logits the lower id comes first
// everywhere. counts may be nil where the row has no penalty; it is only read.
// Token is -1 where nothing may be drawn: everything is banned, masked, or not a
// number. logits stay as they are.
func (s *Sampler) Sample(logits []float32, row kernels.SampleRow, counts *Counts) kernels.Sampled {
	var result kernels.Sampled
	if row.Target >= 0 {
		result.Token = row.Target
	} else {
		result.Token = s.draw(logits, row, counts)
	}
	if row.TopLogprobs >= 0 && result.Token >= 0 {
		scoreToken(&result, logits, int(row.TopLogprobs))
	}
	return result
}

func (s *Sampler) draw(logits []float32, row kernels.SampleRow, counts *Counts) int32 {
	adjusted := s.adjust(logits, row, counts)
	if row.Temperature < greedyBelow {
		return Argmax(adjusted)
	}
	s.candidates(adjusted, row)
	if k := int(row.TopK); k > 0 && k < len(s.kept) {
		s.keepTop(k, math.Inf(1))
	}
	total := s.weigh()
	if row.TopP < 1 {
		s.dropTail((1 - float64(row.TopP)) * total)
		s.keepTop(len(s.kept), float64(row.TopP)*total)
		total = s.total()
	}
	return s.pick(total * float64(kernels.Uniform(row.Seed, row.Choice, row.Position)))
}

// adjust applies bias, bans, mask and penalties, on a copy where there are any.
func (s *Sampler) adjust(logits []float32, row kernels.SampleRow, counts *Counts) []float32 {
	penalised := counts != nil && (row.PresencePenalty != 0 || row.FrequencyPenalty != 0 || row.RepetitionPenalty != 1)
	if len(row.Bias) == 0 && len(row.Banned) == 0 && row.Mask == nil && !penalised {
		return logits
	}
	s.adjusted = append(s.adjusted[:0], logits...)
	x := s.adjusted
	for _, b := range row.Bias {
		if inside(b.Token, x) {
			x[b.Token] += b.Bias
		}
	}
	never := float32(math.Inf(-1))
	for _, t := range row.Banned {
		if inside(t, x) {
			x[t] = never
		}
	}
	if row.Mask != nil {
		for t := range x {
			if t/64 >= len(row.Mask) || row.Mask[t/64]>>(t%64)&1 == 0 {
				x[t] = never
			}
		}
	}
	if penalised {
		penalise(x, row, counts)
	}
	return x
}

func inside(token int32, x []float32) bool { return token >= 0 && int(token) < len(x) }

// penalise applies the repetition penalty to every token seen (Keskar et al.
// 2019, §4.1), the others to what was produced (OpenAI's API).
func penalise(x []float32, row kernels.SampleRow, counts *Counts) {
	for t, n := range counts.produced {
		if !inside(t, x) {
			continue
		}
		if row.RepetitionPenalty > 0 {
			if x[t] > 0 {
				x[t] /= row.RepetitionPenalty
			} else {
				x[t] *= row.RepetitionPenalty
			}
		}
		if n > 0 {
			x[t] -= float32(row.FrequencyPenalty * float32(n))
			x[t] -= row.PresencePenalty
		}
	}
}

// Argmax gives the first of the highest values, or -1 where all are minus
// infinity or not a number.
func Argmax(x []float32) int32 {
	best, token := float32(math.Inf(-1)), int32(-1)
	for i, v := range x {
		if v > best {
			best, token = v, int32(i)
		}
	}
	return token
}

// candidates fills kept with the tokens that min_p leaves, those whose
// probability is at least MinP of the best one's (Nguyen et al. 2024, §3), and
// drops most of those that top_k will not keep.
func (s *Sampler) candidates(x []float32, row kernels.SampleRow) {
	s.kept = s.kept[:0]
	best := Argmax(x)
	if best < 0 {
		return
	}
	lowest := float32(math.Inf(-1))
	if row.MinP > 0 {
		lowest = x[best]/row.Temperature + float32(math.Log(float64(min(row.MinP, 1))))
	}
	if k := int(row.TopK); k > 0 && k < len(x) {
		lowest = max(lowest, s.atMostTop(x, k)/row.Temperature)
	}
	never := float32(math.Inf(-1))
	for t, v := range x {
		if v > never {
			if v = min(v/row.Temperature, math.MaxFloat32); v >= lowest {
				s.kept = append(s.kept, candidate{logit: v, token: int32(t)})
			}
		}
	}
}

// weigh gives every candidate its weight, and their sum.
func (s *Sampler) weigh() float64 {
	highest := highestOf(s.kept)
	for i := range s.kept {
		s.kept[i].weight = exp(s.kept[i].logit - highest)
	}
	return s.total()
}

// total adds the weights in token order.
func (s *Sampler) total() float64 {
	sum := 0.0
	for _, c := range s.kept {
		sum += float64(c.weight)
	}
	return sum
}

// pick walks the candidates in token order until their weights exceed goal.
func (s *Sampler) pick(goal float64) int32 {
	sum, last := 0.0, int32(-1)
	for _, c := range s.kept {
		if c.weight == 0 {
			continue
		}
		sum += float64(c.weight)
		last = c.token
		if sum > goal {
			break
		}
	}
	return last
}

// scoreToken fills in the log probability and rank of a token and the n best.
// log p = x - max - log Σ exp(x - max), the sum in float64.
func scoreToken(r *kernels.Sampled, logits []float32, n int) {
	highest := float32(math.Inf(-1))
	for _, v := range logits {
		highest = max(highest, v)
	}
	total := 0.0
	for _, v := range logits {
		total += float64(exp(v - highest))
	}
	logTotal := float32(math.Log(total))
	chosen := logits[r.Token]
	r.Logprob = chosen - highest - logTotal
	r.Rank = 1
	n = min(n, len(logits))
	r.Top = make([]kernels.TokenLogprob, 0, n)
	for t, v := range logits {
		if v > chosen || v == chosen && int32(t) < r.Token {
			r.Rank++
		}
		if n > 0 {
			insertTop(&r.Top, n, kernels.TokenLogprob{Token: int32(t), Logprob: v})
		}
	}
	for i := range r.Top {
		r.Top[i].Logprob = r.Top[i].Logprob - highest - logTotal
	}
}

// insertTop keeps the n best in falling order; an earlier one wins a tie.
func insertTop(top *[]kernels.TokenLogprob, n int, c kernels.TokenLogprob) {
	list := *top
	switch {
	case len(list) < n:
		list = append(list, c)
	case c.Logprob > list[n-1].Logprob:
		list[n-1] = c
	default:
		return
	}
	for i := len(list) - 1; i > 0 && list[i].Logprob > list[i-1].Logprob; i-- {
		list[i], list[i-1] = list[i-1], list[i]
	}
	*top = list
}

// Sample draws a token for each row from the logits and remembers it for the
// row's seat.
func (o *Ops) Sample(logits kernels.Tensor, rows []kernels.SampleRow) {
	o.sampled = make([]kernels.Sampled, 0, len(rows))
	for _, r := range rows {
		var counts *Counts
		held := o.seats[r.Seat]
		if held != nil {
			counts = held.counts
		}
		result := o.sampler.Sample(row(logits, int(r.Row)), r, counts)
		if held != nil && r.Target < 0 && result.Token >= 0 {
			held.counts.Add(result.Token)
			held.last = result.Token
		}
		o.sampled = append(o.sampled, result)
	}
}
