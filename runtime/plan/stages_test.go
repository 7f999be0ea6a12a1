package plan

import (
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"manta/kernels"
	"manta/parallel/shard"
)

// A device of a third of the other's memory gets fewer layers, and more runs at once
// than with an even cut; what fits nowhere evenly fits so.
func TestStagesOnUnlikeDevices(t *testing.T) {
	layout := shard.Layout{Tensor: 1, Pipeline: 2}
	for _, c := range []struct {
		name   string
		memory []int64
		even   bool // the even cut fits
	}{
		{"even is too little", []int64{8 << 30, 24 << 30}, false},
		{"the second is small", []int64{24 << 30, 8 << 30}, false},
		{"even is tight", []int64{10 << 30, 24 << 30}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := Budget{Memory: slices.Min(c.memory), Stages: c.memory, KVType: kernels.BF16, MaxLen: 2048, MaxSequences: 64, MaxRows: 2048}
			even, evenErr := Compute(llama8B(), layout, b)
			if (evenErr == nil) != c.even {
				t.Fatalf("the even cut: %v", evenErr)
			}
			got, fit, err := Stages(llama8B(), layout, b)
			if err != nil {
				t.Fatal(err)
			}
			cut := got.StageLayers
			if len(cut) != 2 || cut[0]+cut[1] != 32 || (cut[0] < cut[1]) != (c.memory[0] < c.memory[1]) {
				t.Fatalf("layers %v for memory %v", cut, c.memory)
			}
			if fit.Concurrency <= even.Concurrency {
				t.Errorf("%.1f sequences on %v, %.1f on the even cut", fit.Concurrency, cut, even.Concurrency)
			}
			needs, err := Needs(llama8B(), got, b, fit.Blocks)
			if err != nil {
				t.Fatal(err)
			}
			for i, n := range needs {
				if all := n.Weights + n.Scratch + n.KV; all > c.memory[i] {
					t.Errorf("stage %d takes %s of %s", i, Bytes(all), Bytes(c.memory[i]))
				}
			}
		})
	}
}

// Where memory is alike, or plenty everywhere, stages are as even as can be.
func TestStagesStayEven(t *testing.T) {
	for name, memory := range map[string][]int64{
		"alike": {24 << 30, 24 << 30, 24 << 30}, "plenty": {80 << 30, 100 << 30, 90 << 30}, "one figure": nil,
	} {
		t.Run(name, func(t *testing.T) {
			b := Budget{Memory: 24 << 30, Stages: memory, KVType: kernels.BF16, MaxLen: 2048, MaxSequences: 16, MaxRows: 2048}
			got, _, err := Stages(llama8B(), shard.Layout{Tensor: 1, Pipeline: 3}, b)
			if err != nil || got.StageLayers != nil {
				t.Errorf("layers %v, %v", got.StageLayers, err)
			}
		})
	}
}

// randomShapes is a small model; its windows are the caller's.
func randomShapes(r *rand.Rand) Shapes {
	s := Shapes{
		Layers: 2 + r.IntN(9), Hidden: 64, Heads: 4, KVHeads: 2, HeadDim: 16, FFN: 128, Vocab: 100 + r.IntN(4000), Context: 512, Unit: 1,
		AttentionBytes: 1 << 16, FFNBytes: int64(1 + r.IntN(1<<18)), Tied: r.IntN(2) == 0,
	}
	s.EmbeddingBytes = int64(s.Vocab) * 128
	if !s.Tied {
		s.OutputBytes = s.EmbeddingBytes
	}
	return s
}

// No cut is worth more than the one that is taken, and it is the same each time.
func TestStagesAreTheBest(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		s := randomShapes(r)
		for range s.Layers {
			s.Windows = append(s.Windows, []int{0, 64}[r.IntN(2)])
		}
		layout := shard.Layout{Tensor: 1 + r.IntN(2), Pipeline: 2 + r.IntN(min(3, s.Layers-1))}
		if layout.Pipeline > s.Layers {
			layout.Pipeline = s.Layers
		}
		b := Budget{KVType: kernels.F32, MaxLen: 512, MaxSequences: 8, MaxRows: 64, Memory: 1 << 62}
		for range layout.Pipeline {
			b.Stages = append(b.Stages, int64(1<<20+r.IntN(5<<20)))
			b.Memory = min(b.Memory, b.Stages[len(b.Stages)-1])
		}
		got, _, err := Stages(s, layout, b)
		again, _, _ := Stages(s, layout, b)
		if !reflect.DeepEqual(got, again) {
			t.Fatalf("seed %d: %v, then %v", seed, got, again)
		}
		worth := func(l shard.Layout, longest int) float64 {
			fit, err := Compute(s, l, b)
			if err != nil {
				return 0
			}
			return fit.Concurrency / float64(longest)
		}
		best := 0.0
		each(s.Layers, layout.Pipeline, nil, func(cut []int) {
			l := layout
			l.StageLayers = cut
			best = max(best, worth(l, slices.Max(cut)))
		})
		if (err == nil) != (best > 0) {
			t.Fatalf("seed %d: %v, although a cut is worth %g", seed, err, best)
		}
		longest := slices.Max(append(slices.Clone(got.StageLayers), 0))
		if got.StageLayers == nil {
			longest = (s.Layers + layout.Pipeline - 1) / layout.Pipeline
		}
		if err == nil && worth(got, longest) < best*(1-1e-4) {
			t.Fatalf("seed %d: %v is worth %g of %g", seed, got, worth(got, longest), best)
		}
	}
}

