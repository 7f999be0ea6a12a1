package serve

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"manta/internal/trace"
	"manta/node/wire"
	"manta/runtime/engine"
)

const (
	// keepEnded is how long the outputs of an ended request are kept for a client
	// that comes back through another head …
	keepEnded = 60 * time.Second
	// … and keepBytes how much memory all of them may take.
	keepBytes = 64 << 20
	// proven is how many tokens clear a request that had to run alone: then it has
	// got past the place where replicas died with it.
	proven = 16
)

// errWithdrawn is what the trace of a request tells whose head wants no more of it.
var errWithdrawn = errors.New("withdrawn")

// canceller is what sessions need of an engine.
type canceller interface {
	Cancel(id engine.RequestID, attempt uint32, choices []int) error
}

// session is a request on one of this node's drivers, with all that it has given
// so far. Its head may change: a newer attempt takes it over where it is.
type session struct {
	request wire.Request // of the newest attempt
	attempt uint32       // under which the engine knows it
	engine  canceller
	choices []choiceLog
	prompt  []wire.Logprob
	cached  int
	open    int // choices not ended
	given   int // tokens of all choices since it began here
	ended   time.Time
	bytes   int
	trace   *trace.Work
}

// choiceLog is what one choice has given.
type choiceLog struct {
	tokens   []int32
	logprobs []wire.Logprob
	finish   wire.FinishReason
	closed   bool // finished or cancelled
	base     int  // output tokens that the request came with: tokens[0] follows them
	sent     int  // of tokens: those that are in frames
	sentAt   time.Time
}

// sessions are the requests of all drivers of a node.
type sessions struct {
	out    *outboxes
	tracer *trace.Tracer

	mu    sync.Mutex // guards what follows
	byID  map[wire.RequestID]*session
	ended []*session // oldest first
	kept  int        // bytes of ended
	open  int        // sessions not ended
	wake  chan struct{}
	alone map[canceller]*session // what an engine has to run alone
}

func newSessions(out *outboxes, tracer *trace.Tracer) *sessions {
	return &sessions{out: out, tracer: tracer, byID: make(map[wire.RequestID]*session), alone: make(map[canceller]*session), wake: make(chan struct{})}
}

// begin makes a session for a request, or lets a newer attempt take over the one
// there is. With takenOver the engine has it already.
func (s *sessions) begin(r wire.Request, e canceller) (takenOver bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old, ok := s.byID[r.ID]; ok {
		switch {
		case old.request.Owner != r.Owner || old.request.Body != r.Body:
			return false, &wire.Error{Code: wire.ErrInvalid, Message: "a request of this id has another key or body"}
		case r.Attempt <= old.request.Attempt:
			return false, &wire.Error{Code: wire.ErrStale, Message: "an attempt as new is already here"}
		case old.engine == e && old.covers(r):
			s.takeOver(old, r)
			return true, nil
		}
		_ = old.engine.Cancel(engine.RequestID(r.ID), old.attempt, nil) // a lost engine has forgotten it anyway
		s.forget(old)
	}
	if s.alone[e] != nil {
		return false, &wire.Error{Code: wire.ErrBusy, Message: "a request that replicas died with runs alone"}
	}
	if r.Alone {
		s.clear(e)
	}
	n := &session{request: r, attempt: r.Attempt, engine: e, open: r.Choices, choices: make([]choiceLog, r.Choices)}
	for c := range min(r.Choices, len(r.Outputs)) {
		n.choices[c].base = len(r.Outputs[c])
	}
	n.trace = s.tracer.Work(place(r), r.Replica, r.Choices)
	s.byID[r.ID] = n
	s.open++
	if r.Alone {
		s.alone[e] = n
		taken := n.frame(0) // with nothing in it: the head learns that the request runs, alone
		taken.Offset = n.choices[0].base
		s.out.put(r.Head, taken)
	}
	return false, nil
}

// start gives a request that has begun to its engine, unless it was withdrawn since.
// A newer attempt that took it over is told what went wrong.
func (s *sessions) start(r wire.Request, e canceller, submit func() error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.byID[r.ID]
	if n == nil || n.engine != e || n.attempt != r.Attempt || !n.ended.IsZero() {
		return
	}
	if err := submit(); err != nil {
		f, _ := s.record(n, &engine.Output{Err: err})
		s.out.put(n.request.Head, f)
	}
}

