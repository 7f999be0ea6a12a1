package plan

import (
	"errors"
	"testing"

	"manta/kernels"
	"manta/parallel/shard"
	"manta/runtime/kv"
)

var one = shard.Layout{Tensor: 1, Pipeline: 1}

// llama8B is Llama-3-8B in bf16.
func llama8B() Shapes {
	s := Shapes{
		Architecture: "llama", Layers: 32, Hidden: 4096, Heads: 32, KVHeads: 8, HeadDim: 128, FFN: 14336,
		Vocab: 128256, Context: 8192, WeightType: kernels.BF16, Unit: 1, Windows: make([]int, 32),
	}
	s.EmbeddingBytes = 2 * 128256 * 4096
	s.OutputBytes = s.EmbeddingBytes
	s.AttentionBytes = 2 * 4096 * (4096 + 2*1024 + 4096)
	s.FFNBytes = 2 * 3 * 4096 * 14336
	return s
}

// What Compute promises is what blocks take, to the byte, and never more than the
// memory it was given.
func TestFitStaysWithinMemory(t *testing.T) {
	windowed := llama8B()
	for l := range windowed.Windows {
		windowed.Windows[l] = []int{0, 1024}[l%2]
	}
	tests := []struct {
		name   string
		shapes Shapes
		layout shard.Layout
		memory int64
	}{
		{"80 GiB", llama8B(), shard.Layout{Tensor: 1, Pipeline: 1}, 80 << 30},
		{"tight", llama8B(), shard.Layout{Tensor: 1, Pipeline: 1}, 19 << 30},
		{"two tensor ranks", llama8B(), shard.Layout{Tensor: 2, Pipeline: 1}, 24 << 30},
		{"four stages", llama8B(), shard.Layout{Tensor: 1, Pipeline: 4}, 24 << 30},
		{"windows", windowed, shard.Layout{Tensor: 1, Pipeline: 1}, 24 << 30},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			b := Budget{Memory: test.memory, KVType: kernels.BF16, MaxSequences: 256, MaxRows: 2048}
			f, err := Compute(test.shapes, test.layout, b)
			if err != nil {
				t.Fatal(err)
			}
			if total := f.WeightBytes + f.ScratchBytes + f.KVBytes; total > test.memory {
				t.Errorf("takes %s of %s", Bytes(total), Bytes(test.memory))
			}
			for g, window := range test.shapes.Groups() {
				if need := kv.MostBlocks(f.MaxLen, window, b.MaxRows); f.Blocks[g] < need {
					t.Errorf("group %d: %d blocks, a sequence of %d takes %d", g, f.Blocks[g], f.MaxLen, need)
				}
			}
		})
	}
}

// Llama-3-8B keeps 131,072 bytes a token in bf16: 2 · 32 layers · 8 heads · 128 · 2.
func TestBytesOfOneToken(t *testing.T) {
	f, err := Compute(llama8B(), one, Budget{Memory: 80 << 30, KVType: kernels.BF16, MaxSequences: 1024, MaxRows: 2048})
	if err != nil {
		t.Fatal(err)
	}
	if got := f.KVBytes / int64(f.Blocks[0]) / kernels.BlockTokens; got != 131072 {
		t.Errorf("a token takes %d bytes, want 131072", got)
	}
}

// What does not fit is refused with both sums; a longer context than the model's too.
func TestRefusals(t *testing.T) {
	if _, err := Compute(llama8B(), one, Budget{Memory: 8 << 30, KVType: kernels.BF16, MaxSequences: 1, MaxRows: 512}); !errors.Is(err, ErrNoRoom) {
		t.Errorf("16 GB of weights in 8 GiB: %v", err)
	}
	if _, err := Compute(llama8B(), one, Budget{Memory: 80 << 30, MaxLen: 10000, MaxSequences: 1, MaxRows: 512}); err == nil {
		t.Error("max_model_len beyond the context was taken")
	}
	f, err := Compute(llama8B(), one, Budget{Memory: 15900 << 20, KVType: kernels.BF16, MaxSequences: 8, MaxRows: 512})
	if err != nil || f.MaxLen >= 8192 || f.MaxLen < 1024 {
		t.Errorf("little room: max_model_len %d, %v; want what fits", f.MaxLen, err)
	}
}
