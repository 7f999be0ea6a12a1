package engine

import (
	"errors"
	"fmt"
	"time"
)

// ErrStuck means that a step took far longer than those before it allow.
var ErrStuck = errors.New("engine: step is stuck")

// A StuckError tells which ranks may be to blame. It wraps ErrStuck.
type StuckError struct {
	Steps   uint64            // that every rank answered
	Answers map[string]uint64 // of each node's ranks together; "" is the driver's
	cause   error
}

func (s *StuckError) Error() string { return s.cause.Error() }
func (s *StuckError) Unwrap() error { return s.cause }

const (
	// firstStep bounds the steps before any has been answered: weights may still
	// come from a disk.
	firstStep = 10 * time.Minute
	// stepFloor is allowed to every step, whatever it should take.
	stepFloor = 2 * time.Second
	// stepFactor is how much slower than the slowest so far a step may be.
	stepFactor = 10
	// smallStep: below so many rows a step's cost hardly depends on them.
	smallStep = 16
)

// watchdog bounds the oldest step in flight by what steps have cost so far.
//
// The cost of a step is taken as proportional to its rows, at least smallStep of
// them, at the slowest rate seen. A long prompt on a slow processor so has its
// time, and a hung decode step is noticed soon.
type watchdog struct {
	rows  []int     // of the steps in flight, oldest first
	since time.Time // when the oldest became that
	rate  time.Duration
	seen  bool // a step has been answered: rate is known
}

// sent notes that a step has gone out.
func (w *watchdog) sent(now time.Time, rows int) {
	if len(w.rows) == 0 {
		w.since = now
	}
	w.rows = append(w.rows, max(rows, smallStep))
}

// answered notes that the oldest step has come back.
func (w *watchdog) answered(now time.Time) {
	took := now.Sub(w.since) / time.Duration(w.rows[0])
	w.rate = max(took, w.rate-w.rate/1024) // forget slowly what happened once
	w.rows = w.rows[1:]
	w.since, w.seen = now, true
}

// deadline is when the oldest step must have come back; false: none is in flight.
func (w *watchdog) deadline() (time.Time, bool) {
	switch {
	case len(w.rows) == 0:
		return time.Time{}, false
	case !w.seen:
		return w.since.Add(firstStep), true
	}
	return w.since.Add(stepFloor + stepFactor*w.rate*time.Duration(w.rows[0])), true
}

// check gives ErrStuck when the oldest step is overdue.
func (w *watchdog) check(now time.Time) error {
	if deadline, ok := w.deadline(); ok && now.After(deadline) {
		return fmt.Errorf("%w: %d rows, no answer after %v", ErrStuck, w.rows[0], now.Sub(w.since).Round(time.Millisecond))
	}
	return nil
}
