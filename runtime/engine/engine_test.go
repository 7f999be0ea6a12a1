package engine_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"manta/parallel/group"
	"manta/runtime/engine"
	"manta/runtime/kv"
	"manta/runtime/sample"
	"manta/runtime/sched"
	"manta/runtime/sched/schedtest"
)

// harness runs an engine over ranks without a model, and collects what it delivers.
type harness struct {
	t       *testing.T
	engine  *engine.Engine
	outputs chan engine.Output
	ended   chan error
	stop    context.CancelFunc
}

func limits() sched.Limits {
	return sched.Limits{
		Blocks: []int{40}, Windows: []int{0}, MaxSequences: 4, MaxRows: 32, MaxWanted: 8, MaxLen: 200,
		PrefixCaching: true, Seed: kv.Seed([32]byte{2}), Epoch: 1,
	}
}

func start(t *testing.T, limits sched.Limits, ranks int) *harness {
	t.Helper()
	var members []group.Rank
	for range ranks {
		r, err := schedtest.NewRank(limits.Blocks, limits.Windows)
		if err != nil {
			t.Fatal(err)
		}
		members = append(members, r)
	}
	return startGroup(t, limits, group.NewLocal(2, members...))
}

func startGroup(t *testing.T, limits sched.Limits, g *group.Local) *harness {
	t.Helper()
	h := &harness{t: t, outputs: make(chan engine.Output, 1<<16), ended: make(chan error, 2)}
	e, err := engine.New(engine.Config{Limits: limits, Group: g, Depth: 2, Deliver: func(outputs []engine.Output) {
		for _, o := range outputs {
			h.outputs <- o
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	h.engine, h.stop = e, stop
	go func() { h.ended <- g.Run(ctx) }()
	go func() { h.ended <- e.Run(ctx) }()
	return h
}

func (h *harness) close() {
	h.stop()
	<-h.ended
	<-h.ended
}

func request(n byte, prompt []int32, maxTokens int) engine.Request {
	p := sample.Default()
	p.MaxTokens = maxTokens
	return engine.Request{ID: engine.RequestID{n}, Attempt: 1, Prompt: prompt, Choices: 1, Params: p}
}

// collect waits until every choice of a request has finished or it has failed.
func (h *harness) collect(want map[engine.RequestID]int) (tokens map[engine.RequestID][][]int32, failed map[engine.RequestID]error) {
	h.t.Helper()
	tokens, failed = make(map[engine.RequestID][][]int32), make(map[engine.RequestID]error)
	open := 0
	for id, choices := range want {
		tokens[id] = make([][]int32, choices)
		open += choices
	}
	for open > 0 {
		o := <-h.outputs
		if o.Err != nil {
			failed[o.ID] = o.Err
			open -= want[o.ID]
			continue
		}
		got := tokens[o.ID]
		if o.Offset != len(got[o.Choice]) {
			h.t.Fatalf("request %x choice %d: offset %d after %d tokens", o.ID[:1], o.Choice, o.Offset, len(got[o.Choice]))
		}
		got[o.Choice] = append(got[o.Choice], o.Tokens...)
		if o.Finish != "" {
			open--
		}
	}
	return tokens, failed
}

// Every request gets the tokens that it gets alone, all its choices too, with
// one rank and with three that mirror each other; at the end nothing is held.
func TestRequestsGetTheirTokens(t *testing.T) {
	for _, ranks := range []int{1, 3} {
		t.Run(fmt.Sprint(ranks, " ranks"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := start(t, limits(), ranks)
				defer h.close()
				rng := rand.New(rand.NewPCG(1, 2))
				want := make(map[engine.RequestID]int)
				expected := make(map[engine.RequestID][]int32)
				for i := range byte(40) {
					prompt := make([]int32, 1+rng.IntN(90))
					for j := range prompt {
						prompt[j] = int32(rng.IntN(50))
					}
					r := request(i, prompt, 1+rng.IntN(30))
					r.Choices = 1 + rng.IntN(3)
					if err := h.engine.Submit(r); err != nil {
						t.Fatal(err)
					}
					want[r.ID] = r.Choices
					expected[r.ID] = schedtest.Expected(prompt, r.Params, limits().MaxLen)
				}
				tokens, failed := h.collect(want)
				if len(failed) > 0 {
					t.Fatalf("failed: %v", failed)
				}
				for id, choices := range tokens {
					for c, got := range choices {
						if !slices.Equal(got, expected[id]) {
							t.Errorf("request %d choice %d: got %v, want %v", id[0], c, got, expected[id])
						}
					}
				}
				synctest.Wait()
				s := h.engine.Stats()
				if s.BlocksFree+s.BlocksCached != s.Blocks || s.Running+s.Waiting != 0 {
					t.Errorf("after the last answer: %+v", s)
				}
			})
		})
	}
}

// A request that comes with tokens goes on after them, with the offsets that the
// client expects; one whose tokens are complete finishes at once.
func TestResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := start(t, limits(), 1)
		defer h.close()
		prompt := []int32{3, 1, 4, 1, 5, 9, 2, 6}
		r := request(1, prompt, 20)
		whole := schedtest.Expected(prompt, r.Params, limits().MaxLen)
		for _, given := range []int{0, 1, 7, 19, 20} {
			r.ID[1]++
			r.Outputs = [][]int32{whole[:given]}
			if err := h.engine.Submit(r); err != nil {
				t.Fatal(err)
			}
			got := slices.Clone(whole[:given])
			for finish := engine.FinishReason(""); finish == ""; {
				o := <-h.outputs
				if o.Err != nil || o.Offset != len(got) {
					t.Fatalf("given %d: offset %d after %d tokens, error %v", given, o.Offset, len(got), o.Err)
				}
				got, finish = append(got, o.Tokens...), o.Finish
			}
			if !slices.Equal(got, whole) {
				t.Errorf("given %d tokens: got %v, want %v", given, got, whole)
			}
		}
	})
}

