package serve

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"manta/node/wire"
)

const (
	// outboxFrames bounds the frames that wait for one head. A head that is so far
	// behind has lost them; it sees the gap, or hears nothing more, and asks again.
	outboxFrames = 1 << 16
	// headGone is how long a head may be out of reach before its requests end.
	headGone = 60 * time.Second
	// retryPause is between two attempts to reach a head.
	retryPause = 100 * time.Millisecond
	// A token of a slow stream waits for the next tick of the clock, by which all nodes
	// send such tokens: a head that little comes to wakes once for many of them, not for
	// each. It is late by a sixteenth of the time between two tokens at most.
	tick = 4 * time.Millisecond
	slow = 16 * tick // between two tokens
)

// outboxes hold what waits to be sent, a queue and a goroutine a head.
type outboxes struct {
	send Sender
	log  *slog.Logger

	mu      sync.Mutex // guards what follows
	boxes   map[string]*outbox
	running context.Context
	group   *errgroup.Group
}

// outbox is one head's queue.
type outbox struct {
	head  string
	ready chan struct{} // holds one: there are frames
	ticks *time.Timer   // set while nothing but frames that can wait is there; Reset under mu

	mu      sync.Mutex // guards what follows
	frames  []wire.Frame
	failing time.Time // since when; zero: the last send succeeded
	dropped bool
}

func newOutboxes(send Sender, log *slog.Logger) *outboxes {
	return &outboxes{send: send, log: log, boxes: make(map[string]*outbox)}
}

func (o *outboxes) run(ctx context.Context) error {
	o.mu.Lock()
	group, running := errgroup.WithContext(ctx)
	o.running, o.group = running, group
	for _, box := range o.boxes {
		group.Go(func() error { return o.deliver(running, box) })
	}
	group.Go(func() error { <-running.Done(); return running.Err() })
	o.mu.Unlock()
	return group.Wait()
}

// put queues frames for a head, which go as soon as those before them are gone. It
// never blocks.
func (o *outboxes) put(head string, frames ...wire.Frame) { o.queue(head, frames, false) }

// queue is put for frames that can wait for the next tick, too.
func (o *outboxes) queue(head string, frames []wire.Frame, canWait bool) {
	o.mu.Lock()
	box, ok := o.boxes[head]
	if !ok {
		box = &outbox{head: head, ready: make(chan struct{}, 1), ticks: time.NewTimer(tick)}
		o.boxes[head] = box
		if o.group != nil && o.running.Err() == nil {
			running := o.running
			o.group.Go(func() error { return o.deliver(running, box) })
		}
	}
	o.mu.Unlock()
	box.put(frames, canWait)
}

func (b *outbox) put(frames []wire.Frame, canWait bool) {
	b.mu.Lock()
	if len(b.frames)+len(frames) > outboxFrames {
		b.frames, b.dropped = nil, true
	}
	if canWait && len(b.frames) == 0 {
		b.ticks.Reset(untilTick(time.Now()))
	}
	b.frames = append(b.frames, frames...)
	b.mu.Unlock()
	if canWait {
		return
	}
	select {
	case b.ready <- struct{}{}:
	default:
	}
}

// untilTick is the time to the next tick, which comes everywhere at once where clocks agree.
func untilTick(now time.Time) time.Duration {
	return tick - time.Duration(now.UnixNano())%tick
}

func (b *outbox) take() (frames []wire.Frame, dropped bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	frames, dropped = b.frames, b.dropped
	b.frames, b.dropped = nil, false
	return frames, dropped
}

// back puts frames that could not be sent before those that came since: were the last
// frame of a request lost, its head would wait for it for ever.
func (b *outbox) back(frames []wire.Frame) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(frames)+len(b.frames) > outboxFrames {
		b.frames, b.dropped = nil, true
		return
	}
	b.frames = append(frames, b.frames...)
	select {
	case b.ready <- struct{}{}:
	default:
	}
}

// deliver sends what is queued for one head, all that there is at a time, and what
// could not be sent again and again until the head counts as gone.
func (o *outboxes) deliver(ctx context.Context, b *outbox) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-b.ready:
		case <-b.ticks.C:
		}
		frames, dropped := b.take()
		if dropped {
			o.log.Warn("frames dropped", "head", b.head, "why", "the head does not keep up")
		}
		if len(frames) == 0 {
			continue
		}
		data, err := wire.Marshal(wire.Frames{Version: wire.Version, Frames: frames})
		if err != nil {
			o.log.Error("frames lost", "head", b.head, "frames", len(frames), "err", err)
			continue
		}
		err = o.send.Send(ctx, b.head, wire.KindFrames, data)
		since := b.outcome(err)
		if err == nil || ctx.Err() != nil {
			continue
		}
		switch {
		case since > headGone:
			o.log.Warn("frames lost", "head", b.head, "frames", len(frames), "err", err)
		case since == 0:
			o.log.Warn("frames wait", "head", b.head, "frames", len(frames), "err", err)
			fallthrough
		default:
			b.back(frames)
		}
		select {
		case <-ctx.Done():
		case <-time.After(retryPause):
		}
	}
}

// outcome notes how a send ended, and gives for how long they have failed by now.
func (b *outbox) outcome(err error) (since time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case err == nil:
		b.failing = time.Time{}
	case b.failing.IsZero():
		b.failing = time.Now()
	default:
		since = time.Since(b.failing)
	}
	return since
}

// lost names the heads that have been out of reach for too long.
func (o *outboxes) lost(now time.Time) []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	var heads []string
	for head, b := range o.boxes {
		b.mu.Lock()
		if !b.failing.IsZero() && now.Sub(b.failing) > headGone {
			heads = append(heads, head)
		}
		b.mu.Unlock()
	}
	return heads
}
