package model

// qwen2: Yang et al. 2024; biases on queries, keys and values. Where
// use_sliding_window is set, layers from max_window_layers on have the window.
func qwen2(c *config) (*Spec, error) {
	s := base(c)
	s.Activation = c.activation("hidden_act", "silu")
	s.QKVBias = true
	s.setRope(c.rope(s.HeadDim, 10000, 1))
	s.qwenWindows(c)
	return s, c.finish()
}

// qwen3: Yang et al. 2025; a norm on each head's query and key.
func qwen3(c *config) (*Spec, error) {
	s := qwen3Base(c)
	return s, c.finish()
}

func qwen3Base(c *config) *Spec {
	s := base(c)
	s.Activation = c.activation("hidden_act", "silu")
	s.QKVBias = c.flag("attention_bias", false)
	s.OutBias = s.QKVBias
	s.QKNorm = PerHead
	s.Names.QNorm = "model.layers.{l}.self_attn.q_norm"
	s.Names.KNorm = "model.layers.{l}.self_attn.k_norm"
	s.setRope(c.rope(s.HeadDim, 10000, 1))
	s.qwenWindows(c)
	return s
}

func (s *Spec) qwenWindows(c *config) {
	window, first := c.integer("sliding_window", 0), c.integer("max_window_layers", 28)
	if !c.flag("use_sliding_window", false) {
		window = 0
	}
	s.setWindows(c, window, func(l int) bool { return l >= first })
}

// qwen3MoE: Qwen3 with experts in every decoder_sparse_step-th layer.
func qwen3MoE(c *config) (*Spec, error) {
	s := qwen3Base(c)
	s.Experts = Experts{
		Count:       c.size("num_experts", c.integer("num_local_experts", 0)),
		Used:        c.size("num_experts_per_tok", 8),
		FFN:         c.size("moe_intermediate_size", 0),
		Renormalise: c.flag("norm_topk_prob", false),
	}
	const layer = "model.layers.{l}.mlp."
	s.Names.Router = layer + "gate"
	s.Names.ExpertGate = layer + "experts.{e}.gate_proj"
	s.Names.ExpertUp = layer + "experts.{e}.up_proj"
	s.Names.ExpertDown = layer + "experts.{e}.down_proj"
	step := c.size("decoder_sparse_step", 1)
	for l := range s.Layers {
		s.Layers[l].Sparse = (l+1)%step == 0
	}
	var dense []int
	c.decode("mlp_only_layers", &dense)
	for _, l := range dense {
		if l >= 0 && l < len(s.Layers) {
			s.Layers[l].Sparse = false
		}
	}
	return s, c.finish()
}
