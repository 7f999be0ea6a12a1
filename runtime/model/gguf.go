package model

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"manta/kernels"
	"manta/kernels/ref"
	"manta/runtime/weights"
)

// A metadata reads the keys "ARCHITECTURE.…" of a GGUF and notes which were read;
// of those that nobody read, finish refuses by name all that are not known to be
// without effect. The first error sticks.
type metadata struct {
	meta         weights.Metadata
	source       Source
	architecture string
	read         map[string]bool
	err          error
}

func describeGGUF(w Source) (*Spec, error) {
	m := &metadata{meta: w.Meta(), source: w, read: map[string]bool{}}
	m.architecture, _ = m.meta.String("general.architecture")
	describe, ok := ggufFamilies[m.architecture]
	if !ok {
		return nil, fmt.Errorf("%w: GGUF of architecture %q; this program knows %s", ErrUnsupported, m.architecture, known(ggufFamilies))
	}
	s := describe(m)
	return s, m.finish()
}

func (m *metadata) key(name string) string {
	m.read[m.architecture+"."+name] = true
	return m.architecture + "." + name
}

func (m *metadata) fail(kind error, name, format string, args ...any) {
	if m.err == nil {
		m.err = fmt.Errorf("%w: %s.%s: %s", kind, m.architecture, name, fmt.Sprintf(format, args...))
	}
}

// mustBeAbsent refuses a key of another type, such as a list with a number for
// each layer.
func (m *metadata) mustBeAbsent(name, want string) {
	if slices.Contains(m.meta.Keys(), m.architecture+"."+name) {
		m.fail(ErrUnsupported, name, "is not %s", want)
	}
}

// integer gives a number; without one, otherwise.
func (m *metadata) integer(name string, otherwise int) int {
	n, ok := m.meta.Uint(m.key(name))
	if !ok {
		m.mustBeAbsent(name, "a whole number")
		return otherwise
	}
	if n > sizeLimit {
		m.fail(ErrConfig, name, "is %d, more than %d", n, sizeLimit)
		return 1
	}
	return int(n)
}

func (m *metadata) size(name string, otherwise int) int {
	n := m.integer(name, otherwise)
	if n < 1 {
		m.fail(ErrConfig, name, "is missing or 0")
		return 1
	}
	return n
}

func (m *metadata) layers(name string) []Layer {
	n := m.size(name, 0)
	if n > maxLayers {
		m.fail(ErrConfig, name, "is %d, more than %d", n, maxLayers)
		n = 1
	}
	return make([]Layer, n)
}

func (m *metadata) float(name string, otherwise float64) float64 {
	if x, ok := m.meta.Float(m.key(name)); ok {
		return x
	}
	m.mustBeAbsent(name, "a number")
	return otherwise
}

func (m *metadata) text(name, otherwise string) string {
	if x, ok := m.meta.String(m.key(name)); ok {
		return x
	}
	m.mustBeAbsent(name, "text")
	return otherwise
}

func (m *metadata) flag(name string, otherwise bool) bool {
	if x, ok := m.meta.Bool(m.key(name)); ok {
		return x
	}
	m.mustBeAbsent(name, "true or false")
	return otherwise
}

// finish refuses what nobody has read.
func (m *metadata) finish() error {
	var unread []string
	for _, key := range m.meta.Keys() {
		name, ours := strings.CutPrefix(key, m.architecture+".")
		if ours && !m.read[key] && !slices.Contains(ggufEffectless, name) {
			if n, ok := m.meta.Uint(key); ok && n == 0 {
				continue // asks for nothing
			}
			unread = append(unread, key)
		}
	}
	if len(unread) > 0 {
		slices.Sort(unread)
		m.err = errors.Join(m.err, fmt.Errorf("%w: GGUF metadata asks for %s", ErrUnsupported, strings.Join(unread, ", ")))
	}
	return m.err
}

// ggufEffectless is read only.
var ggufEffectless = []string{"vocab_size", "tensor_data_layout", "rope.scaling.finetuned", "rope.scale_linear"}

// has tells whether the file holds a tensor.
func (m *metadata) has(tensor string) bool {
	_, ok := m.source.Tensor(tensor)
	return ok
}