// each calls f with every way to cut layers into stages.
func each(layers, stages int, before []int, f func(cut []int)) {
	if stages == 1 {
		f(append(slices.Clone(before), layers))
		return
	}
	for n := 1; n <= layers-stages+1; n++ {
		each(layers-n, stages-1, append(slices.Clone(before), n), f)
	}
}

// fast and slow differ by three in both figures.
var (
	fast = Speed{Bandwidth: 3e12, Operations: 300e12}
	slow = fast.Times(1.0 / 3)
)

// A device of a third of the other's speed gets about a third of its layers, and the
// slowest stage ends sooner than with the even cut. How much a measurement wobbles
// changes nothing, and memory goes before speed.
func TestStagesBySpeed(t *testing.T) {
	layout := shard.Layout{Tensor: 1, Pipeline: 2}
	cut := func(memory []int64, speeds ...Speed) []int {
		t.Helper()
		b := Budget{Memory: slices.Min(memory), Stages: memory, Speeds: speeds, KVType: kernels.BF16, MaxLen: 2048, MaxSequences: 16, MaxRows: 2048}
		got, _, err := Stages(llama8B(), layout, b)
		if err != nil {
			t.Fatal(err)
		}
		return got.StageLayers
	}
	plenty := []int64{80 << 30, 80 << 30}
	if got := cut(plenty, fast, slow); len(got) != 2 || got[0] < 24 || got[1] < 4 {
		t.Errorf("fast, slow: %v", got)
	}
	if got := cut(plenty, slow, fast); len(got) != 2 || got[0] > 12 {
		t.Errorf("slow, fast: %v", got)
	}
	alike := cut(plenty, fast, fast)
	if got := cut(plenty, fast, fast.Times(0.81)); !slices.Equal(got, alike) {
		t.Errorf("a fifth slower: %v, alike: %v", got, alike)
	}
	if got := cut([]int64{8 << 30, 80 << 30}, fast, slow); got == nil || got[0] >= got[1] {
		t.Errorf("fast and small, slow and large: %v", got)
	}
	if got := cut(plenty, fast, Speed{}); got != nil {
		t.Errorf("one unknown: %v", got)
	}
}

// By the model, no cut serves more in a second than the one taken, so the even one does
// not either; every rank has room; and it is the same each time.
func TestStagesBySpeedAreTheBest(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 2))
		s := randomShapes(r)
		s.Windows = make([]int, s.Layers)
		layout := shard.Layout{Tensor: 1 + r.IntN(2), Pipeline: min(s.Layers, 2+r.IntN(3))}
		b := Budget{KVType: kernels.F32, MaxLen: 512, MaxSequences: 8, MaxRows: 64, Memory: 1 << 62}
		for range layout.Pipeline {
			b.Stages = append(b.Stages, int64(1<<20+r.IntN(9<<20)))
			b.Memory = min(b.Memory, b.Stages[len(b.Stages)-1])
			b.Speeds = append(b.Speeds, Speed{Bandwidth: float64(1+r.IntN(9)) * 1e6, Operations: float64(1+r.IntN(9)) * 1e8})
		}
		got, fit, err := Stages(s, layout, b)
		again, _, _ := Stages(s, layout, b)
		if !reflect.DeepEqual(got, again) {
			t.Fatalf("seed %d: %v, then %v", seed, got, again)
		}
		worth := func(l shard.Layout) float64 {
			fit, err := Compute(s, l, b)
			if err != nil {
				return 0
			}
			return fit.Concurrency / slices.Max(StageSeconds(s, l, b))
		}
		best := worth(layout)
		each(s.Layers, layout.Pipeline, nil, func(cut []int) {
			l := layout
			l.StageLayers = cut
			best = max(best, worth(l))
		})
		if (err == nil) != (best > 0) {
			t.Fatalf("seed %d: %v, although a cut is worth %g", seed, err, best)
		}
		if err != nil {
			continue
		}
		if worth(got) < best*(1-1e-4) {
			t.Fatalf("seed %d: %v is worth %g of %g", seed, got, worth(got), best)
		}
		needs, err := Needs(s, got, b, fit.Blocks)
		if err != nil {
			t.Fatal(err)
		}
		for i, n := range needs {
			if all := n.Weights + n.Scratch + n.KV; all > b.Stages[i/layout.Tensor] {
				t.Fatalf("seed %d: rank %d takes %d of %d", seed, i, all, b.Stages[i/layout.Tensor])
			}
		}
	}
}
