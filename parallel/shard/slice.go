package shard

import "fmt"

// A Range is [Lo, Hi).
type Range struct{ Lo, Hi int }

// Len is the number of things in the range.
func (r Range) Len() int { return r.Hi - r.Lo }

// A Slice is what one rank holds.
type Slice struct {
	Stage, Stages int
	Rank, Ranks   int // tensor rank and degree
	Layers        Range
	Heads         Range // query heads
	KVHeads       Range // what those need; neighbours may hold the same one
	// HeadMap gives for each query head of the slice its KV head, both counted
	// from the slice's first.
	HeadMap []int32
	FFN     Range // columns of the feed-forward layer, or of every expert
	Vocab   Range // rows of the output matrix
}

// First tells whether the slice embeds tokens.
func (s Slice) First() bool { return s.Stage == 0 }

// Last tells whether the slice gives logits.
func (s Slice) Last() bool { return s.Stage == s.Stages-1 }

// Whole is the slice of the one rank that holds everything.
func Whole(s Shape) (Slice, error) {
	return Cut(Layout{Tensor: 1, Pipeline: 1}, s, 0, 0)
}

// Cut gives the slice of one rank. Query heads, feed-forward columns and
// vocabulary rows are each dealt out in units, in rank order, at least one unit a
// rank; layers in stage order.
func Cut(l Layout, s Shape, stage, rank int) (Slice, error) {
	if err := l.Check(s); err != nil {
		return Slice{}, err
	}
	if stage < 0 || stage >= l.Pipeline || rank < 0 || rank >= l.Tensor {
		return Slice{}, fmt.Errorf("%w: stage %d, rank %d of %d×%d", ErrLayout, stage, rank, l.Pipeline, l.Tensor)
	}
	unit := s.headUnit()
	slice := Slice{
		Stage: stage, Stages: l.Pipeline, Rank: rank, Ranks: l.Tensor,
		Layers: l.layers(s, stage),
		Heads:  Range{0, s.Heads},
		FFN:    deal(s.FFN, s.Unit, l.Tensor, l.TensorShares, rank),
		Vocab:  deal(s.Vocab, 1, l.Tensor, l.TensorShares, rank),
	}
	if !s.WholeAttention {
		slice.Heads = deal(s.Heads, unit, l.Tensor, l.TensorShares, rank)
	}
	group := s.Heads / s.KVHeads
	slice.KVHeads = Range{slice.Heads.Lo / group, (slice.Heads.Hi-1)/group + 1}
	slice.HeadMap = make([]int32, slice.Heads.Len())
	for i := range slice.HeadMap {
		slice.HeadMap[i] = int32((slice.Heads.Lo+i)/group - slice.KVHeads.Lo)
	}
	return slice, nil
}

// layers gives the layers of a stage.
func (l Layout) layers(s Shape, stage int) Range {
	if l.StageLayers == nil {
		return deal(s.Layers, 1, l.Pipeline, nil, stage)
	}
	first := 0
	for _, n := range l.StageLayers[:stage] {
		first += n
	}
	return Range{first, first + l.StageLayers[stage]}
}

// deal gives part i of n of count things in whole units (the last may be short).
// Each part has one unit; the others go by shares: part i ends at
//
//	i + 1 + ⌊(units - n) · (share₀ + … + shareᵢ) / Σ share⌋
func deal(count, unit, n int, shares []int, i int) Range {
	units := ceil(count, unit)
	end := func(parts int) int {
		given, all := parts, n
		if shares != nil {
			given, all = 0, 0
			for j, share := range shares {
				all += share
				if j < parts {
					given += share
				}
			}
		}
		return min(count, (parts+(units-n)*given/all)*unit)
	}
	return Range{end(i), end(i + 1)}
}
