package dispatch_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"manta/head/dispatch"
	"manta/node/wire"
)

// killer makes the cluster lose an epoch whenever a frame satisfies dies, and
// gives it another replica at once; it counts the deaths.
func (b *bench) killer(dies func(*wire.Frame) bool) *int {
	deaths := new(int)
	b.cluster.Tamper = func(f *wire.Frame) bool {
		if f.Err != nil || len(f.Tokens) == 0 || !dies(f) { // without tokens: the driver says that it has begun
			return true
		}
		*deaths++
		b.cluster.Kill(fmt.Sprint("n", *deaths-1))
		b.cluster.AddReplica("m", fmt.Sprint("r", *deaths), fmt.Sprint("n", *deaths), uint64(*deaths)+1, 8)
		return false
	}
	b.cluster.AddReplica("m", "r0", "n0", 1, 8)
	return deaths
}

// A request that kills whatever runs it is found among others that were there
// each time, and fails alone: they end with the tokens that are theirs.
func TestPoisonFailsAlone(t *testing.T) {
	for _, at := range []int{0, 1, 3, 30} { // the token that it dies before
		within(t, dispatch.Config{}, func(t *testing.T, b *bench) {
			b.cluster.Step = time.Millisecond
			poison := b.request(60)
			deaths := b.killer(func(f *wire.Frame) bool { return f.Request == poison.ID && f.Offset == at })
			var others sync.WaitGroup
			for range 5 {
				s := submit(t, b, b.request(60))
				others.Go(func() {
					if texts, _, err := read(t, s); err != nil || texts[0] != strings.Repeat("hello ", 10) {
						t.Errorf("an innocent one: %q, %v", texts, err)
					}
				})
			}
			if _, _, err := read(t, submit(t, b, poison)); !errors.Is(err, dispatch.ErrPoison) {
				t.Errorf("the poison: %v", err)
			}
			others.Wait()
			if *deaths != 4 {
				t.Errorf("dies before token %d: %d deaths, want 2 among others and 2 alone", at, *deaths)
			}
		})
	}
}

// Of those that are to run alone and are sent at the same time a driver takes one.
// The others may never hear that they were refused, since it dies of that one: they
// are not to blame. Which one it takes is chance, so it may need some rounds.
func TestUnheardRefusalIsNoGuilt(t *testing.T) {
	unheard := 0
	round := func(t *testing.T, b *bench) {
		b.cluster.Step = time.Millisecond
		poison := b.request(60)
		deaths := b.killer(func(f *wire.Frame) bool { return f.Request == poison.ID && f.Offset == 0 })
		kills := b.cluster.Tamper
		var mu sync.Mutex
		var alone wire.RequestID // what runs alone
		b.cluster.Tamper = func(f *wire.Frame) bool {
			mu.Lock()
			defer mu.Unlock()
			switch {
			case f.Err == nil && len(f.Tokens) == 0 && f.Finish == wire.Unfinished:
				alone = f.Request
			case f.Err != nil && f.Err.Code == wire.ErrBusy && alone == poison.ID:
				unheard++
				return false
			}
			return kills(f)
		}
		var others sync.WaitGroup
		for range 5 {
			s := submit(t, b, b.request(60))
			others.Go(func() {
				if _, _, err := read(t, s); err != nil {
					t.Errorf("an innocent one: %v", err)
				}
			})
		}
		if _, _, err := read(t, submit(t, b, poison)); !errors.Is(err, dispatch.ErrPoison) {
			t.Errorf("the poison: %v", err)
		}
		others.Wait()
		if *deaths < 4 {
			t.Errorf("%d deaths", *deaths)
		}
	}
	for range 60 {
		if within(t, dispatch.Config{}, round); unheard > 0 {
			return
		}
	}
	t.Error("no refusal is unheard")
}

// One that only happens to be there when many epochs end is not failed.
func TestManyDeathsAreNoGuilt(t *testing.T) {
	within(t, dispatch.Config{}, func(t *testing.T, b *bench) {
		b.cluster.Step = time.Millisecond
		frames := 0
		deaths := b.killer(func(*wire.Frame) bool { frames++; return frames%5 == 0 })
		texts, _, err := read(t, submit(t, b, b.request(300)))
		if err != nil || texts[0] != strings.Repeat("hello ", 50) {
			t.Errorf("%q, %v", texts, err)
		}
		if *deaths < 50 {
			t.Errorf("%d deaths only", *deaths)
		}
	})
}