// Cancelled choices fall silent, the others go on, and the blocks come back.
func TestCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := start(t, limits(), 1)
		defer h.close()
		r := request(1, []int32{1, 2, 3}, 100)
		r.Choices = 2
		if err := h.engine.Submit(r); err != nil {
			t.Fatal(err)
		}
		if err := h.engine.Cancel(r.ID, 1, []int{1}); err != nil {
			t.Fatal(err)
		}
		finished := false
		for !finished {
			o := <-h.outputs
			if o.Choice == 1 && o.Offset > 50 {
				t.Fatalf("choice 1 goes on after its cancellation: offset %d", o.Offset)
			}
			finished = o.Choice == 0 && o.Finish != ""
		}
		r.ID[1]++
		if err := h.engine.Submit(r); err != nil {
			t.Fatal(err)
		}
		if err := h.engine.Cancel(r.ID, 1, nil); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if s := h.engine.Stats(); s.Running != 0 || s.BlocksFree+s.BlocksCached != s.Blocks {
			t.Errorf("after cancelling all: %+v", s)
		}
	})
}

// A newer attempt takes the place of an older; an equal or older one is refused.
func TestAttempts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := start(t, limits(), 1)
		defer h.close()
		r := request(1, []int32{1, 2, 3}, 100)
		r.Attempt = 2
		for _, attempt := range []uint32{2, 2, 1, 3} {
			r.Attempt = attempt
			if err := h.engine.Submit(r); err != nil {
				t.Fatal(err)
			}
		}
		stale, finished := 0, false
		for !finished {
			o := <-h.outputs
			switch {
			case errors.Is(o.Err, engine.ErrStale):
				stale++
			case o.Finish != "":
				finished = true
				if o.Attempt != 3 {
					t.Errorf("attempt %d finished, want 3", o.Attempt)
				}
			}
		}
		if stale != 2 {
			t.Errorf("%d attempts refused, want 2", stale)
		}
	})
}

