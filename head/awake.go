package head

import (
	"context"
	"sync/atomic"
	"time"
)

// awakeTick is how often the clock looks at itself.
const awakeTick = 50 * time.Millisecond

// An awake clock counts the time during which this process ran. What it did not
// hear while it was stopped, or got no processor, says nothing about others: a
// head that starved must not take its nodes for dead.
type awake struct {
	start time.Time
	lost  atomic.Int64 // nanoseconds that passed without this process
	seen  atomic.Int64 // when it last looked, since start
}

func newAwake() *awake { return &awake{start: time.Now()} }

// now is the time that this process was awake so far.
func (a *awake) now() time.Duration {
	since := time.Since(a.start)
	// A look that is overdue counts for as long as it may take.
	if late := since - time.Duration(a.seen.Load()) - 2*awakeTick; late > 0 {
		since -= late
	}
	return since - time.Duration(a.lost.Load())
}

// run keeps the clock until ctx ends.
func (a *awake) run(ctx context.Context) error {
	ticker := time.NewTicker(awakeTick)
	defer ticker.Stop()
	for {
		a.look(time.Since(a.start))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
}

// look notes how much of the time since the last look was lost.
func (a *awake) look(since time.Duration) {
	if late := since - time.Duration(a.seen.Load()) - 2*awakeTick; late > 0 {
		a.lost.Add(int64(late))
	}
	a.seen.Store(int64(since))
}
