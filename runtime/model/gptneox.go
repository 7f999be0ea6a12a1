package model

import "manta/kernels"

// gptNeoX: Black et al. 2022: LayerNorm, biases, a rotation of part of each head,
// and (by default) attention and feed-forward side by side.
func gptNeoX(c *config) (*Spec, error) {
	s := base(c)
	s.KVHeads = s.Heads
	s.Norm, s.NormBias, s.Eps = kernels.LayerNorm, true, float32(c.float("layer_norm_eps", 1e-5))
	s.Activation, s.Gated = c.activation("hidden_act", "gelu"), false
	s.QKVBias = c.flag("attention_bias", true)
	s.OutBias, s.FFNBias = s.QKVBias, true
	s.ParallelSums = c.flag("use_parallel_residual", true)
	s.Fused = FusedHead
	theta, part := c.float("rotary_emb_base", 10000), c.float("rotary_pct", 0.25)
	s.setRope(c.rope(s.HeadDim, theta, part))
	const layer = "gpt_neox.layers.{l}."
	s.Names = Names{
		Embedding: "gpt_neox.embed_in", FinalNorm: "gpt_neox.final_layer_norm", Output: "embed_out",
		AttentionNorm: layer + "input_layernorm", FFNNorm: layer + "post_attention_layernorm",
		QKV: layer + "attention.query_key_value", Out: layer + "attention.dense",
		Up: layer + "mlp.dense_h_to_4h", Down: layer + "mlp.dense_4h_to_h",
		Ignored: []string{
			layer + "attention.bias", layer + "attention.masked_bias", layer + "attention.rotary_emb.inv_freq",
		},
	}
	return s, c.finish()
}
