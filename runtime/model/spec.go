package model

import (
	"errors"
	"strconv"
	"strings"

	"manta/kernels"
	"manta/parallel/shard"
	"manta/runtime/plan"
)

// Errors that Describe and Load wrap; the text names the key or tensor.
var (
	// ErrUnsupported: the model asks for something that is not done here.
	ErrUnsupported = errors.New("model: not supported")
	// ErrConfig: a key is missing, or its value makes no sense.
	ErrConfig = errors.New("model: bad configuration")
	// ErrTensor: a tensor is missing or has another shape than the configuration says.
	ErrTensor = errors.New("model: bad tensor")
)

// A Spec says what a decoder is made of. An architecture's file fills it in from
// the model's configuration; Load and Forward run any Spec.
type Spec struct {
	Architecture string // as the model calls itself: "llama", "qwen3", …
	Hidden       int
	Heads        int
	KVHeads      int
	HeadDim      int
	FFN          int // inner width of a dense feed-forward layer
	Vocab        int
	Context      int // positions that the model is made for
	Layers       []Layer
	Names        Names
	Tied         bool // the output matrix is the embedding

	EmbedScale float32 // 0: 1

	Norm      kernels.NormKind
	Eps       float32
	NormBias  bool
	NormShift float32 // added to each norm weight as stored: 1 for Gemma

	// The attention.
	Fused          Fused
	QKVBias        bool
	OutBias        bool
	QKNorm         QKNorm
	Ropes          []Rope
	Interleaved    bool // rotates pairs (2i, 2i+1)
	AttentionScale float32
	AttentionCap   float32 // soft cap of scores; 0: none

	// The feed-forward layer.
	Activation   kernels.Activation
	Gated        bool
	FFNBias      bool
	Experts      Experts // of the layers that have them
	Transposed   bool    // weights of layers are stored input × output (GPT-2's Conv1D)
	ParallelSums bool    // attention and feed-forward read the same input (GPT-NeoX)

	LogitCap float32 // soft cap of logits; 0: none

	stored stored
}

// A Layer is what may differ from one layer to the next.
type Layer struct {
	Window int // tokens seen; 0: all
	Rope   int // index of Spec.Ropes; NoRope: none
	Sparse bool
}

// NoRope marks a layer that rotates nothing.
const NoRope = -1

// Experts sizes a mixture of experts.
type Experts struct {
	Count, Used int
	FFN         int  // inner width of one expert
	Renormalise bool // the chosen weights add to one
}

// QKNorm says how queries and keys are normalised before the rotation.
type QKNorm uint8

const (
	NoQKNorm QKNorm = iota
	PerHead
	AcrossHeads
)

// Fused says how queries, keys and values are stored.
type Fused uint8

const (
	Separate  Fused = iota
	FusedQKV        // all q rows, all k rows, all v rows
	FusedHead       // head by head its q, k and v rows (GPT-NeoX)
)

// Names gives each tensor's name without ".weight" and ".bias". "{l}" stands for
// the layer, "{e}" for the expert; a name of experts without "{e}" is one tensor
// that stacks them. Empty: the model has none.
type Names struct {
	Embedding, Positions, FinalNorm, Output string

	AttentionNorm, AttentionPostNorm string // before attention; on its output
	FFNNorm, FFNPostNorm             string
	Q, K, V, QKV, Out                string
	QNorm, KNorm                     string
	Gate, Up, GateUp, Down           string
	Router                           string
	ExpertGate, ExpertUp, ExpertDown string

	// Ignored are tensors that carry nothing this program needs, such as a stored
	// causal mask. "{l}" works here too.
	Ignored []string
}

// at fills in the layer and the expert.
func at(name string, layer, expert int) string {
	name = strings.ReplaceAll(name, "{l}", strconv.Itoa(layer))
	return strings.ReplaceAll(name, "{e}", strconv.Itoa(expert))
}

// stored is what Describe learns from the tensors.
type stored struct {
	embedding, output int64
	attention, ffn    int64 // of the largest layer
	kind              kernels.DType
	unit              int
}

// inner is the feed-forward width that tensor ranks divide.
func (s *Spec) inner() int {
	for _, l := range s.Layers {
		if l.Sparse {
			return s.Experts.FFN
		}
	}
	return s.FFN
}

// Shapes is what placement needs.
func (s *Spec) Shapes() plan.Shapes {
	p := plan.Shapes{
		Architecture: s.Architecture,
		Layers:       len(s.Layers), Hidden: s.Hidden, Heads: s.Heads, KVHeads: s.KVHeads, HeadDim: s.HeadDim,
		FFN: s.inner(), Vocab: s.Vocab, Context: s.Context, Tied: s.Tied,
		EmbeddingBytes: s.stored.embedding, OutputBytes: s.stored.output,
		AttentionBytes: s.stored.attention, FFNBytes: s.stored.ffn,
		WeightType: s.stored.kind, Unit: s.stored.unit, WholeAttention: s.WholeAttention(),
	}
	for _, l := range s.Layers {
		p.Windows = append(p.Windows, l.Window)
		if l.Sparse {
			p.Experts, p.ExpertsUsed = s.Experts.Count, s.Experts.Used
		}
	}
	return p
}

// WholeAttention tells whether every tensor rank computes all heads: a norm across
// heads needs them all, and one more collective inside each layer would cost more.
func (s *Spec) WholeAttention() bool { return s.QKNorm == AcrossHeads }

// Shape is what the cut into slices depends on.
func (s *Spec) Shape() shard.Shape { return s.Shapes().Shape() }
