package plan

import (
	"slices"

	"manta/parallel/shard"
)

// A Speed is what a device does in a second; the zero one is unknown.
type Speed struct {
	Bandwidth  float64 // bytes of memory read
	Operations float64 // multiplications and additions of products
}

// Known reports whether it is.
func (s Speed) Known() bool { return s.Bandwidth > 0 && s.Operations > 0 }

// Times gives a device that is so many times as fast.
func (s Speed) Times(part float64) Speed { return Speed{s.Bandwidth * part, s.Operations * part} }

// Least gives the slower of two in each figure.
func (s Speed) Least(other Speed) Speed {
	return Speed{min(s.Bandwidth, other.Bandwidth), min(s.Operations, other.Operations)}
}

// wobble is by how much two measurements of one device differ: speeds within it are
// taken for the same.
const wobble = 1.25

// Near reports whether two may be measurements of one device.
func (s Speed) Near(other Speed) bool {
	near := func(a, b float64) bool { return a <= b*wobble && b <= a*wobble }
	return near(s.Bandwidth, other.Bandwidth) && near(s.Operations, other.Operations)
}

// alike gives devices that are nearly as fast the figures of the slowest of them, so
// that a measurement's wobble makes no cut uneven; nil if one is unknown.
func alike(speeds []Speed) []Speed {
	if slices.ContainsFunc(speeds, func(s Speed) bool { return !s.Known() }) {
		return nil
	}
	same := slices.Clone(speeds)
	for _, figure := range []func(*Speed) *float64{
		func(s *Speed) *float64 { return &s.Bandwidth }, func(s *Speed) *float64 { return &s.Operations },
	} {
		var all []float64
		for i := range same {
			all = append(all, *figure(&same[i]))
		}
		slices.Sort(all)
		for i := range same {
			f := figure(&same[i])
			least := all[0]
			for _, other := range all {
				if other > least*wobble && other <= *f {
					least = other
				}
			}
			*f = least
		}
	}
	return same
}

// times is how long a step takes on a stage: layer for each of its layers, and output
// for the logits. Without speeds it counts layers.
type times struct{ layer, output []float64 }

// on is the time of a stage with so many layers.
func (t times) on(stage, layers int) float64 {
	return float64(layers)*t.layer[stage] + t.output[stage]
}

// slowest is the time of the slowest stage of a cut.
func (t times) slowest(cut []int) float64 {
	most := 0.0
	for i, n := range cut {
		most = max(most, t.on(i, n))
	}
	return most
}

// times gives the cost model: a step of as many rows as sequences may run, each of
// which wants its logits. A product takes the longer of two, its weights at the
// device's bandwidth and its operations at the device's speed (the roofline of
// Williams et al. 2009); what attention reads of the cache is left out.
func (s Shapes) times(layout shard.Layout, b Budget) times {
	t := times{make([]float64, layout.Pipeline), make([]float64, layout.Pipeline)}
	speeds := alike(b.Speeds)
	rows, ranks := float64(b.MaxSequences), float64(layout.Tensor)
	ffn, weights := float64(s.FFNBytes), 3*s.Hidden*s.FFN
	if s.Experts > 0 {
		ffn *= min(1, rows*float64(s.ExpertsUsed)/float64(s.Experts))
		weights *= s.ExpertsUsed
	}
	weights += 2 * s.Hidden * s.HeadDim * (s.Heads + s.KVHeads)
	output := s.OutputBytes
	if s.Tied {
		output = s.EmbeddingBytes
	}
	for i := range layout.Pipeline {
		if len(speeds) != layout.Pipeline {
			t.layer[i] = 1
			continue
		}
		product := func(bytes float64, weights int) float64 {
			return max(bytes/speeds[i].Bandwidth, 2*rows*float64(weights)/speeds[i].Operations) / ranks
		}
		t.layer[i] = product(float64(s.AttentionBytes)+ffn, weights)
		if i == layout.Pipeline-1 {
			t.output[i] = product(float64(output), s.Hidden*s.Vocab)
		}
	}
	return t
}

// StageSeconds is how long a full step takes on each stage of a layout, by the cost
// model that cuts are chosen by; nil where a device's speed is unknown.
func StageSeconds(s Shapes, layout shard.Layout, b Budget) []float64 {
	if len(b.Speeds) != layout.Pipeline || alike(b.Speeds) == nil {
		return nil
	}
	t := s.times(layout, b)
	var seconds []float64
	for stage := range layout.Pipeline {
		slice, err := shard.Cut(layout, s.Shape(), stage, 0)
		if err != nil {
			return nil
		}
		seconds = append(seconds, t.on(stage, slice.Layers.Len()))
	}
	return seconds
}
