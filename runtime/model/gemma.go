package model

import (
	"math"

	"manta/kernels"
)

// gemmaBase reads what Gemma 2 and 3 share: norms before and after each part,
// whose weights are stored as offsets from one, and scaled embeddings.
func gemmaBase(c *config) *Spec {
	s := base(c)
	s.HeadDim = c.size("head_dim", 256)
	s.Tied = c.flag("tie_word_embeddings", true)
	key := "hidden_activation"
	if !c.has(key) {
		key = "hidden_act"
	}
	s.Activation = c.activation(key, "gelu_pytorch_tanh")
	if s.Activation == kernels.GELU {
		s.Activation = kernels.GELUTanh // the first configurations named the wrong one
	}
	c.read["hidden_act"] = true
	s.NormShift = 1
	s.EmbedScale = float32(math.Sqrt(float64(s.Hidden)))
	s.AttentionScale = inverseRoot(c.float("query_pre_attn_scalar", 256))
	s.AttentionCap = float32(c.float("attn_logit_softcapping", 0))
	s.LogitCap = float32(c.float("final_logit_softcapping", 0))
	s.QKVBias = c.flag("attention_bias", false)
	s.OutBias = s.QKVBias
	c.must("use_bidirectional_attention", false)
	const layer = "model.layers.{l}."
	s.Names.AttentionPostNorm = layer + "post_attention_layernorm"
	s.Names.FFNNorm = layer + "pre_feedforward_layernorm"
	s.Names.FFNPostNorm = layer + "post_feedforward_layernorm"
	return s
}

// gemma2: Gemma Team 2024, §2: soft caps, and a window in every other layer.
func gemma2(c *config) (*Spec, error) {
	s := gemmaBase(c)
	// Missing is the usual cap, null is none.
	if c.values["attn_logit_softcapping"] == nil {
		s.AttentionCap = 50
	}
	if c.values["final_logit_softcapping"] == nil {
		s.LogitCap = 30
	}
	s.setRope(c.rope(s.HeadDim, 10000, 1))
	s.setWindows(c, c.integer("sliding_window", 4096), func(l int) bool { return l%2 == 0 })
	return s, c.finish()
}

// gemma3: Gemma Team 2025, §2: five layers with a window for one without, each
// kind with a rotation of its own, norms on queries and keys.
func gemma3(c *config) (*Spec, error) {
	s := gemmaBase(c)
	s.QKNorm = PerHead
	s.Names.QNorm = "model.layers.{l}.self_attn.q_norm"
	s.Names.KNorm = "model.layers.{l}.self_attn.k_norm"
	pattern := c.size("sliding_window_pattern", c.integer("_sliding_window_pattern", 6))
	s.setWindows(c, c.integer("sliding_window", 4096), func(l int) bool { return (l+1)%pattern != 0 })

	theta, local := c.float("rope_theta", 1e6), c.float("rope_local_base_freq", 1e4)
	full, sliding := c.object("rope_scaling"), (*config)(nil)
	if p := c.object("rope_parameters"); p != nil {
		full, sliding = p.object("full_attention"), p.object("sliding_attention")
		if full == nil && sliding == nil {
			full = p
		} else {
			p.finish()
		}
	}
	s.Ropes = []Rope{c.ropeFrom(full, s.HeadDim, theta, 1), c.ropeFrom(sliding, s.HeadDim, local, 1)}
	for l := range s.Layers {
		if s.Layers[l].Window > 0 {
			s.Layers[l].Rope = 1
		}
	}
	return s, c.finish()
}