// place is where a request's trace goes on.
func place(r wire.Request) trace.Context {
	return trace.Context{Parent: r.TraceParent, State: r.TraceState}
}

// clear sends the requests of an engine back to their heads.
func (s *sessions) clear(e canceller) {
	for _, n := range s.byID {
		if n.engine != e || !n.ended.IsZero() {
			continue
		}
		f := n.frame(0)
		f.Err = &wire.Error{Code: wire.ErrBusy, Message: "another request runs alone"}
		s.out.put(n.request.Head, f)
		_ = e.Cancel(engine.RequestID(n.request.ID), n.attempt, nil) // a lost engine has forgotten it anyway
		s.forget(n)
	}
}

// covers reports whether the session has all tokens that a newer attempt lacks.
func (n *session) covers(r wire.Request) bool {
	for c := range n.choices {
		given := 0
		if c < len(r.Outputs) {
			given = len(r.Outputs[c])
		}
		log := &n.choices[c]
		if given < log.base || given > log.base+len(log.tokens) || log.closed && log.finish == wire.Unfinished {
			return false
		}
	}
	return true
}

// takeOver goes on for the head of a newer attempt, after the tokens it has.
func (s *sessions) takeOver(n *session, r wire.Request) {
	n.request = r
	n.trace.Move(place(r))
	for c := range n.choices {
		log := &n.choices[c]
		given := 0
		if c < len(r.Outputs) {
			given = len(r.Outputs[c])
		}
		f := n.frame(c)
		f.Offset = given
		f.Tokens = log.tokens[given-log.base:]
		if log.logprobs != nil {
			f.Logprobs = log.logprobs[given-log.base:]
		}
		f.Finish = log.finish
		if c == 0 && given == 0 {
			f.Prompt = n.prompt
		}
		if log.sent, log.sentAt = len(log.tokens), time.Now(); len(f.Tokens) > 0 || f.Finish != wire.Unfinished {
			s.out.put(r.Head, f)
		}
	}
}

func (n *session) frame(choice int) wire.Frame {
	return wire.Frame{
		Version: wire.Version, Request: n.request.ID, Attempt: n.request.Attempt, Epoch: n.request.Epoch,
		Choice: choice, Cached: n.cached,
	}
}

// deliver passes an engine's outputs on. The engine's loop calls it.
func (s *sessions) deliver(e canceller, outputs []engine.Output) {
	s.mu.Lock()
	defer s.mu.Unlock()
	type mail struct {
		frames []wire.Frame
		urgent bool // one of them can't wait
	}
	all := make(map[string]mail, 1)
	for i := range outputs {
		o := &outputs[i]
		n := s.byID[wire.RequestID(o.ID)]
		if n == nil || n.engine != e || o.Attempt != n.attempt {
			continue
		}
		waited := n.sinceSent(o)
		if f, ok := s.record(n, o); ok {
			m := all[n.request.Head]
			m.frames, m.urgent = append(m.frames, f), m.urgent || f.Finish != wire.Unfinished || f.Err != nil || waited < slow
			all[n.request.Head] = m
		}
	}
	for head, m := range all {
		s.out.queue(head, m.frames, !m.urgent)
	}
}

// sinceSent is the time since a choice's last tokens went out; 0: none have.
func (n *session) sinceSent(o *engine.Output) time.Duration {
	if o.Err != nil || n.choices[o.Choice].sent == 0 {
		return 0
	}
	return time.Since(n.choices[o.Choice].sentAt)
}

