package model

import (
	"math"

	"manta/kernels"
)

// base reads what nearly all configurations share, with Llama's defaults: RMS
// norms before each part, rotary positions, grouped queries, a gated layer.
func base(c *config) *Spec {
	s := &Spec{
		Architecture: c.text("model_type", "llama"),
		Hidden:       c.size("hidden_size", 0),
		Heads:        c.size("num_attention_heads", 0),
		FFN:          c.size("intermediate_size", 0),
		Vocab:        c.size("vocab_size", 0),
		Context:      c.size("max_position_embeddings", 0),
		Tied:         c.flag("tie_word_embeddings", false),
		Norm:         kernels.RMSNorm,
		Eps:          float32(c.float("rms_norm_eps", 1e-6)),
		Gated:        true,
		Names:        llamaNames(),
		Layers:       c.layers("num_hidden_layers"),
	}
	s.KVHeads = c.size("num_key_value_heads", s.Heads)
	s.HeadDim = c.size("head_dim", s.Hidden/s.Heads)
	s.AttentionScale = inverseRoot(float64(s.HeadDim))
	return s
}

func inverseRoot(x float64) float32 { return float32(1 / math.Sqrt(x)) }

func llamaNames() Names {
	const layer = "model.layers.{l}."
	return Names{
		Embedding: "model.embed_tokens", FinalNorm: "model.norm", Output: "lm_head",
		AttentionNorm: layer + "input_layernorm", FFNNorm: layer + "post_attention_layernorm",
		Q: layer + "self_attn.q_proj", K: layer + "self_attn.k_proj", V: layer + "self_attn.v_proj",
		Out:  layer + "self_attn.o_proj",
		Gate: layer + "mlp.gate_proj", Up: layer + "mlp.up_proj", Down: layer + "mlp.down_proj",
		Ignored: []string{layer + "self_attn.rotary_emb.inv_freq"},
	}
}

// llama: Touvron et al. 2023; Grattafiori et al. 2024.
func llama(c *config) (*Spec, error) {
	s := base(c)
	s.Activation = c.activation("hidden_act", "silu")
	s.QKVBias = c.flag("attention_bias", false)
	s.OutBias = s.QKVBias
	s.FFNBias = c.flag("mlp_bias", false)
	s.setRope(c.rope(s.HeadDim, 10000, 1))
	return s, c.finish()
}

// mistral: Jiang et al. 2023. Every layer has the window, where there is one.
func mistral(c *config) (*Spec, error) {
	s := base(c)
	s.Activation = c.activation("hidden_act", "silu")
	s.setRope(c.rope(s.HeadDim, 10000, 1))
	s.setWindows(c, c.integer("sliding_window", 0), func(int) bool { return true })
	return s, c.finish()
}

// setRope gives every layer the same rotation.
func (s *Spec) setRope(r Rope) {
	s.Ropes = []Rope{r}
	s.Context = stretched(s.Context, r)
}

// setWindows gives a window to the layers that layer_types names, or, where the
// configuration has none, to those that slides picks.
func (s *Spec) setWindows(c *config, window int, slides func(layer int) bool) {
	var kinds []string
	given := c.decode("layer_types", &kinds)
	if given && len(kinds) != len(s.Layers) {
		c.fail(ErrConfig, "layer_types", "names %d layers of %d", len(kinds), len(s.Layers))
		return
	}
	for l := range s.Layers {
		sliding := slides(l) && window > 0
		if given {
			switch kinds[l] {
			case "sliding_attention":
				sliding = true
			case "full_attention":
				sliding = false
			default:
				c.fail(ErrUnsupported, "layer_types", "%q", kinds[l])
			}
		}
		if sliding && window < 1 {
			c.fail(ErrConfig, "sliding_window", "is missing, and layer %d slides", l)
		}
		if sliding {
			s.Layers[l].Window = window
		}
	}
}
