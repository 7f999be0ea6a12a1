package plan

import (
	"testing"

	"manta/kernels"
	"manta/parallel/shard"
)

func TestParseBytes(t *testing.T) {
	for text, want := range map[string]int64{
		"80GiB": 80 << 30, "80GB": 80e9, "24G": 24 << 30, "1.5MiB": 3 << 19, "512": 512, "512B": 512, "1 KiB": 1024, "2TiB": 2 << 40,
		"": 0, "GiB": 0, "-1GiB": 0, "x": 0, "80GiBB": 0, "1e30": 0, "0": 0, "NaN": 0,
	} {
		got, err := ParseBytes(text)
		if got != want || (err == nil) != (want > 0) {
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
	}
}

// What is planned holds together: the fullest rank's need is the fit's, the ranks'
// weights are at least the model's, and the longest sequences that fit at once are
// the fit's concurrency.
func TestNeedsAgreeWithFit(t *testing.T) {
	s := Shapes{
		Architecture: "llama", Layers: 8, Hidden: 256, Heads: 8, KVHeads: 4, HeadDim: 32, FFN: 512, Vocab: 1000, Context: 1024,
		Windows: make([]int, 8), EmbeddingBytes: 1 << 20, OutputBytes: 1 << 20, AttentionBytes: 2 << 20, FFNBytes: 4 << 20, WeightType: kernels.F32, Unit: 1,
	}
	for _, layout := range []shard.Layout{{Tensor: 1, Pipeline: 1}, {Tensor: 2, Pipeline: 2}, {Tensor: 3, Pipeline: 3}, {Tensor: 1, Pipeline: 2, StageLayers: []int{2, 6}}} {
		b := Budget{Memory: 120 << 20, KVType: kernels.F32, MaxSequences: 16, MaxRows: 64}
		fit, err := Compute(s, layout, b)
		if err != nil {
			t.Fatal(err)
		}
		needs, err := Needs(s, layout, b, fit.Blocks)
		if err != nil {
			t.Fatal(err)
		}
		var fullest, weights int64
		for _, n := range needs {
			fullest = max(fullest, n.Weights+n.Scratch+n.KV)
			weights += n.Weights
		}
		if want := fit.WeightBytes + fit.ScratchBytes + fit.KVBytes; fullest != want || fullest > b.Memory {
			t.Errorf("%+v: the fullest rank needs %d, the fit says %d of %d", layout, fullest, want, b.Memory)
		}
		if model := int64(s.Layers)*(s.AttentionBytes+s.FFNBytes) + s.EmbeddingBytes + s.OutputBytes; weights < model {
			t.Errorf("%+v: ranks hold %d bytes of weights, the model has %d", layout, weights, model)
		}
		if got := fit.Concurrent(s, b, fit.MaxLen); got > fit.Concurrency || got < fit.Concurrency-1 {
			t.Errorf("%+v: %v sequences of %d, the fit says %v", layout, got, fit.MaxLen, fit.Concurrency)
		}
		if fit.Concurrent(s, b, 64) < fit.Concurrent(s, b, 512) {
			t.Errorf("%+v: fewer short sequences fit than long ones", layout)
		}
	}
}

// By hand: a hop is a row of every tensor rank; a sum sends a row to every fellow,
// twice a layer.
func TestTraffic(t *testing.T) {
	s := Shapes{Layers: 4, Hidden: 100, Heads: 4, KVHeads: 4, HeadDim: 25, FFN: 40, Vocab: 30, Unit: 1}
	got, err := TrafficOf(s, shard.Layout{Tensor: 2, Pipeline: 2})
	if err != nil || got.Stage != 800 || len(got.Tensor) != 2 || got.Tensor[0] != 2*2*400 || got.Logits != 15*4 {
		t.Errorf("%+v, %v", got, err)
	}
	if alone, _ := TrafficOf(s, shard.Layout{Tensor: 1, Pipeline: 1}); alone.Stage != 0 || alone.Tensor[0] != 0 || alone.Logits != 0 {
		t.Errorf("one rank: %+v", alone)
	}
}
