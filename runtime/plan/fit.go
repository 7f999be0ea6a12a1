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

// NoRoom says what a rank needs and does not have. It wraps ErrNoRoom.
type NoRoom struct {
	Weights, Scratch int64
	Sequence         int64 // of one sequence of Tokens tokens
	Tokens           int
	Memory           int64 // what there is
}

func (n *NoRoom) Error() string {
	return fmt.Sprintf("%v: weights %s + scratch %s + one sequence of %d tokens %s are more than %s; give more memory, or a smaller max_model_len, max_num_batched_tokens or max_num_seqs",
		ErrNoRoom, Bytes(n.Weights), Bytes(n.Scratch), n.Tokens, Bytes(n.Sequence), Bytes(n.Memory))
}

// Unwrap implements errors.Is.
func (n *NoRoom) Unwrap() error { return ErrNoRoom }

// A Budget is what a deployment's flags and its devices allow. Zero values of the
// counts mean: choose.
type Budget struct {
	Memory       int64 // bytes on the smallest device that its shards may use
	KVType       kernels.DType
	MaxLen       int // max_model_len; 0: the model's context, or what fits
	MaxSequences int // max_num_seqs
	MaxRows      int // max_num_batched_tokens
	// Stages is what Memory is for each stage, where their devices are unlike.
	Stages []int64 `json:",omitempty"`
	// Speeds are those of each stage's slowest device; empty: unknown.
	Speeds []Speed `json:",omitempty"`
}

// memory is what each rank of a stage may use.
func (b Budget) memory(stage int) int64 {
	if len(b.Stages) > 0 {
		return b.Stages[stage]
	}
	return b.Memory
}

// A Fit is how the memory of the fullest rank is divided.
type Fit struct {
	Blocks       []int // per block group, equal on all ranks
	MaxLen       int
	WeightBytes  int64
	ScratchBytes int64
	KVBytes      int64
	Concurrency  float64 // sequences of MaxLen tokens that fit at once
}

// Compute divides the ranks' memory. Weights and scratch come first; what is left
// goes to blocks, so split between the groups that the same number of longest
// sequences fits into each, and at most MaxSequences of them.
func Compute(s Shapes, layout shard.Layout, b Budget) (Fit, error) {
	if len(b.Stages) > 0 && len(b.Stages) != layout.Pipeline {
		return Fit{}, fmt.Errorf("plan: memory given for %d stages of %d", len(b.Stages), layout.Pipeline)
	}
	if len(b.Speeds) > 0 && len(b.Speeds) != layout.Pipeline {
		return Fit{}, fmt.Errorf("plan: speeds given for %d stages of %d", len(b.Speeds), layout.Pipeline)
	}
	if b.MaxLen > s.Context {
		return Fit{}, fmt.Errorf("plan: max_model_len=%d is more than the model's context of %d", b.MaxLen, s.Context)
	}
	ranks, err := s.ranks(layout, b)
	if err != nil {
		return Fit{}, err
	}
	maxLen := b.MaxLen
	if maxLen == 0 {
		maxLen = s.Context
		for _, r := range ranks {
			maxLen = min(maxLen, r.longest(b, maxLen))
		}
	}
	fit := Fit{MaxLen: maxLen, Concurrency: float64(b.MaxSequences)}
	for _, r := range ranks {
		need := r.sequence(b, maxLen)
		if room := r.room(); maxLen < 2*kernels.BlockTokens || need > room {
			tokens := max(maxLen, 2*kernels.BlockTokens)
			return Fit{}, &NoRoom{Weights: r.weights, Scratch: r.scratch, Sequence: r.sequence(b, tokens), Tokens: tokens, Memory: r.memory}
		} else if need > 0 {
			fit.Concurrency = min(fit.Concurrency, float64(room)/float64(need))
		}
	}
	for _, window := range s.Groups() {
		fit.Blocks = append(fit.Blocks, int(fit.Concurrency*float64(kv.MostBlocks(maxLen, window, b.MaxRows))))
	}
	for _, r := range ranks {
		if kv := r.blocks(fit.Blocks); r.weights+r.scratch+kv > fit.WeightBytes+fit.ScratchBytes+fit.KVBytes {
			fit.WeightBytes, fit.ScratchBytes, fit.KVBytes = r.weights, r.scratch, kv
		}
	}
	return fit, nil
}

