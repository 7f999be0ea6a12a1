package kernels

// NormKind names a normalisation.
type NormKind uint8

const (
	RMSNorm   NormKind = iota // Zhang & Sennrich 2019, eq. 4
	LayerNorm                 // Ba, Kiros & Hinton 2016, eq. 4
)

// A Norm is a normalisation with its parameters. Weights that a model stores as
// an offset from one (Gemma) are loaded with the one added.
type Norm struct {
	Kind   NormKind
	Weight Vector
	Bias   Vector // nil: none
	Eps    float32
}

// Activation names a nonlinearity of a feed-forward layer.
type Activation uint8

const (
	Identity Activation = iota
	SiLU
	GELU     // with erf
	GELUTanh // Hendrycks & Gimpel 2016, §2, the tanh form
)

// Embed looks tokens up: out = Scale · Table[token] (+ Positions[position]).
type Embed struct {
	Table     Weight
	Scale     float32 // 1 where the model has none
	Positions Weight  // learned positions, or nil
}

// Linear computes y = norm(x) · Weightᵀ + Bias, then
//
//	out = act(y), or with Gated, out[i] = act(y[i]) · y[i+n], n = rows/2,
//
// and adds that to out with Accumulate. Softcap c > 0: c·tanh(y/c).
type Linear struct {
	Weight     Weight
	Bias       Vector // nil: none
	Norm       *Norm  // nil: none
	Activation Activation
	Gated      bool
	Accumulate bool
	Softcap    float32
	// Attention is what reads out next, and alone: a device may turn the heads and store
	// keys and values as it makes them. nil: anything may read out.
	Attention *Attention
}

// Attention reads qkv = [q heads | k heads | v heads] of each row, applies the
// norms and the rotation, stores k and v in the batch's slots, and attends over
// what is stored: causal, softmax(Scale · q·kᵀ) · v.
type Attention struct {
	Cache   Cache
	Layer   int // within Cache
	Group   int // which of Span.Blocks
	Heads   int // query heads of this rank
	KVHeads int
	HeadDim int
	// HeadMap gives the KV head of each query head; slices need not be even.
	HeadMap []int32
	Scale   float32
	Softcap float32 // c > 0: scores become c·tanh(score/c)
	Window  int     // w > 0: position p sees (p-w, p]
	// QNorm and KNorm come before the rotation: over each head, or with
	// NormAcross over all heads of the row at once (OLMo 2).
	QNorm, KNorm *Norm
	NormAcross   bool
	Rope         RopeTable // nil: none
	// Interleaved rotates pairs (2i, 2i+1) in place of (i, i+Dim/2).
	Interleaved bool
}

// Experts routes each row to TopK of the feed-forward experts and adds their
// outputs, weighed by the router's softmax over all experts: Shazeer et al.
// 2017, §2.1, as in Mixtral (Jiang et al. 2024, §2.1).
type Experts struct {
	Norm        *Norm
	Router      Weight
	GateUp      []Weight // per expert: gate rows, then up rows
	Down        []Weight
	TopK        int
	Renormalise bool // the chosen weights are scaled to add to one
	Activation  Activation
	Accumulate  bool
}

// A SampleRow asks for one token of one sequence.
type SampleRow struct {
	Row  int32 // row of logits
	Seat int32 // sampler state: counts for penalties; -1 with Target
	// Target ≥ 0 scores that token in place of drawing one.
	Target int32

	Temperature       float32 // 0: greedy
	TopK              int32   // ≤ 0: all
	TopP, MinP        float32 // 1 and 0: all
	PresencePenalty   float32
	FrequencyPenalty  float32
	RepetitionPenalty float32 // 1: none
	Bias              []TokenBias
	Banned            []int32  // may not be drawn (min_tokens)
	Mask              []uint64 // bit t allows token t; nil allows all

	// The random number depends on these alone.
	Seed     uint64
	Choice   uint32
	Position uint32

	// TopLogprobs < 0: no logprob; n ≥ 0: the token's and those of the n best.
	TopLogprobs int32
}

// TokenBias is added to a token's logit.
type TokenBias struct {
	Token int32
	Bias  float32
}

// Sampled answers a SampleRow. Logprobs are of the model's own distribution,
// before temperature, penalties and bias.
type Sampled struct {
	Token   int32
	Logprob float32
	Rank    int32 // 1: the most likely
	Top     []TokenLogprob
}

// TokenLogprob is a token with the logarithm of its probability.
type TokenLogprob struct {
	Token   int32
	Logprob float32
}

// Uniform gives the random number in [0, 1) of a token: a function of (seed,
// choice, position) alone, by SplitMix64's finaliser (Steele, Lea & Flood 2014,
// fig. 16) applied to each in turn.
func Uniform(seed uint64, choice, position uint32) float32 {
	z := mix(mix(seed+0x9e3779b97f4a7c15) + uint64(choice)<<32 + uint64(position))
	return float32(z>>40) / (1 << 24)
}

func mix(z uint64) uint64 {
	z ^= z >> 30
	z *= 0xbf58476d1ce4e5b9
	z ^= z >> 27
	z *= 0x94d049bb133111eb
	return z ^ z>>31
}
