// Package plan computes, from a model's shapes, a layout and a device's figures,
// what serving it takes: bytes, blocks, the time of a step. It reads no file and
// touches no device, so heads, `manta plan` and simulations use it alike.
package plan

import (
	"manta/kernels"
	"manta/parallel/shard"
)

// Shapes is what placement must know of a model. It is made once, where the
// model's files are, and travels with the deployment. Byte counts are those of
// the stored types.
type Shapes struct {
	Architecture string // "llama", "qwen3", …
	Layers       int
	Hidden       int
	Heads        int
	KVHeads      int
	HeadDim      int
	FFN          int // inner width of one feed-forward layer or expert
	Experts      int // 0: dense
	ExpertsUsed  int
	Vocab        int
	Context      int  // max_position_embeddings
	Tied         bool // embedding and output matrix are one
	// Windows[l] is the attention window of layer l in tokens, 0: all. Layers of
	// equal windows form one block group; Groups lists the windows in the order
	// of first use.
	Windows []int
	// Bytes as stored.
	EmbeddingBytes int64
	OutputBytes    int64 // 0 when tied
	AttentionBytes int64 // of one layer
	FFNBytes       int64 // of one layer, all experts
	WeightType     kernels.DType
	// Unit is the number of columns that a tensor slice of the feed-forward layer
	// must be a multiple of (quantization blocks).
	Unit int
	// WholeAttention: every tensor rank computes all heads (norms across heads).
	WholeAttention bool
}

// Shape is what the cut of the model depends on.
func (s Shapes) Shape() shard.Shape {
	return shard.Shape{
		Layers: s.Layers, Heads: s.Heads, KVHeads: s.KVHeads, HeadDim: s.HeadDim, FFN: s.FFN,
		Vocab: s.Vocab, Unit: s.Unit, WholeAttention: s.WholeAttention,
	}
}

// Groups gives the distinct windows in the order of first use.
func (s Shapes) Groups() []int {
	var groups []int
	for _, w := range s.Windows {
		if s.group(groups, w) < 0 {
			groups = append(groups, w)
		}
	}
	return groups
}

// Group gives the index in Groups of layer l.
func (s Shapes) Group(l int) int { return s.group(s.Groups(), s.Windows[l]) }

func (s Shapes) group(groups []int, window int) int {
	for i, w := range groups {
		if w == window {
			return i
		}
	}
	return -1
}
