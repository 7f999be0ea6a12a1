// Package shard cuts a model into the slices that ranks hold: layer ranges for
// stages, heads and columns for tensor ranks. It is pure.
package shard

import (
	"errors"
	"fmt"
)

// Layout is how a replica is cut: Pipeline stages of Tensor ranks each.
type Layout struct {
	Tensor   int
	Pipeline int
	// StageLayers gives the layers of each stage; nil: as even as can be.
	StageLayers []int
	// TensorShares weighs the tensor ranks on unlike devices; nil: all alike.
	TensorShares []int
}

// Ranks is the number of shards of one replica.
func (l Layout) Ranks() int { return l.Tensor * l.Pipeline }

// ErrLayout is wrapped by every layout that does not fit a model.
var ErrLayout = errors.New("shard: layout does not fit the model")

// Shape is what of a model its cut depends on.
type Shape struct {
	Layers  int
	Heads   int
	KVHeads int // Heads is a multiple of it
	HeadDim int
	FFN     int // inner width of one feed-forward layer or expert
	Vocab   int
	// Unit is the number of columns that a cut across columns must be a multiple
	// of: the quantization block of the output and down projections.
	Unit int
	// WholeAttention marks a model that normalises across all heads (OLMo 2):
	// every tensor rank computes all of them.
	WholeAttention bool
}

// headUnit is the least number of heads whose columns are whole quantization blocks.
func (s Shape) headUnit() int {
	n := 1
	for n*s.HeadDim%s.Unit != 0 {
		n++
	}
	return n
}

// MaxTensor is the greatest tensor degree: every rank holds at least one unit of
// heads, one of feed-forward columns, and a row of the vocabulary.
func (s Shape) MaxTensor() int {
	degree := min(ceil(s.FFN, s.Unit), s.Vocab)
	if s.WholeAttention {
		return degree
	}
	return min(degree, ceil(s.Heads, s.headUnit()))
}

func ceil(n, unit int) int { return (n + unit - 1) / unit }

// Check tells whether the layout fits, and if not, what would.
func (l Layout) Check(s Shape) error {
	switch {
	case s.Layers < 1 || s.Heads < 1 || s.KVHeads < 1 || s.HeadDim < 1 || s.FFN < 1 || s.Vocab < 1 || s.Unit < 1 || s.Heads%s.KVHeads != 0:
		return fmt.Errorf("%w: a model of %+v", ErrLayout, s)
	case l.Tensor < 1 || l.Tensor > s.MaxTensor():
		return fmt.Errorf("%w: tensor degree %d; this model takes 1 to %d", ErrLayout, l.Tensor, s.MaxTensor())
	case l.Pipeline < 1 || l.Pipeline > s.Layers:
		return fmt.Errorf("%w: pipeline degree %d; this model takes 1 to %d", ErrLayout, l.Pipeline, s.Layers)
	case l.StageLayers != nil && len(l.StageLayers) != l.Pipeline:
		return fmt.Errorf("%w: layers given for %d stages of %d", ErrLayout, len(l.StageLayers), l.Pipeline)
	case l.TensorShares != nil && len(l.TensorShares) != l.Tensor:
		return fmt.Errorf("%w: shares given for %d tensor ranks of %d", ErrLayout, len(l.TensorShares), l.Tensor)
	}
	sum := 0
	for i, n := range l.StageLayers {
		if n < 1 || n > s.Layers {
			return fmt.Errorf("%w: stage %d has %d layers of %d", ErrLayout, i, n, s.Layers)
		}
		sum += n
	}
	if l.StageLayers != nil && sum != s.Layers {
		return fmt.Errorf("%w: the stages have %d layers, the model %d", ErrLayout, sum, s.Layers)
	}
	for i, n := range l.TensorShares {
		if n < 1 || n > 1<<20 {
			return fmt.Errorf("%w: tensor rank %d has a share of %d; give 1 to %d", ErrLayout, i, n, 1<<20)
		}
	}
	return nil
}
