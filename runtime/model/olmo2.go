package model

// olmo2: OLMo et al. 2024, §3.1: norms follow attention and feed-forward instead
// of coming before, and queries and keys are normalised across all heads.
func olmo2(c *config) (*Spec, error) {
	s := base(c)
	s.Activation = c.activation("hidden_act", "silu")
	s.Eps = float32(c.float("rms_norm_eps", 1e-5))
	s.QKVBias = c.flag("attention_bias", false)
	s.OutBias = s.QKVBias
	s.QKNorm = AcrossHeads
	const layer = "model.layers.{l}."
	s.Names.AttentionNorm, s.Names.AttentionPostNorm = "", layer+"post_attention_layernorm"
	s.Names.FFNNorm, s.Names.FFNPostNorm = "", layer+"post_feedforward_layernorm"
	s.Names.QNorm, s.Names.KNorm = layer+"self_attn.q_norm", layer+"self_attn.k_norm"
	s.setRope(c.rope(s.HeadDim, 10000, 1))
	return s, c.finish()
}
