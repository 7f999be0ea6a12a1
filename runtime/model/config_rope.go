package model

// rope reads the rotation that a config.json asks for, in the old form
// (rope_theta and rope_scaling beside each other) or the new (rope_parameters).
// defaults are those of the architecture where the file is silent.
func (c *config) rope(headDim int, theta, partial float64) Rope {
	theta = c.float("rope_theta", theta)
	partial = c.float("partial_rotary_factor", partial)
	old, parameters := c.object("rope_scaling"), c.object("rope_parameters")
	if parameters == nil {
		parameters = old
	}
	return c.ropeFrom(parameters, headDim, theta, partial)
}

// ropeFrom reads one set of rope parameters; p may be nil.
func (c *config) ropeFrom(p *config, headDim int, theta, partial float64) Rope {
	trained := c.integer("max_position_embeddings", 0)
	r := Rope{Kind: RopeDefault, Base: theta, Dim: int(float64(headDim) * partial), Trained: trained}
	original := c.integer("original_max_position_embeddings", trained)
	if p == nil {
		return c.checked(r)
	}
	r.Kind = RopeKind(p.text("rope_type", p.text("type", string(RopeDefault))))
	p.read["type"] = true
	r.Base = p.float("rope_theta", theta)
	r.Dim = int(float64(headDim) * p.float("partial_rotary_factor", partial))
	r.Original = p.integer("original_max_position_embeddings", original)
	switch r.Kind {
	case RopeDefault:
	case "su":
		r.Kind = RopeLongRope
		fallthrough
	case RopeLongRope:
		r.Short, r.Long = p.floats("short_factor"), p.floats("long_factor")
		r.Factor = p.float("factor", float64(trained)/float64(max(r.Original, 1)))
		r.Attention = p.float("attention_factor", 0)
	case RopeYarn:
		r.Factor = p.float("factor", float64(trained)/float64(max(r.Original, 1)))
		r.BetaFast, r.BetaSlow = p.float("beta_fast", 0), p.float("beta_slow", 0)
		r.Fractional = !p.flag("truncate", true)
		r.Attention = p.float("attention_factor", 0)
		over, under := p.float("mscale", 0), p.float("mscale_all_dim", 0)
		if r.Attention == 0 && over != 0 && under != 0 {
			r.Attention = mscale(r.Factor, over) / mscale(r.Factor, under)
		}
	case RopeLlama3:
		r.Factor = p.float("factor", 0)
		r.LowFrequency, r.HighFrequency = p.float("low_freq_factor", 0), p.float("high_freq_factor", 0)
	case RopeLinear, RopeDynamic:
		r.Factor = p.float("factor", 0)
	default:
		p.fail(ErrUnsupported, "rope_type", "%q", r.Kind)
	}
	p.finish()
	return c.checked(r)
}

// mscale is DeepSeek's weighting of YaRN's scale (Peng et al. 2023, §3.4).
func mscale(factor, weight float64) float64 { return (yarnScale(factor)-1)*weight + 1 }

func (c *config) checked(r Rope) Rope {
	if err := r.check(); err != nil && *c.err == nil {
		*c.err = err
	}
	return r
}

// stretched gives the longest context: that of max_position_embeddings, or what
// the rotation's stretching makes of it where the key holds the unstretched one
// (vLLM's rule). A dynamic rotation is left alone: it is exact up to there.
func stretched(context int, r Rope) int {
	switch r.Kind {
	case RopeLinear:
		return int(float64(context) * r.Factor)
	case RopeYarn:
		return int(float64(r.Original) * r.Factor)
	}
	return context
}