// rank is what one rank of a layout must hold.
type rank struct {
	memory           int64 // that it may use
	weights, scratch int64
	windows          []int   // per group
	block            []int64 // bytes of one block of each group; 0 without layers of that kind
}

// ranks gives every rank of a layout.
func (s Shapes) ranks(layout shard.Layout, b Budget) ([]rank, error) {
	var ranks []rank
	for stage := range layout.Pipeline {
		for tensor := range layout.Tensor {
			slice, err := shard.Cut(layout, s.Shape(), stage, tensor)
			if err != nil {
				return nil, err
			}
			ranks = append(ranks, s.rank(layout, slice, b))
		}
	}
	if len(ranks) == 0 {
		return nil, layout.Check(s.Shape())
	}
	return ranks, nil
}

func (s Shapes) rank(layout shard.Layout, slice shard.Slice, b Budget) rank {
	groups := s.Groups()
	r := rank{memory: b.memory(slice.Stage), windows: groups, block: make([]int64, len(groups))}
	share := func(bytes int64, part, whole int) int64 { return (bytes*int64(part) + int64(whole) - 1) / int64(whole) }
	for l := slice.Layers.Lo; l < slice.Layers.Hi; l++ {
		r.weights += share(s.AttentionBytes, slice.Heads.Len()+2*slice.KVHeads.Len(), s.Heads+2*s.KVHeads)
		r.weights += share(s.FFNBytes, slice.FFN.Len(), s.FFN)
		r.block[s.Group(l)] += 2 * kernels.BlockTokens * int64(slice.KVHeads.Len()) * int64(b.KVType.Bytes(s.HeadDim))
	}
	if slice.First() {
		r.weights += s.EmbeddingBytes
	}
	if slice.Last() {
		output := s.OutputBytes
		if s.Tied && !slice.First() {
			output = s.EmbeddingBytes
		}
		r.weights += share(output, slice.Vocab.Len(), s.Vocab)
		logits := 4 * int64(Wanted(b.MaxSequences))
		if slice.Rank == 0 {
			r.scratch += logits * int64(s.Vocab)
		}
		if slice.Ranks > 1 {
			r.scratch += logits * int64(slice.Vocab.Len())
		}
	}
	// A bound on the rest of a step in float32: the residual, and the widest rows
	// between two products.
	inner := max((slice.Heads.Len()+2*slice.KVHeads.Len())*s.HeadDim, 2*slice.FFN.Len())
	r.scratch += 4 * int64(b.MaxRows) * int64(2*s.Hidden+2*inner)
	// Rows from the stage before and to the next one: of all steps in flight, and one more.
	between := int64(layout.Pipeline+2) * 4 * int64(b.MaxRows) * int64(s.Hidden)
	if !slice.First() {
		r.scratch += between
	}
	if !slice.Last() {
		r.scratch += between
	}
	return r
}

func (r rank) room() int64 { return r.memory - r.weights - r.scratch }

// sequence is the memory of one sequence's keys and values.
func (r rank) sequence(b Budget, tokens int) int64 {
	var bytes int64
	for g, window := range r.windows {
		bytes += int64(kv.MostBlocks(tokens, window, b.MaxRows)) * r.block[g]
	}
	return bytes
}

// blocks is the memory of so many blocks of each group.
func (r rank) blocks(counts []int) int64 {
	var bytes int64
	for g, n := range counts {
		bytes += int64(n) * r.block[g]
	}
	return bytes
}

// longest is the longest sequence, in whole blocks and up to most tokens, that fits.
func (r rank) longest(b Budget, most int) int {
	low, high := 0, (most+kernels.BlockTokens-1)/kernels.BlockTokens
	for low < high {
		middle := (low + high + 1) / 2
		if r.sequence(b, middle*kernels.BlockTokens) <= r.room() {
			low = middle
		} else {
			high = middle - 1
		}
	}
	return min(most, low*kernels.BlockTokens)
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
