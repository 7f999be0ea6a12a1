package model

import (
	"errors"
	"math"
	"testing"

	"manta/kernels"
)

// Each kind of stretching, at points that its paper or its owner's code gives by
// hand. Whole models with them are in the golden set, but for the dynamic kind.
func TestRopeTable(t *testing.T) {
	plain := func(pair, dim int, base float64) float64 { return math.Pow(base, -2*float64(pair)/float64(dim)) }
	long, short := []float64{2, 4, 8, 16}, []float64{1, 1, 1, 2}
	for _, c := range []struct {
		name    string
		rope    Rope
		context int
		pair    int
		want    float64
		scale   float64
	}{
		{"default", Rope{Kind: RopeDefault, Dim: 8, Base: 1e4}, 64, 3, plain(3, 8, 1e4), 1},
		{"linear: every frequency is divided", Rope{Kind: RopeLinear, Dim: 8, Base: 1e4, Factor: 4}, 64, 2, plain(2, 8, 1e4) / 4, 1},
		{"dynamic: untouched within the trained context", Rope{Kind: RopeDynamic, Dim: 8, Base: 1e4, Factor: 2, Trained: 64}, 64, 3, plain(3, 8, 1e4), 1},
		// base · (2·128/64 - 1)^(8/6)
		{"dynamic: the base grows beyond", Rope{Kind: RopeDynamic, Dim: 8, Base: 1e4, Factor: 2, Trained: 64}, 128, 3, plain(3, 8, 1e4*math.Pow(3, 8.0/6)), 1},
		{"llama3: a short wave stays", Rope{Kind: RopeLlama3, Dim: 8, Base: 5e5, Factor: 8, Original: 8192, LowFrequency: 1, HighFrequency: 4}, 64, 0, 1, 1},
		{"llama3: a long one is divided", Rope{Kind: RopeLlama3, Dim: 8, Base: 5e5, Factor: 8, Original: 8192, LowFrequency: 1, HighFrequency: 4}, 64, 3, plain(3, 8, 5e5) / 8, 1},
		{"yarn: many rotations stay, and the scale grows", Rope{Kind: RopeYarn, Dim: 64, Base: 1e4, Factor: 4, Original: 2048}, 64, 0, 1, 0.1*math.Log(4) + 1},
		{"yarn: few are divided", Rope{Kind: RopeYarn, Dim: 64, Base: 1e4, Factor: 4, Original: 2048}, 64, 31, plain(31, 64, 1e4) / 4, 0.1*math.Log(4) + 1},
		{"yarn: a scale that is given", Rope{Kind: RopeYarn, Dim: 64, Base: 1e4, Factor: 4, Original: 2048, Attention: 1.5}, 64, 0, 1, 1.5},
		{"longrope: short factors up to the original context", Rope{Kind: RopeLongRope, Dim: 8, Base: 1e4, Factor: 32, Original: 4096, Short: short, Long: long}, 4096, 3, plain(3, 8, 1e4) / 2, math.Sqrt(1 + math.Log(32)/math.Log(4096))},
		{"longrope: long ones beyond", Rope{Kind: RopeLongRope, Dim: 8, Base: 1e4, Factor: 32, Original: 4096, Short: short, Long: long}, 4097, 3, plain(3, 8, 1e4) / 16, math.Sqrt(1 + math.Log(32)/math.Log(4096))},
		{"divisors of a GGUF", Rope{Kind: RopeDefault, Dim: 4, Base: 1e4, Divisors: []float32{1, 5}}, 64, 1, plain(1, 4, 1e4) / 5, 1},
		{"rounded to bfloat16", Rope{Kind: RopeDefault, Dim: 4, Base: 1e4, Stored: kernels.BF16}, 64, 1, 0.010009765625, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := c.rope.check(); err != nil {
				t.Fatal(err)
			}
			inverse, scale := c.rope.Table(c.context)
			if len(inverse) != c.rope.Dim/2 {
				t.Fatalf("%d pairs, want %d", len(inverse), c.rope.Dim/2)
			}
			if d := math.Abs(float64(inverse[c.pair])/c.want - 1); d > 1e-6 {
				t.Errorf("pair %d turns by %g, want %g", c.pair, inverse[c.pair], c.want)
			}
			if d := math.Abs(float64(scale) - c.scale); d > 1e-6 {
				t.Errorf("scale %g, want %g", scale, c.scale)
			}
		})
	}
}

// Parameters that make no sense are refused before anything is computed.
func TestRopeCheck(t *testing.T) {
	for _, c := range []struct {
		name string
		rope Rope
	}{
		{"an odd number of values", Rope{Kind: RopeDefault, Dim: 7, Base: 1e4}},
		{"no values", Rope{Kind: RopeDefault, Base: 1e4}},
		{"a base of not a number", Rope{Kind: RopeDefault, Dim: 8, Base: math.NaN()}},
		{"a factor of 0", Rope{Kind: RopeLinear, Dim: 8, Base: 1e4}},
		{"no original context", Rope{Kind: RopeYarn, Dim: 8, Base: 1e4, Factor: 2}},
		{"bounds that cross", Rope{Kind: RopeLlama3, Dim: 8, Base: 1e4, Factor: 2, Original: 64, LowFrequency: 4, HighFrequency: 1}},
		{"too few factors", Rope{Kind: RopeLongRope, Dim: 8, Base: 1e4, Original: 64, Short: []float64{1}, Long: []float64{1}}},
		{"a factor below 0", Rope{Kind: RopeLongRope, Dim: 2, Base: 1e4, Original: 64, Short: []float64{-1}, Long: []float64{1}}},
		{"too few divisors", Rope{Kind: RopeDefault, Dim: 8, Base: 1e4, Divisors: []float32{1}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := c.rope.check(); !errors.Is(err, ErrConfig) {
				t.Errorf("got %v, want %v", err, ErrConfig)
			}
		})
	}
}
