package plan

import (
	"errors"
	"fmt"

	"manta/kernels"
	"manta/parallel/shard"
	"manta/runtime/kv"
)

// ErrNoRoom means that a shard does not fit into its device's memory.
var ErrNoRoom = errors.New("plan: does not fit")

// A Budget is what a deployment's flags and its devices allow. Zero values of the
// counts mean: choose.
type Budget struct {
	Memory       int64 // bytes on the smallest device that its shards may use
	KVType       kernels.DType
	MaxLen       int // max_model_len; 0: the model's context, or what fits
	MaxSequences int // max_num_seqs
	MaxRows      int // max_num_batched_tokens
}

// A Fit is how the memory of the fullest rank is divided.
type Fit struct {
	Blocks       []int // per block group
	MaxLen       int
	WeightBytes  int64
	ScratchBytes int64
	KVBytes      int64
	Concurrency  float64 // sequences of MaxLen tokens that fit at once
}

// Compute divides a rank's memory. Weights and scratch come first; what is left
// goes to blocks, so split between the groups that the same number of longest
// sequences fits into each, and at most MaxSequences of them.
func Compute(s Shapes, layout shard.Layout, b Budget) (Fit, error) {
	layout.Tensor, layout.Pipeline = max(1, layout.Tensor), max(1, layout.Pipeline)
	f := Fit{WeightBytes: s.rankWeights(layout), ScratchBytes: s.scratch(b)}
	room := b.Memory - f.WeightBytes - f.ScratchBytes
	f.MaxLen = min(s.Context, b.MaxLen)
	if b.MaxLen == 0 {
		f.MaxLen = s.Context
	}
	if b.MaxLen > s.Context {
		return f, fmt.Errorf("plan: max_model_len=%d is more than the model's context of %d", b.MaxLen, s.Context)
	}
	if b.MaxLen == 0 {
		f.MaxLen = s.longest(layout, b, room, f.MaxLen)
	}
	perSequence := s.sequenceBytes(layout, b, f.MaxLen)
	if f.MaxLen < 2*kernels.BlockTokens || perSequence > room {
		return f, fmt.Errorf("%w: weights %s + scratch %s + one sequence of %d tokens %s are more than %s; give more memory, or a smaller max_model_len",
			ErrNoRoom, Bytes(f.WeightBytes), Bytes(f.ScratchBytes), f.MaxLen, Bytes(perSequence), Bytes(b.Memory))
	}
	f.Concurrency = min(float64(room)/float64(perSequence), float64(b.MaxSequences))
	for g, window := range s.Groups() {
		blocks := int(f.Concurrency * float64(kv.MostBlocks(f.MaxLen, window, b.MaxRows)))
		f.Blocks = append(f.Blocks, blocks)
		f.KVBytes += int64(blocks) * s.blockBytes(layout, g, b.KVType)
	}
	return f, nil
}

// longest is the longest sequence, in whole blocks, that fits into room.
func (s Shapes) longest(layout shard.Layout, b Budget, room int64, most int) int {
	low, high := 0, ceil(most, kernels.BlockTokens)
	for low < high {
		middle := (low + high + 1) / 2
		if s.sequenceBytes(layout, b, middle*kernels.BlockTokens) <= room {
			low = middle
		} else {
			high = middle - 1
		}
	}
	return min(most, low*kernels.BlockTokens)
}

// sequenceBytes is the memory of one sequence's keys and values on the fullest rank.
func (s Shapes) sequenceBytes(layout shard.Layout, b Budget, tokens int) int64 {
	var bytes int64
	for g, window := range s.Groups() {
		bytes += int64(kv.MostBlocks(tokens, window, b.MaxRows)) * s.blockBytes(layout, g, b.KVType)
	}
	return bytes
}

// blockBytes is the size of one block of a group on the fullest rank:
// 2 · layers · KV heads · head size · BlockTokens · element.
func (s Shapes) blockBytes(layout shard.Layout, group int, kv kernels.DType) int64 {
	layers := 0
	for l := range s.Layers {
		if s.Group(l) == group {
			layers++
		}
	}
	heads := ceil(s.KVHeads, layout.Tensor)
	return 2 * int64(ceil(layers, layout.Pipeline)) * int64(heads) * int64(kv.Bytes(s.HeadDim)) * kernels.BlockTokens
}

// rankWeights is the size of the weights of the fullest rank, as stored.
func (s Shapes) rankWeights(layout shard.Layout) int64 {
	layers := int64(ceil(s.Layers, layout.Pipeline)) * (s.AttentionBytes + s.FFNBytes) / int64(layout.Tensor)
	ends := s.EmbeddingBytes
	if layout.Pipeline == 1 {
		ends += s.OutputBytes
	} else {
		ends = max(ends, s.OutputBytes)
	}
	return layers + ends
}

// scratch is a bound on the activations of one step in float32: the residual, the
// widest inner rows, and the logits of the wanted rows.
func (s Shapes) scratch(b Budget) int64 {
	attention := (s.Heads + 2*s.KVHeads) * s.HeadDim
	widest := 2*s.Hidden + 2*max(attention, 2*s.FFN)
	return 4 * (int64(b.MaxRows)*int64(widest) + int64(b.MaxSequences)*int64(s.Vocab))
}

// Bytes prints a size for people.
func Bytes(n int64) string {
	const units = "KMGTP"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, u := float64(n)/1024, 0
	for f >= 1024 && u < len(units)-1 {
		f, u = f/1024, u+1
	}
	return fmt.Sprintf("%.1f %ciB", f, units[u])
}

func ceil(n, d int) int { return (n + d - 1) / d }
