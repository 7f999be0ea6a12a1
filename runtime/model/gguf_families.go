package model

import (
	"math"

	"manta/kernels"
)

// ggufFamilies gives the architecture of each general.architecture, with the
// tensors as llama.cpp's converter writes them. Read only.
var ggufFamilies = map[string]func(*metadata) *Spec{
	"gemma2":   ggufGemma2,
	"gemma3":   ggufGemma3,
	"gpt2":     ggufGPT2,
	"gptneox":  ggufGPTNeoX,
	"llama":    ggufLlama,
	"olmo2":    ggufOLMo2,
	"phi3":     ggufPhi3,
	"qwen2":    ggufQwen2,
	"qwen3":    ggufQwen3,
	"qwen3moe": ggufQwen3MoE,
}

// ggufLlama: its queries and keys are stored permuted, so that pairs (2i, 2i+1)
// turn (llama.cpp: LLAMA_ROPE_TYPE_NORM). Mistral and Mixtral have this name too.
func ggufLlama(m *metadata) *Spec {
	s := ggufBase(m)
	s.Interleaved = true
	s.QKVBias = m.has("blk.0.attn_q.bias")
	s.OutBias = m.has("blk.0.attn_output.bias")
	s.FFNBias = m.has("blk.0.ffn_up.bias")
	s.ggufRope(m)
	s.ggufWindow(m)
	if m.integer("expert_count", 0) > 0 {
		s.ggufExperts(m)
	}
	return s
}

func ggufQwen2(m *metadata) *Spec {
	s := ggufBase(m)
	s.QKVBias = true
	s.ggufRope(m)
	return s
}

func ggufQwen3(m *metadata) *Spec {
	s := ggufBase(m)
	s.QKVBias = m.has("blk.0.attn_q.bias")
	s.ggufQKNorm(PerHead)
	s.ggufRope(m)
	return s
}

func ggufQwen3MoE(m *metadata) *Spec {
	s := ggufQwen3(m)
	s.ggufExperts(m)
	return s
}

func ggufOLMo2(m *metadata) *Spec {
	s := ggufBase(m)
	s.ggufQKNorm(AcrossHeads)
	s.ggufPostNorms()
	s.Names.AttentionNorm, s.Names.FFNNorm = "", ""
	s.ggufRope(m)
	return s
}

// ggufPhi3: "ffn_up" holds gate and up.
func ggufPhi3(m *metadata) *Spec {
	s := ggufBase(m)
	s.Fused = FusedQKV
	s.Names.QKV = "blk.{l}.attn_qkv"
	s.Names.GateUp = s.Names.Up
	s.ggufRope(m)
	s.ggufWindow(m)
	return s
}

// ggufGemmaBase: the converter has added the one to the norms' weights.
func ggufGemmaBase(m *metadata) *Spec {
	s := ggufBase(m)
	s.Activation = kernels.GELUTanh
	s.EmbedScale = float32(math.Sqrt(float64(s.Hidden)))
	s.ggufPostNorms()
	return s
}

// The 27B sizes alone scale by hidden/heads in place of the head's size; the
// number of layers tells them, as in llama.cpp.
const (
	gemma2Large = 46
	gemma3Large = 62
)

func ggufGemma2(m *metadata) *Spec {
	s := ggufGemmaBase(m)
	if len(s.Layers) == gemma2Large {
		s.AttentionScale = inverseRoot(float64(s.Hidden) / float64(s.Heads))
	}
	s.ggufRope(m)
	window := m.integer("attention.sliding_window", 4096)
	for l := 0; l < len(s.Layers); l += 2 {
		s.Layers[l].Window = window
	}
	return s
}

func ggufGemma3(m *metadata) *Spec {
	s := ggufGemmaBase(m)
	s.ggufQKNorm(PerHead)
	if len(s.Layers) == gemma3Large {
		s.AttentionScale = inverseRoot(float64(s.Hidden) / float64(s.Heads))
	}
	full := m.rope(s.HeadDim) // its context_length is that after stretching
	s.Ropes = []Rope{full, {Kind: RopeDefault, Dim: full.Dim, Base: m.float("rope.freq_base_swa", 10000)}}
	window, slides := m.integer("attention.sliding_window", 1024), m.slides(len(s.Layers), 6)
	for l := range s.Layers {
		if slides[l] {
			s.Layers[l].Window, s.Layers[l].Rope = window, 1
		}
	}
	return s
}

// slides tells which layers have the window: all but every n-th, or as the file
// lists them.
func (m *metadata) slides(layers, n int) []bool {
	const name = "attention.sliding_window_pattern"
	if list, ok := m.meta.Bools(m.key(name)); ok && len(list) >= layers {
		return list
	}
	n = m.size(name, n)
	list := make([]bool, layers)
	for l := range list {
		list[l] = (l+1)%n != 0
	}
	return list
}

func ggufGPTBase(m *metadata) *Spec {
	s := ggufBase(m)
	s.NormBias, s.Gated, s.Fused = true, false, FusedQKV
	s.QKVBias, s.OutBias, s.FFNBias = true, true, true
	s.Names.QKV = "blk.{l}.attn_qkv"
	return s
}

// ggufGPT2: the converter has transposed its weights.
func ggufGPT2(m *metadata) *Spec {
	s := ggufGPTBase(m)
	s.Activation = kernels.GELUTanh
	s.Names.Positions = "position_embd"
	for l := range s.Layers {
		s.Layers[l].Rope = NoRope
	}
	return s
}

// ggufGPTNeoX: the converter has brought all queries before all keys and values.
func ggufGPTNeoX(m *metadata) *Spec {
	s := ggufGPTBase(m)
	s.Activation = kernels.GELU
	s.ParallelSums = m.flag("use_parallel_residual", true)
	s.ggufRope(m)
	return s
}

func (s *Spec) ggufRope(m *metadata) { s.setRope(m.rope(s.HeadDim)) }

// ggufWindow gives every layer the window, where there is one.
func (s *Spec) ggufWindow(m *metadata) {
	window := m.integer("attention.sliding_window", 0)
	for l := range s.Layers {
		s.Layers[l].Window = window
	}
}

func (s *Spec) ggufQKNorm(kind QKNorm) {
	s.QKNorm = kind
	s.Names.QNorm, s.Names.KNorm = "blk.{l}.attn_q_norm", "blk.{l}.attn_k_norm"
}

func (s *Spec) ggufPostNorms() {
	s.Names.AttentionPostNorm, s.Names.FFNPostNorm = "blk.{l}.post_attention_norm", "blk.{l}.post_ffw_norm"
}

// ggufExperts: a layer's experts are stacked in one tensor of each kind. llama.cpp
// renormalises in the families that come through here.
func (s *Spec) ggufExperts(m *metadata) {
	s.Experts = Experts{
		Count:       m.size("expert_count", 0),
		Used:        m.size("expert_used_count", 0),
		FFN:         m.size("expert_feed_forward_length", s.FFN),
		Renormalise: m.flag("expert_weights_norm", true),
	}
	s.Names.Router = "blk.{l}.ffn_gate_inp"
	s.Names.ExpertGate, s.Names.ExpertUp, s.Names.ExpertDown = "blk.{l}.ffn_gate_exps", "blk.{l}.ffn_up_exps", "blk.{l}.ffn_down_exps"
	for l := range s.Layers {
		s.Layers[l].Sparse = m.has(at(s.Names.Router, l, 0) + ".weight")
	}
}