// A request that passes its deadline ends with ErrDeadline, one that can't fit
// with ErrInvalid, and both leave the others alone.
func TestRequestErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := start(t, limits(), 1)
		defer h.close()
		late := request(1, []int32{1, 2, 3}, 100)
		late.Deadline = time.Now()
		long := request(2, make([]int32, 200), 5)
		fine := request(3, []int32{1, 2, 3}, 100)
		for _, r := range []engine.Request{late, long, fine} {
			if err := h.engine.Submit(r); err != nil {
				t.Fatal(err)
			}
		}
		_, failed := h.collect(map[engine.RequestID]int{late.ID: 1, long.ID: 1, fine.ID: 1})
		if !errors.Is(failed[late.ID], engine.ErrDeadline) || !errors.Is(failed[long.ID], engine.ErrInvalid) || failed[fine.ID] != nil {
			t.Errorf("errors: %v", failed)
		}
		if err := h.engine.Submit(engine.Request{ID: engine.RequestID{9}}); !errors.Is(err, engine.ErrInvalid) {
			t.Errorf("empty request: %v", err)
		}
	})
}

// brokenRank fails at its third payload.
type brokenRank struct {
	*schedtest.Rank
	left int
}

func (r *brokenRank) Begin(payload []byte) (func() ([]byte, error), error) {
	if r.left--; r.left < 0 {
		return nil, errors.New("device lost")
	}
	return r.Rank.Begin(payload)
}

// A lost rank ends the epoch: every open request hears ErrLost, later ones are
// refused at once.
func TestLostRank(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, err := schedtest.NewRank(limits().Blocks, limits().Windows)
		if err != nil {
			t.Fatal(err)
		}
		h := startGroup(t, limits(), group.NewLocal(2, &brokenRank{Rank: r, left: 3}))
		defer h.stop()
		req := request(1, []int32{1, 2, 3}, 100)
		if err := h.engine.Submit(req); err != nil {
			t.Fatal(err)
		}
		_, failed := h.collect(map[engine.RequestID]int{req.ID: 1})
		if !errors.Is(failed[req.ID], engine.ErrLost) {
			t.Errorf("request: %v, want ErrLost", failed[req.ID])
		}
		<-h.ended
		<-h.ended
		if err := h.engine.Submit(req); !errors.Is(err, engine.ErrLost) {
			t.Errorf("submit afterwards: %v, want ErrLost", err)
		}
	})
}

// hungRank answers some payloads, and the next only when it is let go.
type hungRank struct {
	*schedtest.Rank
	left int
	free chan struct{}
}

func (r *hungRank) Begin(payload []byte) (func() ([]byte, error), error) {
	if r.left--; r.left < 0 {
		<-r.free
	}
	return r.Rank.Begin(payload)
}

// A step that takes far longer than those before it ends the epoch: within the
// floor where steps were quick.
func TestStuckStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rank, err := schedtest.NewRank(limits().Blocks, limits().Windows)
		if err != nil {
			t.Fatal(err)
		}
		r := &hungRank{Rank: rank, left: 5, free: make(chan struct{})}
		h := startGroup(t, limits(), group.NewLocal(2, r))
		defer h.stop()
		before := time.Now()
		req := request(1, []int32{1, 2, 3}, 100)
		if err := h.engine.Submit(req); err != nil {
			t.Fatal(err)
		}
		_, failed := h.collect(map[engine.RequestID]int{req.ID: 1})
		if !errors.Is(failed[req.ID], engine.ErrStuck) || !errors.Is(failed[req.ID], engine.ErrLost) {
			t.Errorf("request: %v, want ErrLost and ErrStuck", failed[req.ID])
		}
		if took := time.Since(before); took > 3*time.Second {
			t.Errorf("noticed after %v", took)
		}
		close(r.free)
		h.stop()
		<-h.ended
		<-h.ended
	})
}
