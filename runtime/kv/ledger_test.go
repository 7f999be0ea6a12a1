package kv

import (
	"errors"
	"testing"
)

func mustGrow(t *testing.T, l *Ledger, id SequenceID, start, end int) {
	t.Helper()
	if err := l.Grow(id, start, end); err != nil {
		t.Fatal(err)
	}
}

// A windowed group gives back what no later token sees: with a window of w,
// position p sees (p-w, p].
func TestWindowGivesBlocksBack(t *testing.T) {
	tests := []struct {
		name         string
		window       int
		start, end   int
		wantHeld     int
		firstVisible int
	}{
		{"all is seen", 0, 100, 101, 7, 0},
		{"window of one block, at its edge", 16, 95, 96, 1, 5},
		{"window of one block, one past its edge", 16, 96, 97, 2, 5},
		{"window larger than the sequence", 200, 100, 101, 7, 0},
		{"a chunk keeps what its first row sees", 16, 64, 97, 4, 3},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			l, err := NewLedger([]int{20}, []int{test.window})
			if err != nil {
				t.Fatal(err)
			}
			if err := l.Open(1, nil); err != nil {
				t.Fatal(err)
			}
			for p := range test.start {
				mustGrow(t, l, 1, p, p+1)
			}
			mustGrow(t, l, 1, test.start, test.end)
			held, first := 0, -1
			for i, b := range l.Blocks(1)[0] {
				if b != None {
					held++
					if first < 0 {
						first = i
					}
				}
			}
			if held != test.wantHeld || first != test.firstVisible {
				t.Errorf("holds %d blocks from %d on, want %d from %d", held, first, test.wantHeld, test.firstVisible)
			}
			if free := l.Pool(0).Free(); free != 20-held {
				t.Errorf("%d blocks free, want %d", free, 20-held)
			}
		})
	}
}

// A prefix hit is as long as every group holds what the next token would see: all
// of it, or the last w.
func TestHitsAcrossGroups(t *testing.T) {
	l, err := NewLedger([]int{20, 20}, []int{0, 20})
	if err != nil {
		t.Fatal(err)
	}
	tokens := make([]int32, 8*BlockTokens)
	chain := Extend(nil, Hash{}, tokens)
	if err := l.Open(1, nil); err != nil {
		t.Fatal(err)
	}
	mustGrow(t, l, 1, 0, 8*BlockTokens)
	for i, h := range chain {
		if err := l.Keep(1, i, h); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Drop(1); err != nil {
		t.Fatal(err)
	}
	if got := l.Hits(chain); got != 8 {
		t.Fatalf("hits %d blocks, want 8", got)
	}
	// Without the window's block 6 a hit of 8 blocks lacks positions 109 to 127,
	// one of 7 lacks 93 on; 6 blocks need 4 and 5.
	if err := l.Evict(1, chain[6]); err != nil {
		t.Fatal(err)
	}
	if got := l.Hits(chain); got != 6 {
		t.Errorf("without the windowed block 6: hits %d blocks, want 6", got)
	}
	if err := l.Evict(0, chain[2]); err != nil {
		t.Fatal(err)
	}
	if got := l.Hits(chain); got != 2 {
		t.Errorf("without the full group's block 2: hits %d blocks, want 2", got)
	}
	if err := l.Open(2, chain[:3]); err == nil {
		t.Error("opened on a prefix that is not held")
	}
}

// Grow takes blocks in every group or in none.
func TestGrowIsAllOrNothing(t *testing.T) {
	l, err := NewLedger([]int{4, 2}, []int{0, 0})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Open(1, nil); err != nil {
		t.Fatal(err)
	}
	before := l.Digest()
	if err := l.Grow(1, 0, 3*BlockTokens); !errors.Is(err, ErrNoBlocks) {
		t.Fatalf("grow beyond the smaller group: %v", err)
	}
	if l.Pool(0).Free() != 4 || l.Pool(1).Free() != 2 || l.Digest() != before {
		t.Errorf("a failed Grow left %d and %d free, digest changed: %v", l.Pool(0).Free(), l.Pool(1).Free(), l.Digest() != before)
	}
}

// The digest does not depend on the order of sequences nor on block numbers, and
// every difference that matters changes it.
func TestDigest(t *testing.T) {
	build := func(order []SequenceID, slots int) uint64 {
		l, err := NewLedger([]int{20}, []int{0})
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range order {
			if err := l.Open(id, nil); err != nil {
				t.Fatal(err)
			}
		}
		for _, id := range order {
			mustGrow(t, l, id, 0, slots)
		}
		return l.Digest()
	}
	if build([]SequenceID{1, 2, 3}, 20) != build([]SequenceID{3, 1, 2}, 20) {
		t.Error("the digest depends on order")
	}
	if build([]SequenceID{1, 2, 3}, 20) == build([]SequenceID{1, 2, 3}, 21) {
		t.Error("one more slot does not show")
	}
	if build([]SequenceID{1, 2}, 20) == build([]SequenceID{1, 3}, 20) {
		t.Error("another sequence does not show")
	}
}

// Errors leave the ledger as it was.
func TestLedgerRefuses(t *testing.T) {
	l, err := NewLedger([]int{2}, []int{0})
	if err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"grow unknown":  l.Grow(5, 0, 1),
		"drop unknown":  l.Drop(5),
		"keep unknown":  l.Keep(5, 0, Hash{1}),
		"evict unknown": l.Evict(0, Hash{1}),
		"evict nowhere": l.Evict(7, Hash{1}),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := NewLedger([]int{1, 2}, []int{0}); err == nil {
		t.Error("made a ledger of 2 pools and 1 window")
	}
}
