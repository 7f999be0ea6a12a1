package model

// phi3: Abdin et al. 2024; Llama with fused weights, longrope, and a window in
// some sizes.
func phi3(c *config) (*Spec, error) {
	s := base(c)
	s.Activation = c.activation("hidden_act", "silu")
	s.Eps = float32(c.float("rms_norm_eps", 1e-5))
	c.must("attention_bias", false)
	c.must("full_attn_mod", 1)
	c.must("interpolate_factor", 1)
	const layer = "model.layers.{l}."
	s.Fused = FusedQKV
	s.Names.QKV = layer + "self_attn.qkv_proj"
	s.Names.GateUp = layer + "mlp.gate_up_proj"
	s.setRope(c.rope(s.HeadDim, 10000, 1))
	s.setWindows(c, c.integer("sliding_window", 0), func(int) bool { return true })
	return s, c.finish()
}
