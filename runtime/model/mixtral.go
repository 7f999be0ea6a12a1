package model

// mixtral: Jiang et al. 2024; every layer has experts, the chosen ones' weights
// add to one.
func mixtral(c *config) (*Spec, error) {
	s := base(c)
	s.Activation = c.activation("hidden_act", "silu")
	s.setRope(c.rope(s.HeadDim, 1e6, 1))
	s.setWindows(c, c.integer("sliding_window", 0), func(int) bool { return true })
	s.Experts = Experts{
		Count: c.size("num_local_experts", c.integer("num_experts", 8)),
		Used:  c.size("num_experts_per_tok", 2),
		FFN:   s.FFN, Renormalise: true,
	}
	const layer = "model.layers.{l}.block_sparse_moe."
	s.Names.Router = layer + "gate"
	s.Names.ExpertGate = layer + "experts.{e}.w1"
	s.Names.ExpertDown = layer + "experts.{e}.w2"
	s.Names.ExpertUp = layer + "experts.{e}.w3"
	for l := range s.Layers {
		s.Layers[l].Sparse = true
	}
	return s, c.finish()
}
