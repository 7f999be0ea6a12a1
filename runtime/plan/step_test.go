package plan

import (
	"math"
	"testing"

	"manta/kernels"
	"manta/parallel/shard"
)

// dense gives the shapes of a Llama in two bytes a weight.
func dense(layers, hidden, heads, kvHeads, headDim, ffn, vocab int) Shapes {
	s := llama8B()
	s.Layers, s.Hidden, s.Heads, s.KVHeads, s.HeadDim, s.FFN, s.Vocab = layers, hidden, heads, kvHeads, headDim, ffn, vocab
	s.Windows = make([]int, layers)
	s.EmbeddingBytes = 2 * int64(vocab) * int64(hidden)
	s.OutputBytes = s.EmbeddingBytes
	s.AttentionBytes = 2 * int64(hidden) * int64(headDim) * int64(2*heads+2*kvHeads)
	s.FFNBytes = 2 * 3 * int64(hidden) * int64(ffn)
	return s
}

// Steps take what RESULTS.md says they were measured to take, within 20%.
func TestStepsAreAsMeasured(t *testing.T) {
	models := map[string]Shapes{
		"0.6B": dense(28, 1024, 16, 8, 128, 3072, 151936), "1B": dense(16, 2048, 32, 8, 64, 8192, 128256),
		"8B": llama8B(), "70B": dense(80, 8192, 64, 8, 128, 28672, 128256),
	}
	for _, m := range []struct {
		model                 string
		tensor, rows, context int
		milliseconds          float64
	}{
		{"8B", 1, 1, 1024, 3.74}, {"8B", 1, 8, 512, 4.53}, {"8B", 1, 64, 512, 5.85}, {"8B", 1, 128, 512, 7.47}, {"8B", 1, 256, 512, 11.2},
		{"1B", 1, 1, 1024, 0.769}, {"1B", 1, 8, 512, 1.06}, {"1B", 1, 64, 512, 1.49}, {"1B", 1, 128, 512, 1.98}, {"1B", 1, 256, 512, 3.01},
		{"0.6B", 1, 1, 1024, 0.594}, {"0.6B", 1, 8, 512, 1.24}, {"0.6B", 1, 64, 512, 2.37}, {"0.6B", 1, 128, 512, 3.42}, {"0.6B", 1, 256, 512, 5.61},
		{"8B", 2, 1, 1024, 2.31}, {"8B", 2, 8, 512, 2.94}, {"8B", 2, 64, 512, 3.71}, {"8B", 2, 128, 512, 4.72}, {"8B", 2, 256, 512, 6.99},
		{"70B", 2, 1, 1024, 19.2}, {"70B", 2, 64, 512, 27.3},
	} {
		b := Budget{KVType: kernels.BF16, Speeds: []Speed{H200}}
		got := 1e3 * StepSeconds(models[m.model], shard.Layout{Tensor: m.tensor, Pipeline: 1}, b, m.rows, m.context)[0]
		if math.Abs(got/m.milliseconds-1) > 0.2 {
			t.Errorf("%s, %d ranks, %d rows at %d: %.2f ms, measured %.2f", m.model, m.tensor, m.rows, m.context, got, m.milliseconds)
		}
	}
}
