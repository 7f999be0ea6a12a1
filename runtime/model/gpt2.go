package model

import "manta/kernels"

// gpt2: Radford et al. 2019: LayerNorm, biases, learned positions, and weights
// stored input × output.
func gpt2(c *config) (*Spec, error) {
	hidden := c.size("n_embd", 0)
	heads := c.size("n_head", 0)
	s := &Spec{
		Architecture: c.text("model_type", "gpt2"),
		Hidden:       hidden, Heads: heads, KVHeads: heads, HeadDim: hidden / heads,
		FFN:     c.size("n_inner", 4*hidden),
		Vocab:   c.size("vocab_size", 0),
		Context: c.size("n_positions", c.integer("n_ctx", 0)),
		Tied:    c.flag("tie_word_embeddings", true),
		Norm:    kernels.LayerNorm, NormBias: true, Eps: float32(c.float("layer_norm_epsilon", 1e-5)),
		Fused: FusedQKV, QKVBias: true, OutBias: true, FFNBias: true,
		AttentionScale: 1,
		Activation:     c.activation("activation_function", "gelu_new"),
		Transposed:     true,
		Layers:         c.layers("n_layer"),
	}
	if c.flag("scale_attn_weights", true) {
		s.AttentionScale = inverseRoot(float64(s.HeadDim))
	}
	c.must("scale_attn_by_inverse_layer_idx", false)
	c.must("add_cross_attention", false)
	c.read["reorder_and_upcast_attn"] = true // a matter of precision; sums are float32
	c.read["n_ctx"] = true
	for l := range s.Layers {
		s.Layers[l].Rope = NoRope
	}
	prefix := "" // the first published files have none
	if c.hasTensor("transformer.wte.weight") {
		prefix = "transformer."
	}
	layer := prefix + "h.{l}."
	s.Names = Names{
		Embedding: prefix + "wte", Positions: prefix + "wpe", FinalNorm: prefix + "ln_f", Output: "lm_head",
		AttentionNorm: layer + "ln_1", FFNNorm: layer + "ln_2",
		QKV: layer + "attn.c_attn", Out: layer + "attn.c_proj",
		Up: layer + "mlp.c_fc", Down: layer + "mlp.c_proj",
		Ignored: []string{layer + "attn.bias", layer + "attn.masked_bias"},
	}
	return s, c.finish()
}
