//go:build cuda

package cuda

import (
	"sync"
	"time"
)

// spent counts how long the device had a step to do, and how long it had none
// between two: the host's share, if there was work all along.
type spent struct {
	mu         sync.Mutex // guards what follows
	busy, idle time.Duration
	last       time.Time // when the newest step ended
}

// ended notes a step by when the host began to hand it over and when it had ended.
// One that was handed over while another ran began when that ended.
func (s *spent) ended(sent, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	began := s.last
	if sent.After(began) {
		if !s.last.IsZero() {
			s.idle += sent.Sub(s.last)
		}
		began = sent
	}
	s.busy += now.Sub(began)
	s.last = now
}

// Spent gives how long the device has worked on steps, and how long it stood idle
// between them.
func (o *Ops) Spent() (busy, idle time.Duration) {
	o.spent.mu.Lock()
	defer o.spent.mu.Unlock()
	return o.spent.busy, o.spent.idle
}
