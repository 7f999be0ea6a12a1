package model

import (
	"fmt"
	"math"

	"manta/kernels"
	"manta/kernels/ref"
)

// RopeKind names how a model stretches rotary position embeddings.
type RopeKind string

const (
	RopeDefault  RopeKind = "default"  // Su et al. 2021, eq. 15
	RopeLinear   RopeKind = "linear"   // Chen et al. 2023, eq. 4
	RopeDynamic  RopeKind = "dynamic"  // NTK-aware base, by the context served
	RopeLlama3   RopeKind = "llama3"   // by wavelength: Llama 3.1
	RopeYarn     RopeKind = "yarn"     // Peng et al. 2023, §3
	RopeLongRope RopeKind = "longrope" // Ding et al. 2024: a factor for each pair
)

// A Rope says at which angles the pairs of a head turn.
type Rope struct {
	Kind RopeKind
	Dim  int     // values of a head that turn
	Base float64 // theta
	// Factor is how many times longer the context has become.
	Factor float64
	// Original is the context before it was stretched; Trained is
	// max_position_embeddings.
	Original, Trained int
	LowFrequency      float64 // llama3
	HighFrequency     float64 // llama3
	BetaFast          float64 // yarn; 0: 32
	BetaSlow          float64 // yarn; 0: 1
	Fractional        bool    // yarn: the ramp's ends are not rounded
	// Attention multiplies cos and sin; 0: what the kind derives.
	Attention float64
	// Short and Long divide the frequencies, one a pair (longrope): Long where
	// the context served exceeds Original. Models switch at each prompt's length;
	// serving needs one answer for all positions, so, like vLLM, the longest
	// sequence that is served decides.
	Short, Long []float64
	// Stored, unless F32, is the type that the frequencies were rounded to. No
	// published model has that; see Spec.RoundFrequencies.
	Stored kernels.DType
	// Divisors divide the frequencies, one a pair (GGUF's rope_freqs).
	Divisors []float32
}

// Table gives the angle of each pair at position 1 and the scale of cos and sin
// for a context of so many positions.
func (r Rope) Table(context int) (inverse []float32, scale float32) {
	base := r.Base
	if r.Kind == RopeDynamic && context > r.Trained {
		grown := r.Factor*float64(context)/float64(r.Trained) - (r.Factor - 1)
		base *= math.Pow(grown, float64(r.Dim)/float64(r.Dim-2))
	}
	frequencies := make([]float64, r.Dim/2)
	for i := range frequencies {
		frequencies[i] = 1 / math.Pow(base, float64(2*i)/float64(r.Dim))
	}
	attention := 1.0
	switch r.Kind {
	case RopeLinear:
		for i := range frequencies {
			frequencies[i] /= r.Factor
		}
	case RopeLlama3:
		r.llama3(frequencies)
	case RopeYarn:
		attention = r.yarn(frequencies)
	case RopeLongRope:
		attention = r.longRope(frequencies, context)
	}
	if r.Attention != 0 {
		attention = r.Attention
	}
	inverse = make([]float32, len(frequencies))
	for i, f := range frequencies {
		inverse[i] = float32(f)
		if r.Divisors != nil {
			inverse[i] = float32(f / float64(r.Divisors[i]))
		}
		switch r.Stored {
		case kernels.BF16:
			inverse[i] = ref.Brain(ref.ToBrain(inverse[i]))
		case kernels.F16:
			inverse[i] = ref.Half(ref.ToHalf(inverse[i]))
		}
	}
	return inverse, float32(attention)
}

// llama3 keeps short wavelengths, divides long ones by Factor, and blends between.
// Grattafiori et al. 2024; the formula is that of Meta's apply_scaling.
func (r Rope) llama3(frequencies []float64) {
	original := float64(r.Original)
	for i, f := range frequencies {
		wavelength := 2 * math.Pi / f
		switch {
		case wavelength < original/r.HighFrequency:
		case wavelength > original/r.LowFrequency:
			frequencies[i] = f / r.Factor
		default:
			blend := (original/wavelength - r.LowFrequency) / (r.HighFrequency - r.LowFrequency)
			frequencies[i] = (1-blend)*f/r.Factor + blend*f
		}
	}
}

