package plan

import (
	"errors"
	"slices"

	"manta/parallel/shard"
)

// Stages cuts a model's layers between stages whose devices are unlike in memory or
// speed, and divides the memory. How much is served in a second goes with the
// sequences that run at once, those that fit on the stage with least room for them,
// and with the time of the slowest stage: of all cuts it takes one with most sequences
// for that time, the even one if that is as good. Where speeds are unknown, a stage's
// time is its number of layers; alike devices get the even cut then whenever it fits.
func Stages(s Shapes, layout shard.Layout, b Budget) (shard.Layout, Fit, error) {
	fit, err := Compute(s, layout, b)
	alike := len(b.Speeds) == 0 && (len(b.Stages) == 0 || slices.Max(b.Stages) == slices.Min(b.Stages))
	if layout.Pipeline < 2 || layout.StageLayers != nil || alike && err == nil || err != nil && !errors.Is(err, ErrNoRoom) {
		return layout, fit, err
	}
	c, cutErr := newCutter(s, layout, b)
	if cutErr != nil {
		return layout, fit, cutErr
	}
	cut := c.best()
	if cut == nil {
		return layout, fit, err
	}
	uneven := layout
	uneven.StageLayers = cut
	if other, otherErr := Compute(s, uneven, b); otherErr == nil {
		return uneven, other, nil
	}
	return layout, fit, err
}

// cutter weighs cuts of a model's layers.
type cutter struct {
	layers int
	most   float64 // sequences at once
	times  times
	stages [][]stageRank
	even   []int
}

// stageRank is what a tensor rank of a stage has room for.
type stageRank struct {
	room     int64   // without any layer
	layer    int64   // weights of one
	sequence []int64 // [l]: of the longest sequence, in all layers before l
}

func newCutter(s Shapes, layout shard.Layout, b Budget) (*cutter, error) {
	c := &cutter{layers: s.Layers, most: float64(b.MaxSequences), times: s.times(layout, b)}
	tokens := b.MaxLen
	if tokens == 0 {
		tokens = s.Context
	}
	for stage := range layout.Pipeline {
		var ranks []stageRank
		for tensor := range layout.Tensor {
			slice, err := shard.Cut(layout, s.Shape(), stage, tensor)
			if err != nil {
				return nil, err
			}
			if tensor == 0 {
				c.even = append(c.even, slice.Layers.Len())
			}
			slice.Layers = shard.Range{}
			bare := s.rank(layout, slice, b)
			r := stageRank{room: b.memory(stage) - bare.weights - bare.scratch, sequence: make([]int64, s.Layers+1)}
			for l := range s.Layers {
				slice.Layers = shard.Range{Lo: l, Hi: l + 1}
				one := s.rank(layout, slice, b)
				r.layer = one.weights - bare.weights
				r.sequence[l+1] = r.sequence[l] + one.sequence(b, tokens)
			}
			ranks = append(ranks, r)
		}
		c.stages = append(c.stages, ranks)
	}
	return c, nil
}

// best gives the layers of each stage, or nil: the even cut is as good, or none fits.
func (c *cutter) best() []int {
	const better = 1 + 1e-9
	var best []int
	least := c.sequences(c.even) / c.times.slowest(c.even) // what it must be better than
	for _, limit := range c.limits() {
		if c.most/limit <= least*better {
			break // nor is any that is slower
		}
		cut := c.widest(limit)
		if cut == nil {
			continue
		}
		if worth := c.sequences(cut) / c.times.slowest(cut); worth > least*better {
			best, least = cut, worth
		}
	}
	return best
}

// limits gives all times that a slowest stage can have, the least first.
func (c *cutter) limits() []float64 {
	var all []float64
	for i := range c.stages {
		for n := 1; n <= c.layers-len(c.stages)+1; n++ {
			all = append(all, c.times.on(i, n))
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// widest gives a cut with no stage slower than a limit on which most sequences fit.
func (c *cutter) widest(limit float64) []int {
	const halvings = 40
	if cut := c.fill(limit, c.most); cut != nil {
		return cut
	}
	low, high := 0.0, c.most
	best := c.fill(limit, low)
	for range halvings {
		if best == nil || high-low < 1e-6*c.most {
			break
		}
		middle := (low + high) / 2
		if cut := c.fill(limit, middle); cut != nil {
			best, low = cut, middle
		} else {
			high = middle
		}
	}
	return best
}

// fill gives each stage in turn as many layers as it takes with so many sequences; nil
// if some are left over. Whatever cut there is, none of its stages begins later.
func (c *cutter) fill(limit, sequences float64) []int {
	cut := make([]int, len(c.stages))
	at := 0
	for i, ranks := range c.stages {
		most := c.layers - at - (len(c.stages) - 1 - i)
		n := 0
		for n < most && c.times.on(i, n+1) <= limit && fits(ranks, at, n+1, sequences) {
			n++
		}
		if n == 0 {
			return nil
		}
		cut[i] = n
		at += n
	}
	if at < c.layers {
		return nil
	}
	return cut
}

func fits(ranks []stageRank, first, n int, sequences float64) bool {
	for _, r := range ranks {
		if float64(r.room-int64(n)*r.layer) < sequences*float64(r.sequence[first+n]-r.sequence[first]) || r.room < int64(n)*r.layer {
			return false
		}
	}
	return true
}

// sequences is how many fit on a cut, at most as many as may run.
func (c *cutter) sequences(cut []int) float64 {
	most, at := c.most, 0
	for i, n := range cut {
		for _, r := range c.stages[i] {
			if need := r.sequence[at+n] - r.sequence[at]; need > 0 {
				most = min(most, float64(r.room-int64(n)*r.layer)/float64(need))
			}
		}
		at += n
	}
	return max(0, most)
}