// ggufBase reads what nearly all families share.
func ggufBase(m *metadata) *Spec {
	s := &Spec{
		Architecture: m.architecture,
		Hidden:       m.size("embedding_length", 0),
		Heads:        m.size("attention.head_count", 0),
		FFN:          m.size("feed_forward_length", 0),
		Context:      m.size("context_length", 0),
		Norm:         kernels.RMSNorm,
		Activation:   kernels.SiLU,
		Gated:        true,
		Tied:         !m.has("output.weight"),
		Names:        ggufNames(),
		Layers:       m.layers("block_count"),
	}
	if eps := m.float("attention.layer_norm_rms_epsilon", -1); eps >= 0 {
		s.Eps = float32(eps)
	} else {
		s.Norm, s.Eps = kernels.LayerNorm, float32(m.float("attention.layer_norm_epsilon", 1e-5))
	}
	table, ok := m.source.Tensor("token_embd.weight")
	if !ok {
		m.err = fmt.Errorf("%w: token_embd.weight is missing", ErrTensor)
	}
	s.Vocab = max(table.Rows, 1)
	s.KVHeads = m.size("attention.head_count_kv", s.Heads)
	s.HeadDim = m.size("attention.key_length", s.Hidden/s.Heads)
	if v := m.integer("attention.value_length", s.HeadDim); v != s.HeadDim {
		m.fail(ErrUnsupported, "attention.value_length", "values of %d beside keys of %d", v, s.HeadDim)
	}
	s.AttentionScale = inverseRoot(float64(s.HeadDim))
	s.AttentionCap = float32(m.float("attn_logit_softcapping", 0))
	s.LogitCap = float32(m.float("final_logit_softcapping", 0))
	return s
}

func ggufNames() Names {
	const layer = "blk.{l}."
	return Names{
		Embedding: "token_embd", FinalNorm: "output_norm", Output: "output",
		AttentionNorm: layer + "attn_norm", FFNNorm: layer + "ffn_norm",
		Q: layer + "attn_q", K: layer + "attn_k", V: layer + "attn_v", Out: layer + "attn_output",
		Gate: layer + "ffn_gate", Up: layer + "ffn_up", Down: layer + "ffn_down",
		Ignored: []string{
			"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight",
			layer + "attn_rot_embd.weight",
		},
	}
}

// rope reads the rotation of a GGUF.
func (m *metadata) rope(headDim int) Rope {
	trained := m.integer("context_length", 0)
	r := Rope{
		Kind: RopeDefault, Trained: trained,
		Dim:      m.integer("rope.dimension_count", headDim),
		Base:     m.float("rope.freq_base", 10000),
		Factor:   m.float("rope.scaling.factor", 1),
		Original: m.integer("rope.scaling.original_context_length", trained),
	}
	attention := m.float("rope.scaling.attn_factor", 1)
	switch kind := m.text("rope.scaling.type", "none"); kind {
	case "none", "longrope": // longrope shows in its tensors
	case "linear":
		r.Kind = RopeLinear
	case "yarn":
		r.Kind = RopeYarn
		r.BetaFast, r.BetaSlow = m.float("rope.scaling.yarn_beta_fast", 0), m.float("rope.scaling.yarn_beta_slow", 0)
		r.Attention = attention * yarnScale(r.Factor)
	default:
		m.fail(ErrUnsupported, "rope.scaling.type", "%q", kind)
	}
	for _, f := range m.vector("rope_freqs.weight") {
		r.Divisors = append(r.Divisors, float32(f))
	}
	if r.Long = m.vector("rope_factors_long.weight"); r.Long != nil {
		r.Kind, r.Attention, r.Short = RopeLongRope, attention, m.vector("rope_factors_short.weight")
	}
	if err := r.check(); err != nil && m.err == nil {
		m.err = err
	}
	return r
}

// vector gives the values of a tensor of one dimension, or nil.
func (m *metadata) vector(name string) []float64 {
	t, ok := m.source.Tensor(name)
	if !ok || t.Rows != 1 {
		return nil
	}
	narrow := make([]float32, t.Cols)
	ref.Dequantize(t, 0, narrow)
	wide := make([]float64, len(narrow))
	for i, v := range narrow {
		wide[i] = float64(v)
	}
	return wide
}
