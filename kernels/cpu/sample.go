package cpu

import (
	"manta/kernels"
	"manta/kernels/ref"
)

type counts = ref.Counts

// drawScratch is one worker's sampler.
type drawScratch struct{ sampler ref.Sampler }

// A sampleTask draws the tokens of all rows, each by one worker.
type sampleTask struct {
	o      *Ops
	logits kernels.Tensor
	rows   []kernels.SampleRow
}

// Sample draws a token for each row and remembers it for the row's seat.
func (o *Ops) Sample(logits kernels.Tensor, rows []kernels.SampleRow) {
	o.sampled = make([]kernels.Sampled, len(rows))
	o.sampling = sampleTask{o, logits, rows}
	o.pool.run(&o.sampling, len(rows))
	o.sampling = sampleTask{}
	for i := range rows {
		held, token := o.seats[rows[i].Seat], o.sampled[i].Token
		if held != nil && rows[i].Target < 0 && token >= 0 {
			held.counts.Add(token)
			held.last = token
		}
	}
}

func (t *sampleTask) do(worker, unit int) {
	r := &t.rows[unit]
	logits := row(t.logits, int(r.Row))
	if plainGreedy(r) {
		t.o.sampled[unit] = kernels.Sampled{Token: t.o.kernels.argmax(logits)}
		return
	}
	var seen *ref.Counts
	if held := t.o.seats[r.Seat]; held != nil {
		seen = held.counts
	}
	t.o.sampled[unit] = t.o.workers[worker].draws.sampler.Sample(logits, *r, seen)
}

// plainGreedy tells whether a row wants the highest logit and nothing else.
func plainGreedy(r *kernels.SampleRow) bool {
	return r.Target < 0 && r.TopLogprobs < 0 && r.Temperature == 0 && r.PresencePenalty == 0 &&
		r.FrequencyPenalty == 0 && r.RepetitionPenalty == 1 && len(r.Bias) == 0 && len(r.Banned) == 0 && r.Mask == nil
}

// argmax gives the first of the highest values, or -1 where there is none.
func (s *kernelSet) argmax(x []float32) int32 {
	const stretch = 1024
	best, at := float32(0), -1
	for lo := 0; lo < len(x); lo += stretch {
		part := x[lo:min(lo+stretch, len(x))]
		if top := s.highest(&part[0], uintptr(len(part))); at < 0 || top > best {
			best, at = top, lo
		}
	}
	if at < 0 {
		return -1
	}
	part := x[at:min(at+stretch, len(x))]
	if token := ref.Argmax(part); token >= 0 {
		return int32(at) + token
	}
	return -1
}

// Seat prepares a sampler seat.
func (o *Ops) Seat(s int32, prompt, output []int32) {
	last := int32(0)
	if len(prompt) > 0 {
		last = prompt[len(prompt)-1]
	}
	if len(output) > 0 {
		last = output[len(output)-1]
	}
	o.seats[s] = &seat{counts: ref.NewCounts(prompt, output), last: last}
}

// Feed sets the token that another rank sampled.
func (o *Ops) Feed(s, token int32) {
	if o.seats[s] == nil {
		o.seats[s] = &seat{counts: ref.NewCounts(nil, nil)}
	}
	o.seats[s].last = token
}
