package dispatch

import (
	"context"
	"time"

	"manta/node/wire"
)

// Sink takes what a stream gives. Its calls come in order, one at a time, under the
// stream's turn.
type Sink interface {
	// Take takes events; the slice is the stream's own. Most calls come from the
	// goroutine that brings every request's frames: then mayWait is false, and Take
	// must not wait for anybody. It reports whether it is done. If not, the stream's
	// own goroutine calls it again, with no events, and it may wait. An error ends
	// the stream.
	Take(events []Event, mayWait bool) (done bool, err error)
}

// Run carries the request to its end, from one goroutine; then comes Close. It gives
// nil when every choice has ended, why the request failed, or the error of ctx or
// sink. That goroutine sends the request and resumes it, and sleeps otherwise: a
// frame goes through the sink on the goroutine that brought it, so a token wakes none.
func (s *Stream) Run(ctx context.Context, sink Sink) error {
	s.turn.Lock()
	defer s.turn.Unlock()
	s.sink = sink
	defer func() { s.sink = nil }()
	for {
		if len(s.ready) > 0 || s.unsent {
			_, err := sink.Take(s.ready, true)
			s.ready, s.unsent = s.ready[:0], false
			if err != nil {
				return err
			}
		}
		switch {
		case s.refusal != nil:
			return s.refusal
		case s.failed != nil:
			return s.failed
		case s.running == 0:
			s.release(nil)
			return nil
		case s.step(ctx):
			continue
		}
		s.turn.Unlock()
		late, err := s.sleep(ctx)
		s.turn.Lock()
		switch {
		case err != nil:
			return err
		case late:
			s.late()
		default:
			s.ask(ctx)
		}
	}
}

// sleep waits until there is something to do for Run, or the request is late.
func (s *Stream) sleep(ctx context.Context) (late bool, err error) {
	silent := time.NewTimer(askAfter)
	defer silent.Stop()
	select {
	case <-silent.C:
	case <-s.mailbox.wake:
	case <-s.pause:
		s.pause = nil
		s.dispatcher.requeue(s)
	case <-s.deadline:
		return true, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
	return false, nil
}

// offer takes a frame through the sink at once, where nothing stands before it, or
// leaves it in the mailbox.
func (s *Stream) offer(frame *wire.Frame, limit int) (stale bool) {
	box := &s.mailbox
	box.mu.Lock()
	if !box.takesLocked(frame) {
		box.mu.Unlock()
		return true
	}
	// Whoever has the turn while the mailbox is empty has seen every frame before.
	if frame.Err == nil && box.calm() && s.turn.TryLock() {
		box.mu.Unlock()
		relayed := s.relay(frame)
		s.turn.Unlock()
		if relayed {
			return false
		}
		box.mu.Lock()
	}
	defer box.mu.Unlock()
	return box.deliver(frame, limit)
}

// relay passes a frame on, unless its reader has to act first. The caller has the turn.
func (s *Stream) relay(frame *wire.Frame) bool {
	if s.sink == nil || s.failed != nil || s.refusal != nil || s.fault != nil || s.unsent || len(s.ready) > 0 || len(s.endings) > 0 {
		return false
	}
	if s.fault = s.collect(frame); s.fault == nil && len(s.ready) > 0 {
		done, err := s.sink.Take(s.ready, false)
		s.ready, s.unsent, s.refusal = s.ready[:0], !done, err
	}
	if s.fault != nil || s.refusal != nil || s.unsent || s.failed != nil || len(s.endings) > 0 {
		s.mailbox.signal()
	}
	return true
}

// ending is a choice that has ended, and whether its driver is yet to be told.
type ending struct {
	choice int
	tell   bool
}

// settle releases the choices that have ended.
func (s *Stream) settle() {
	for _, e := range s.endings {
		s.end(e)
	}
	s.endings = s.endings[:0]
}

// measure tells the meter of new tokens.
func (s *Stream) measure(c *choice, tokens int, frame *wire.Frame) {
	s.cached = max(s.cached, frame.Cached)
	if tokens == 0 {
		return
	}
	s.refusals = 0
	now := time.Now()
	since, first := s.times.last[c.index], false
	if since.IsZero() {
		since, first = s.times.accepted, true
	}
	if s.times.first.IsZero() {
		s.times.first = now
		s.request.Trace.First()
		s.dispatcher.begun(s)
	}
	s.times.last[c.index] = now
	s.dispatcher.meter.Output(s.request.Deployment, tokens, first, now.Sub(since))
}
