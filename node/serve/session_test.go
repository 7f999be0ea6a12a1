package serve

import (
	"log/slog"
	"slices"
	"testing"

	"manta/node/wire"
	"manta/runtime/engine"
)

// account is an engine that only notes what is withdrawn from it.
type account struct{ cancelled []engine.RequestID }

func (a *account) Cancel(id engine.RequestID, _ uint32, _ []int) error {
	a.cancelled = append(a.cancelled, id)
	return nil
}

// A request that must run alone sends the others of its engine back and keeps new
// ones out, until it has got past the place where replicas died with it, or ends.
func TestAlone(t *testing.T) {
	ask := func(id byte, alone bool) wire.Request {
		return wire.Request{ID: wire.RequestID{id}, Attempt: 1, Choices: 1, Head: "h", Alone: alone}
	}
	for _, test := range []struct {
		name string
		ends func(s *sessions, e *account)
	}{
		{"got past", func(s *sessions, e *account) {
			s.deliver(e, []engine.Output{{ID: engine.RequestID{2}, Attempt: 1, Tokens: make([]int32, proven)}})
		}},
		{"finished", func(s *sessions, e *account) {
			s.deliver(e, []engine.Output{{ID: engine.RequestID{2}, Attempt: 1, Tokens: []int32{1}, Finish: "stop"}})
		}},
		{"lost", func(s *sessions, e *account) {
			s.deliver(e, []engine.Output{{ID: engine.RequestID{2}, Attempt: 1, Err: engine.ErrLost}})
		}},
		{"cancelled", func(s *sessions, _ *account) { s.cancel(wire.Cancel{ID: wire.RequestID{2}, Attempt: 1}) }},
		{"its head is gone", func(s *sessions, _ *account) { s.abandon("h") }},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newSessions(newOutboxes(nil, slog.New(slog.DiscardHandler)), nil)
			here, elsewhere := &account{}, &account{}
			begin := func(e *account, r wire.Request) wire.ErrorCode {
				_, err := s.begin(r, e)
				if err == nil {
					return ""
				}
				return wireError(err).Code
			}
			begin(here, ask(1, false))
			begin(elsewhere, ask(9, false))
			if code := begin(here, ask(2, true)); code != "" {
				t.Fatalf("the suspect is refused: %s", code)
			}
			frames, _ := s.out.boxes["h"].take()
			if len(frames) != 2 || frames[0].Request != (wire.RequestID{1}) || frames[0].Err == nil || frames[0].Err.Code != wire.ErrBusy {
				t.Fatalf("the other request heard %+v", frames)
			}
			if frames[1].Request != (wire.RequestID{2}) || frames[1].Err != nil {
				t.Errorf("the suspect was not told that it runs: %+v", frames[1])
			}
			if !slices.Equal(here.cancelled, []engine.RequestID{{1}}) || len(elsewhere.cancelled) > 0 {
				t.Errorf("cancelled %v here, %v elsewhere", here.cancelled, elsewhere.cancelled)
			}
			for _, alone := range []bool{false, true} {
				if code := begin(here, ask(3, alone)); code != wire.ErrBusy {
					t.Errorf("beside a suspect, alone %v: %q, want busy", alone, code)
				}
			}
			s.deliver(here, []engine.Output{{ID: engine.RequestID{2}, Attempt: 1, Tokens: []int32{1}}})
			if code := begin(here, ask(3, false)); code != wire.ErrBusy {
				t.Errorf("after one token: %q, want busy", code)
			}
			test.ends(s, here)
			if code := begin(here, ask(3, false)); code != "" {
				t.Errorf("afterwards: %s", code)
			}
		})
	}
}

// A choice's tokens come as many at once as its head has asked for, the first one
// alone and the last ones with what waits; another head gets what waits at once.
func TestStreamInterval(t *testing.T) {
	s := newSessions(newOutboxes(nil, slog.New(slog.DiscardHandler)), nil)
	here := &account{}
	given, log := 0, []float32{}
	give := func(attempt uint32, n int, finish engine.FinishReason) {
		for range n {
			given++
			o := engine.Output{ID: engine.RequestID{1}, Attempt: attempt, Offset: given - 1, Tokens: []int32{int32(given)}}
			o.Logprobs = []engine.Logprob{{Token: int32(given), Logprob: -float32(given)}}
			if log = append(log, -float32(given)); given == 17 {
				o.Finish = finish
			}
			s.deliver(here, []engine.Output{o})
		}
	}
	heard := func(head string, from int, want ...int) {
		t.Helper()
		frames, _ := s.out.boxes[head].take()
		var sizes []int
		for _, f := range frames {
			for i, token := range f.Tokens {
				if f.Offset != from || int(token) != from+i+1 || f.Logprobs[i].Logprob != log[from+i] {
					t.Errorf("%s: after %d tokens: %+v", head, from, f)
				}
			}
			from += len(f.Tokens)
			sizes = append(sizes, len(f.Tokens))
		}
		if !slices.Equal(sizes, want) {
			t.Errorf("%s: frames of %v tokens, want %v", head, sizes, want)
		}
	}
	r := wire.Request{ID: wire.RequestID{1}, Attempt: 1, Choices: 1, Head: "a", StreamInterval: 4}
	if _, err := s.begin(r, here); err != nil {
		t.Fatal(err)
	}
	give(1, 7, "")
	heard("a", 0, 1, 4)
	r.Attempt, r.Head, r.Outputs = 2, "b", [][]int32{{1, 2, 3, 4, 5}}
	if taken, err := s.begin(r, here); !taken || err != nil {
		t.Fatal(taken, err)
	}
	heard("b", 5, 2) // and 4 more from there
	give(1, 10, "stop")
	heard("b", 7, 4, 4, 2)
}

// A request whose engine is to get it later gets it if it is still there then, and who
// hears that the engine refused it is the head of its newest attempt.
func TestStartLater(t *testing.T) {
	ask := func(attempt uint32, head string) wire.Request {
		return wire.Request{ID: wire.RequestID{1}, Attempt: attempt, Choices: 1, Head: head, Alone: true}
	}
	for _, test := range []struct {
		name      string
		meanwhile func(s *sessions, e *account)
		submitted bool
		heard     string // the head that learns what went wrong
	}{
		{"nothing", func(*sessions, *account) {}, true, "h"},
		{"cancelled", func(s *sessions, _ *account) { s.cancel(wire.Cancel{ID: wire.RequestID{1}, Attempt: 1}) }, false, ""},
		{"its head is gone", func(s *sessions, _ *account) { s.abandon("h") }, false, ""},
		{"taken over", func(s *sessions, e *account) { s.begin(ask(2, "other"), e) }, true, "other"},
		{"elsewhere", func(s *sessions, _ *account) { s.begin(ask(2, "h"), &account{}) }, false, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newSessions(newOutboxes(nil, slog.New(slog.DiscardHandler)), nil)
			e := &account{}
			if _, err := s.begin(ask(1, "h"), e); err != nil {
				t.Fatal(err)
			}
			test.meanwhile(s, e)
			submitted := false
			s.start(ask(1, "h"), e, func() error { submitted = true; return engine.ErrLost })
			if submitted != test.submitted {
				t.Errorf("submitted: %v", submitted)
			}
			heard := ""
			for head, box := range s.out.boxes {
				frames, _ := box.take()
				for _, f := range frames {
					if f.Err != nil {
						heard += head
					}
				}
			}
			if heard != test.heard {
				t.Errorf("%q heard of an error, want %q", heard, test.heard)
			}
		})
	}
}