// record adds an output to its session and gives the frame to send. Tokens of a choice
// that goes on wait for those that belong to their interval, the first one excepted.
func (s *sessions) record(n *session, o *engine.Output) (wire.Frame, bool) {
	if o.Err != nil {
		f := n.frame(0)
		f.Err = wireError(o.Err)
		n.trace.End(o.Err)
		s.forget(n)
		return f, true
	}
	log := &n.choices[o.Choice]
	if log.closed {
		return wire.Frame{}, false
	}
	n.cached = o.Cached
	if o.Life != nil {
		n.trace.Output(o.Choice, len(o.Tokens), o.Cached, trace.Progress(*o.Life))
	}
	f := n.frame(o.Choice)
	log.tokens = append(log.tokens, o.Tokens...)
	log.logprobs = append(log.logprobs, logprobs(o.Logprobs)...)
	log.finish = wire.FinishReason(o.Finish)
	f.Offset, f.Tokens, f.Finish = log.base+log.sent, slices.Clip(log.tokens[log.sent:]), log.finish
	if log.logprobs != nil {
		f.Logprobs = slices.Clip(log.logprobs[log.sent:])
	}
	if f.Prompt = logprobs(o.Prompt); f.Prompt != nil {
		n.prompt = f.Prompt
	}
	if n.given += len(o.Tokens); n.given >= proven && s.alone[n.engine] == n {
		delete(s.alone, n.engine)
	}
	if f.Finish == wire.Unfinished && log.sent > 0 && len(f.Tokens) < n.request.StreamInterval {
		return wire.Frame{}, false
	}
	log.sent, log.sentAt = len(log.tokens), time.Now()
	n.bytes += size(f)
	if f.Finish != wire.Unfinished {
		s.closeChoice(n, o.Choice)
	}
	return f, true
}

func logprobs(in []engine.Logprob) []wire.Logprob {
	if in == nil {
		return nil
	}
	out := make([]wire.Logprob, len(in))
	for i, l := range in {
		out[i] = wire.Logprob{Token: l.Token, Logprob: l.Logprob, Rank: l.Rank, Top: l.Top}
	}
	return out
}

// size is about what a frame's content takes in memory.
func size(f wire.Frame) int {
	n := 4 * len(f.Tokens)
	for _, list := range [][]wire.Logprob{f.Logprobs, f.Prompt} {
		for _, l := range list {
			n += 40 + 8*len(l.Top)
		}
	}
	return n
}

func (s *sessions) closeChoice(n *session, choice int) {
	if n.choices[choice].closed {
		return
	}
	n.choices[choice].closed = true
	if n.open--; n.open > 0 {
		return
	}
	n.ended = time.Now()
	s.ended = append(s.ended, n)
	s.kept += n.bytes
	s.closeSession(n)
	for s.kept > keepBytes {
		s.forget(s.ended[0])
	}
}

// closeSession counts a session out.
func (s *sessions) closeSession(n *session) {
	if s.alone[n.engine] == n {
		delete(s.alone, n.engine)
	}
	n.trace.End(nil)
	s.open--
	close(s.wake)
	s.wake = make(chan struct{})
}

// forget drops a session and what it has given.
func (s *sessions) forget(n *session) {
	if s.byID[n.request.ID] == n {
		delete(s.byID, n.request.ID)
	}
	if n.ended.IsZero() {
		n.trace.End(errWithdrawn)
		s.closeSession(n)
		return
	}
	for i, e := range s.ended {
		if e == n {
			s.ended = append(s.ended[:i], s.ended[i+1:]...)
			s.kept -= n.bytes
			return
		}
	}
}

// expire forgets what ended long ago.
func (s *sessions) expire(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.ended) > 0 && now.Sub(s.ended[0].ended) > keepEnded {
		s.forget(s.ended[0])
	}
}

// cancel withdraws a request or some of its choices.
func (s *sessions) cancel(c wire.Cancel) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, ok := s.byID[c.ID]
	if !ok || c.Attempt < n.request.Attempt {
		return
	}
	if n.ended.IsZero() {
		_ = n.engine.Cancel(engine.RequestID(c.ID), n.attempt, c.Choices) // a lost engine has forgotten it anyway
	}
	if len(c.Choices) == 0 {
		s.forget(n)
		return
	}
	for _, choice := range c.Choices {
		if choice >= 0 && choice < len(n.choices) {
			s.closeChoice(n, choice)
		}
	}
}

// abandon cancels the requests of a head that is gone.
func (s *sessions) abandon(head string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.byID {
		if n.request.Head == head && n.ended.IsZero() {
			_ = n.engine.Cancel(engine.RequestID(n.request.ID), n.attempt, nil) // as above
			s.forget(n)
		}
	}
}

// drained waits until no request is in progress.
func (s *sessions) drained(ctx context.Context) error {
	for {
		s.mu.Lock()
		open, wake := s.open, s.wake
		s.mu.Unlock()
		if open == 0 {
			return nil
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
