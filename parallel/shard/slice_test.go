package shard

import (
	"errors"
	"math/rand/v2"
	"testing"
)

// randomShape gives a model whose heads and columns need not divide evenly.
func randomShape(r *rand.Rand) Shape {
	kv := 1 + r.IntN(8)
	unit := []int{1, 32, 256}[r.IntN(3)]
	return Shape{
		Layers: 1 + r.IntN(40), KVHeads: kv, Heads: kv * (1 + r.IntN(8)),
		HeadDim: []int{8, 32, 64, 80, 128, 256}[r.IntN(6)],
		FFN:     unit*(1+r.IntN(40)) - r.IntN(unit), Vocab: 1000 + r.IntN(1000), Unit: unit,
		WholeAttention: r.IntN(8) == 0,
	}
}

func shares(r *rand.Rand, n int) []int {
	if r.IntN(2) == 0 {
		return nil
	}
	s := make([]int, n)
	for i := range s {
		s[i] = 1 + r.IntN(9)
	}
	return s
}

// Over all ranks, layers, heads, columns and rows are covered once and in order,
// no rank is empty, cuts lie between quantization blocks, and each query head
// finds its own KV head: for every degree that MaxTensor allows, even or not.
func TestCutCoversEverythingOnce(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		s := randomShape(r)
		l := Layout{Tensor: 1 + r.IntN(s.MaxTensor()), Pipeline: 1 + r.IntN(s.Layers)}
		l.TensorShares = shares(r, l.Tensor)
		if r.IntN(2) == 0 {
			left := s.Layers
			for i := range l.Pipeline {
				n := left
				if rest := l.Pipeline - 1 - i; rest > 0 {
					n = 1 + r.IntN(left-rest)
				}
				l.StageLayers = append(l.StageLayers, n)
				left -= n
			}
		}
		layer := 0
		for stage := range l.Pipeline {
			head, column, word := 0, 0, 0
			var slice Slice
			for rank := range l.Tensor {
				var err error
				if slice, err = Cut(l, s, stage, rank); err != nil {
					t.Fatalf("%+v of %+v: %v", l, s, err)
				}
				if s.WholeAttention {
					head = 0
				}
				if slice.Layers.Lo != layer || slice.Heads.Lo != head || slice.FFN.Lo != column || slice.Vocab.Lo != word {
					t.Fatalf("%+v of %+v: gap or overlap before %+v", l, s, slice)
				}
				if slice.Layers.Len() < 1 || slice.Heads.Len() < 1 || slice.FFN.Len() < 1 || slice.Vocab.Len() < 1 {
					t.Fatalf("%+v of %+v: rank %d is empty: %+v", l, s, rank, slice)
				}
				if slice.FFN.Lo%s.Unit != 0 || slice.Heads.Lo*s.HeadDim%s.Unit != 0 {
					t.Fatalf("%+v of %+v: cut through a block: %+v", l, s, slice)
				}
				if l.StageLayers != nil && slice.Layers.Len() != l.StageLayers[stage] {
					t.Fatalf("%+v: stage %d has %d layers", l, stage, slice.Layers.Len())
				}
				checkHeads(t, s, slice)
				head, column, word = slice.Heads.Hi, slice.FFN.Hi, slice.Vocab.Hi
			}
			if head != s.Heads || column != s.FFN || word != s.Vocab {
				t.Fatalf("%+v of %+v: ends at %d heads, %d columns, %d rows", l, s, head, column, word)
			}
			layer = slice.Layers.Hi
		}
		if layer != s.Layers {
			t.Fatalf("%+v of %+v: stages end at layer %d", l, s, layer)
		}
	}
}

func checkHeads(t *testing.T, s Shape, slice Slice) {
	t.Helper()
	used := map[int32]bool{}
	for i, kv := range slice.HeadMap {
		if want := (slice.Heads.Lo + i) / (s.Heads / s.KVHeads); slice.KVHeads.Lo+int(kv) != want {
			t.Fatalf("query head %d reads KV head %d, want %d", slice.Heads.Lo+i, slice.KVHeads.Lo+int(kv), want)
		}
		used[kv] = true
	}
	if len(used) != slice.KVHeads.Len() {
		t.Fatalf("%+v holds KV heads that no query needs", slice)
	}
}

// Even shares differ by at most one unit.
func TestEvenPartsAreEven(t *testing.T) {
	for units := 1; units < 60; units++ {
		for n := 1; n <= units; n++ {
			for i := range n {
				if got := deal(units, 1, n, nil, i).Len(); got < units/n || got > ceil(units, n) {
					t.Fatalf("part %d of %d of %d units holds %d", i, n, units, got)
				}
			}
		}
	}
}

// SmolLM2 on two and three ranks, by hand: 9 query heads read 3 KV heads.
func TestCutSmolLM2(t *testing.T) {
	s := Shape{Layers: 30, Heads: 9, KVHeads: 3, HeadDim: 64, FFN: 1536, Vocab: 49152, Unit: 32}
	two, err := Cut(Layout{Tensor: 2, Pipeline: 1}, s, 0, 1)
	if err != nil {
		t.Fatal(err)
	}
	if two.Heads != (Range{4, 9}) || two.KVHeads != (Range{1, 3}) || two.FFN != (Range{768, 1536}) {
		t.Errorf("rank 1 of 2 holds %+v", two)
	}
	three, err := Cut(Layout{Tensor: 3, Pipeline: 1}, s, 0, 1)
	if err != nil {
		t.Fatal(err)
	}
	if three.Heads != (Range{3, 6}) || three.KVHeads != (Range{1, 2}) {
		t.Errorf("rank 1 of 3 holds %+v", three)
	}
	if s.MaxTensor() != 9 {
		t.Errorf("takes %d tensor ranks, want 9", s.MaxTensor())
	}
}

// What does not fit is refused before anything is cut.
func TestLayoutsThatDoNotFit(t *testing.T) {
	s := Shape{Layers: 4, Heads: 6, KVHeads: 3, HeadDim: 32, FFN: 160, Vocab: 1000, Unit: 1}
	for _, c := range []struct {
		name string
		l    Layout
	}{
		{"none", Layout{}},
		{"more ranks than heads", Layout{Tensor: 7, Pipeline: 1}},
		{"more stages than layers", Layout{Tensor: 1, Pipeline: 5}},
		{"layers missing", Layout{Tensor: 1, Pipeline: 2, StageLayers: []int{1, 2}}},
		{"an empty stage", Layout{Tensor: 1, Pipeline: 2, StageLayers: []int{0, 4}}},
		{"too few shares", Layout{Tensor: 2, Pipeline: 1, TensorShares: []int{1}}},
		{"a share of nothing", Layout{Tensor: 2, Pipeline: 1, TensorShares: []int{1, 0}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := Cut(c.l, s, 0, 0); !errors.Is(err, ErrLayout) {
				t.Errorf("got %v, want %v", err, ErrLayout)
			}
		})
	}
	if _, err := Cut(Layout{Tensor: 2, Pipeline: 2}, s, 0, 2); !errors.Is(err, ErrLayout) {
		t.Errorf("rank 2 of 2: %v", err)
	}
	if _, err := Cut(Layout{Tensor: 1, Pipeline: 1}, Shape{Layers: 1, Heads: 3, KVHeads: 2, HeadDim: 1, FFN: 1, Vocab: 1, Unit: 1}, 0, 0); !errors.Is(err, ErrLayout) {
		t.Error("3 heads over 2 KV heads passed")
	}
}