// yarn blends by rotations within the original context: Peng et al. 2023, eq. 23;
// the ramp's ends eq. 22; it gives the scale of §3.4 (0.1·ln(factor) + 1).
func (r Rope) yarn(frequencies []float64) float64 {
	fast, slow := r.BetaFast, r.BetaSlow
	if fast == 0 {
		fast = 32
	}
	if slow == 0 {
		slow = 1
	}
	pair := func(rotations float64) float64 {
		return float64(r.Dim) * math.Log(float64(r.Original)/(rotations*2*math.Pi)) / (2 * math.Log(r.Base))
	}
	low, high := pair(fast), pair(slow)
	if !r.Fractional {
		low, high = math.Floor(low), math.Ceil(high)
	}
	low, high = max(low, 0), min(high, float64(r.Dim-1))
	if low == high {
		high += 0.001
	}
	for i, f := range frequencies {
		ramp := min(max((float64(i)-low)/(high-low), 0), 1)
		frequencies[i] = f/r.Factor*ramp + f*(1-ramp)
	}
	return yarnScale(r.Factor)
}

func yarnScale(factor float64) float64 {
	if factor <= 1 {
		return 1
	}
	return 0.1*math.Log(factor) + 1
}

// longRope divides by a factor for each pair; the scale is that of Phi-3's code:
// sqrt(1 + ln(factor)/ln(original)).
func (r Rope) longRope(frequencies []float64, context int) float64 {
	factors := r.Short
	if context > r.Original {
		factors = r.Long
	}
	for i := range frequencies {
		frequencies[i] /= factors[i]
	}
	if r.Factor <= 1 {
		return 1
	}
	return math.Sqrt(1 + math.Log(r.Factor)/math.Log(float64(r.Original)))
}

// RoundFrequencies makes every rotation turn at frequencies rounded to a 16-bit
// type. It serves one purpose: to reproduce reference outputs of a model that was
// converted in memory (model.to(bfloat16).float() in PyTorch rounds the buffer of
// frequencies with the weights). A model read from its files never needs it.
func (s *Spec) RoundFrequencies(t kernels.DType) {
	for i := range s.Ropes {
		s.Ropes[i].Stored = t
	}
}

// check tells whether the parameters make sense, so that Table can't fail.
func (r Rope) check() error {
	bad := func(what string, value any) error {
		return fmt.Errorf("%w: rope of type %s: %s is %v", ErrConfig, r.Kind, what, value)
	}
	if r.Dim < 2 || r.Dim%2 != 0 {
		return bad("the number of rotated values", r.Dim)
	}
	if !(r.Base > 1) || math.IsInf(r.Base, 0) {
		return bad("rope_theta", r.Base)
	}
	if r.Divisors != nil && len(r.Divisors) != r.Dim/2 {
		return bad("the number of frequency divisors", len(r.Divisors))
	}
	switch r.Kind {
	case RopeDefault:
		return nil
	case RopeLinear, RopeDynamic, RopeLlama3, RopeYarn:
		if !(r.Factor > 0) {
			return bad("factor", r.Factor)
		}
	case RopeLongRope:
		if len(r.Short) != r.Dim/2 || len(r.Long) != r.Dim/2 {
			return bad("the number of factors", fmt.Sprintf("%d short, %d long, want %d", len(r.Short), len(r.Long), r.Dim/2))
		}
	default:
		return fmt.Errorf("%w: rope of type %q", ErrUnsupported, r.Kind)
	}
	switch {
	case r.Kind == RopeDynamic && (r.Trained < 1 || r.Dim < 4):
		return bad("max_position_embeddings", r.Trained)
	case (r.Kind == RopeLlama3 || r.Kind == RopeYarn || r.Kind == RopeLongRope) && r.Original < 2:
		return bad("original_max_position_embeddings", r.Original)
	case r.Kind == RopeLlama3 && !(r.LowFrequency > 0 && r.HighFrequency > r.LowFrequency):
		return bad("low_freq_factor, high_freq_factor", fmt.Sprint(r.LowFrequency, ", ", r.HighFrequency))
	}
	for _, f := range append(append([]float64{}, r.Short...), r.Long...) {
		if !(f > 0) {
			return bad("a factor", f)
		}
	}
	return nil
}
