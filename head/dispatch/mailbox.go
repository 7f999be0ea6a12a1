package dispatch

import (
	"sync"

	"manta/node/wire"
)

// mailbox is what others leave for the reader. Its lock comes after Dispatcher.mu.
type mailbox struct {
	mu       sync.Mutex
	frames   []wire.Frame // guarded by mu
	weight   int          // guarded by mu: sum of frameWeight of frames
	overflow bool         // guarded by mu: a frame was dropped, the client is too slow
	attempt  uint32       // guarded by mu: frames of another are dropped
	target   *target      // guarded by mu: nil while queued
	granted  bool         // guarded by mu: target is new, the request must be sent
	lost     bool         // guarded by mu: target is gone
	deleted  bool         // guarded by mu: the deployment is gone
	// superseded: the client reads this request on another connection; guarded by mu.
	superseded bool
	wake       chan struct{}
}

// grant gives the request a place to run.
func (b *mailbox) grant(to target) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.target, b.granted, b.lost, b.frames, b.weight = &to, true, false, nil, 0
	b.signal()
}

// lose marks the target as gone if it is one that gone names.
func (b *mailbox) lose(gone func(target) bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.target != nil && !b.lost && gone(*b.target) {
		b.lost = true
		b.signal()
	}
}

// delete marks the deployment as gone.
func (b *mailbox) delete() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.deleted = true
	b.signal()
}

// supersede takes the request away from its reader.
func (b *mailbox) supersede() uint32 {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.target, b.granted, b.lost, b.frames, b.weight = nil, false, false, nil, 0
	b.superseded = true
	b.signal()
	return b.attempt
}

// takes reports whether a frame is of the newest sending.
func (b *mailbox) takes(frame *wire.Frame) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.takesLocked(frame)
}

// takesLocked is takes for who holds mu.
func (b *mailbox) takesLocked(frame *wire.Frame) bool {
	return b.target != nil && !b.granted && frame.Attempt == b.attempt && frame.Epoch == b.target.epoch
}

// where gives the target without changing it.
func (b *mailbox) where() (*target, uint32) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.target, b.attempt
}

// sent reports whether the request is with a driver.
func (b *mailbox) sent() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.target != nil && !b.granted && !b.lost
}

// withdraw takes the target away: what still comes from there is stale. A target
// that was granted but never sent to needs no cancel, so it is not given.
func (b *mailbox) withdraw() (*target, uint32) {
	b.mu.Lock()
	defer b.mu.Unlock()
	to := b.target
	if b.granted {
		to = nil
	}
	b.target, b.granted, b.lost, b.frames, b.weight = nil, false, false, nil, 0
	return to, b.attempt
}

// calm reports whether there is nothing that the reader has to look at first.
func (b *mailbox) calm() bool {
	return len(b.frames) == 0 && !b.overflow && !b.lost && !b.deleted && !b.superseded
}

// deliver leaves a frame for the reader. Frames of an older attempt or epoch are
// stale and dropped; so is everything once the reader lags too far behind. The caller
// holds mu.
func (b *mailbox) deliver(frame *wire.Frame, limit int) (stale bool) {
	if !b.takesLocked(frame) {
		return true
	}
	b.weight += frameWeight(frame)
	if b.weight > limit {
		b.overflow, b.frames = true, nil
	} else if !b.overflow {
		b.frames = append(b.frames, *frame)
	}
	b.signal()
	return false
}

// signal wakes the reader; one that is awake finds everything anyway.
func (b *mailbox) signal() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// frameWeight is about the bytes that a frame holds while it waits.
func frameWeight(f *wire.Frame) int {
	weight := 160 + 4*len(f.Tokens)
	for i := range f.Logprobs {
		weight += 48 + 8*len(f.Logprobs[i].Top)
	}
	for i := range f.Prompt {
		weight += 48 + 8*len(f.Prompt[i].Top)
	}
	return weight
}
