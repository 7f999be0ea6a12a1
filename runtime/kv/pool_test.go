package kv

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
)

// A failed Take must change nothing: the scheduler retries it after a
// preemption, and a half-made grant would leak blocks.
func TestTakeIsAllOrNothing(t *testing.T) {
	p := NewPool(3)
	if _, err := p.Take(2); err != nil {
		t.Fatal(err)
	}
	if got, err := p.Take(2); !errors.Is(err, ErrNoBlocks) || got != nil || p.Free() != 1 {
		t.Errorf("Take(2) of 1 free: got %v, %v, then %d free", got, err, p.Free())
	}
}

// Whatever is done to a pool, a block is free exactly once if and only if nothing
// holds it, and idle if and only if the index alone does.
func TestPoolInvariants(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	p := NewPool(12)
	var held []BlockID
	hashes := 0
	for range 20000 {
		switch rng.IntN(6) {
		case 0:
			if got, err := p.Take(1 + rng.IntN(3)); err == nil {
				held = append(held, got...)
			}
		case 1, 2:
			if len(held) > 0 {
				i := rng.IntN(len(held))
				p.Release(held[i])
				held = slices.Delete(held, i, i+1)
			}
		case 3:
			if len(held) > 0 {
				b := held[rng.IntN(len(held))]
				if p.hash[b] == (Hash{}) || p.index[p.hash[b]] != b {
					hashes++
					p.Keep(b, Hash{byte(hashes), byte(hashes >> 8), 1})
				}
			}
		case 4:
			for h := range p.index {
				if b, ok := p.Share(h); ok {
					held = append(held, b)
				}
				break
			}
		case 5:
			if h, ok := p.Oldest(); ok {
				if err := p.Evict(h); err != nil {
					t.Fatal(err)
				}
			}
		}
		checkPool(t, p, held)
	}
}

func checkPool(t *testing.T, p *Pool, held []BlockID) {
	t.Helper()
	refs := make([]int32, p.Size())
	for _, b := range held {
		refs[b]++
	}
	idle := 0
	for h, b := range p.index {
		if p.hash[b] != h {
			t.Fatalf("block %d is indexed as %x and says %x", b, h, p.hash[b])
		}
		if refs[b] == 0 {
			idle++
		}
		refs[b]++
	}
	free := make([]int, p.Size())
	for _, b := range p.free {
		free[b]++
	}
	for b := range refs {
		if refs[b] != p.refs[b] || (free[b] == 1) != (refs[b] == 0) || free[b] > 1 {
			t.Fatalf("block %d: %d references counted as %d, %d times free", b, refs[b], p.refs[b], free[b])
		}
	}
	if idle != p.Idle() {
		t.Fatalf("%d idle blocks counted as %d", idle, p.Idle())
	}
}

// Among idle blocks the one idle longest goes first, and of one sequence the end
// of its prefix before the beginning.
func TestEvictionOrder(t *testing.T) {
	l, err := NewLedger([]int{8}, []int{0})
	if err != nil {
		t.Fatal(err)
	}
	chain := Extend(nil, Hash{}, make([]int32, 3*BlockTokens))
	if err := errors.Join(l.Open(1, nil), l.Grow(1, 0, 3*BlockTokens)); err != nil {
		t.Fatal(err)
	}
	for i, h := range chain {
		if err := l.Keep(1, i, h); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Drop(1); err != nil {
		t.Fatal(err)
	}
	for _, want := range []Hash{chain[2], chain[1], chain[0]} {
		got, ok := l.Pool(0).Oldest()
		if !ok || got != want {
			t.Fatalf("oldest is %x, want %x", got, want)
		}
		if err := l.Evict(0, got); err != nil {
			t.Fatal(err)
		}
	}
}
