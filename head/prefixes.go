package head

import (
	"context"
	"maps"
	"time"

	"golang.org/x/sync/errgroup"

	"manta/internal/trust"
	"manta/node/wire"
)

const (
	// kindPrefixes is a call to another head: []route.Sent → nothing.
	kindPrefixes = "prefixes"
	// gather is how long what was sent waits for more before other heads are told.
	gather = 50 * time.Millisecond
	// tellTimeout bounds how long another head may take to hear it, and tellPause is how
	// long one that did not is left out: a belief that it lacks costs a hit, nothing else.
	tellTimeout = time.Second
	tellPause   = 10 * time.Second
)

// tellPrefixes tells the other heads which prompts this one has sent where, so that a
// chat that comes to another head goes where its prefix is.
func (h *Head) tellPrefixes(ctx context.Context) error {
	left := map[trust.Identity]time.Time{} // heads that did not hear, and until when
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-h.dispatch.Told():
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(gather):
		}
		maps.DeleteFunc(left, func(_ trust.Identity, until time.Time) bool { return time.Now().After(until) })
		data, err := wire.Marshal(h.dispatch.Tell())
		if err != nil {
			return err
		}
		calls, heads := errgroup.Group{}, h.heads()
		failed := make([]bool, len(heads))
		for i, m := range heads {
			if _, silent := left[m.Identity]; silent || m.ID == h.id.ID {
				continue
			}
			calls.Go(func() error {
				ctx, stop := context.WithTimeout(ctx, tellTimeout)
				defer stop()
				_, err := h.link.Call(ctx, m.Identity, kindPrefixes, data)
				failed[i] = err != nil
				return err
			})
		}
		if calls.Wait() == nil {
			continue
		}
		for i, m := range heads {
			if failed[i] {
				left[m.Identity] = time.Now().Add(tellPause)
			}
		}
	}
}
