//go:build e2e && unix

package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"manta/internal/processtest"
)

const (
	overloadFactor = 4   // offered, over what it can do
	overloadMemory = 512 // MiB that it may grow by
)

// outcomes counts how clients fared.
type outcomes struct {
	answered, refused, left atomic.Int64

	mu   sync.Mutex
	odd  []error       // guarded by mu: what no client should see
	slow time.Duration // guarded by mu: the longest that an admitted one took
}

func (o *outcomes) oddity(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.odd = append(o.odd, err)
}

func (o *outcomes) took(d time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.slow = max(o.slow, d)
}

// Under four times what it can do, with clients that leave at random: what was
// admitted is answered, the rest gets 429 with Retry-After, memory stays bounded,
// nothing is stuck, and afterwards it answers as before.
func TestOverload(t *testing.T) {
	model := *overloadModel
	if model == "" {
		model = tiny(t)
	}
	s := start(t, "", model, "--served-model-name", "busy", "--max-num-seqs", "16", "--max-model-len", "128")
	before, err := s.whole(t.Context(), "/v1/completions", overloadBody(0))
	if err != nil {
		t.Fatal(err)
	}
	capacity := s.capacity(t, 3*time.Second)
	s.idle(t, 1e9)
	goroutines := s.metric(t, "go_goroutines")
	base, err := s.memory()
	if err != nil {
		t.Fatal(err)
	}

	var o outcomes
	var clients sync.WaitGroup
	var peak int64
	offered := 0
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	look := time.NewTicker(500 * time.Millisecond)
	defer look.Stop()
	began := time.Now()
	// A machine whose capacity was measured in a bad moment takes longer to be overloaded.
	for time.Since(began) < *overloadTime || o.refused.Load() == 0 && time.Since(began) < processtest.Patience {
		select {
		case <-tick.C:
			due := int(time.Since(began).Seconds() * capacity * overloadFactor)
			for ; offered < due; offered++ {
				i := offered
				clients.Go(func() { s.press(t.Context(), &o, i) })
			}
		case <-look.C:
			now, err := s.memory()
			if err != nil {
				t.Fatal(err)
			}
			peak = max(peak, now)
		}
	}
	clients.Wait()
	t.Logf("%.0f requests/s alone, %d offered in %s: %d answered, %d refused, %d left; slowest %.1f s; %d MiB before, %d at most",
		capacity, offered, *overloadTime, o.answered.Load(), o.refused.Load(), o.left.Load(), o.slow.Seconds(), base>>20, peak>>20)
	for i, err := range o.odd {
		if i == 5 {
			t.Errorf("and %d more", len(o.odd)-i)
			break
		}
		t.Error(err)
	}
	if o.answered.Load() == 0 || o.refused.Load() == 0 || o.left.Load() == 0 {
		t.Error("not all of answered, refused and left happened: was this an overload?")
	}
	if peak-base > overloadMemory<<20 {
		t.Errorf("it grew from %d to %d MiB", base>>20, peak>>20)
	}
	s.idle(t, goroutines)
	if log := s.Err.String(); strings.Contains(log, " failed\"") {
		t.Errorf("what clients do is logged as a fault:\n%.2000s", log)
	}
	after, err := s.whole(t.Context(), "/v1/completions", overloadBody(0))
	if err != nil {
		t.Fatal(err)
	}
	if after.Choices[0].Text != before.Choices[0].Text {
		t.Errorf("answers %q, before it was %q", after.Choices[0].Text, before.Choices[0].Text)
	}
}

func overloadBody(i int) object {
	return object{
		"prompt": fmt.Sprintf("client %d says", i), "max_tokens": *overloadSize, "ignore_eos": true, "temperature": 1, "seed": 7 * i,
	}
}

// capacity is how many requests a second end when twice as many clients as
// sequences ask as fast as they are answered.
func (s *server) capacity(t *testing.T, during time.Duration) float64 {
	t.Helper()
	var ended atomic.Int64
	var clients sync.WaitGroup
	began := time.Now()
	for c := range 32 {
		clients.Go(func() {
			for i := 0; time.Since(began) < during; i++ {
				if _, err := s.streamed(t.Context(), "/v1/completions", overloadBody(c*1000+i)); err != nil {
					t.Error(err)
					return
				}
				ended.Add(1)
			}
		})
	}
	clients.Wait()
	return float64(ended.Load()) / time.Since(began).Seconds()
}

// press is one client: a third of them leave before the end.
func (s *server) press(ctx context.Context, o *outcomes, i int) {
	ctx, stop := context.WithTimeout(ctx, processtest.Patience)
	defer stop()
	draw := rand.New(rand.NewPCG(5, uint64(i)))
	leaveAt := -1
	switch draw.IntN(6) {
	case 0: // in the middle of the answer
		leaveAt = draw.IntN(*overloadSize)
	case 1: // while it waits, perhaps
		var leave context.CancelFunc
		ctx, leave = context.WithTimeoutCause(ctx, time.Duration(draw.IntN(3000))*time.Millisecond, errEnough)
		defer leave()
	}
	began := time.Now()
	var a answer
	events := 0
	err := s.stream(ctx, "/v1/completions", streaming(overloadBody(i)), func(e event) error {
		if events++; events == leaveAt {
			return errEnough
		}
		return a.add([]byte(e.data))
	})
	var status *statusError
	switch {
	case err == nil:
		if a.Tokens != *overloadSize || len(a.Choices) != 1 || a.Choices[0].Finish != "length" {
			o.oddity(fmt.Errorf("request %d: admitted and got %+v", i, a))
			return
		}
		o.answered.Add(1)
		o.took(time.Since(began))
	case errors.Is(err, errEnough), context.Cause(ctx) == errEnough:
		o.left.Add(1)
	case errors.As(err, &status) && status.status == http.StatusTooManyRequests:
		if seconds, err := strconv.Atoi(status.retryAfter); err != nil || seconds < 1 {
			o.oddity(fmt.Errorf("request %d: 429 with Retry-After %q", i, status.retryAfter))
		}
		o.refused.Add(1)
	default:
		o.oddity(fmt.Errorf("request %d after %s and %d events: %w", i, time.Since(began), events, err))
	}
}
