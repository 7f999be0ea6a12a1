package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"manta/head/state"
)

const (
	// lookEvery is between two looks at a View that has changed.
	lookEvery = time.Second
	// sweepEvery is between two removals of garbage, and Grace how long bytes stay
	// that nothing refers to: a command that names them may be on its way.
	sweepEvery = 10 * time.Minute
	Grace      = time.Hour
	// retryEvery is between two tries to get what no head gave.
	retryEvery = 5 * time.Second
)

// Referrer tells which bytes are needed.
type Referrer interface {
	// Referenced calls use for every digest that the newest state names.
	Referenced(use func(state.Digest))
	// Changed is closed when there is a later state.
	Changed() <-chan struct{}
}

// Keep gets what the state names and this head's disk lacks from other heads, and
// removes what nothing has named for a while, until ctx ends. So a head that lost
// its disk, or that a Put did not wait for, comes to hold everything.
func (r *Replicated) Keep(ctx context.Context, from Referrer, log *slog.Logger) error {
	have := map[state.Digest]bool{}
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	var swept time.Time
	for {
		changed := from.Changed()
		missing := r.repair(ctx, from, have, log)
		if time.Since(swept) > sweepEvery {
			swept = time.Now()
			if err := r.sweep(from, have, swept.Add(-Grace)); err != nil {
				log.Warn("store not swept", "error", err)
			}
		}
		var retry <-chan time.Time
		if missing > 0 {
			retry = time.After(retryEvery)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-retry:
		}
		select { // a View changes often
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
}

// repair gets what is missing, and counts what could not be had.
func (r *Replicated) repair(ctx context.Context, from Referrer, have map[state.Digest]bool, log *slog.Logger) (missing int) {
	var lacking []state.Digest
	from.Referenced(func(d state.Digest) {
		if d != (state.Digest{}) && !have[d] {
			lacking = append(lacking, d)
		}
	})
	for _, d := range lacking {
		if ctx.Err() != nil {
			return 0
		}
		if have[d] { // named twice
			continue
		}
		// A blob that is here is read too: bytes that have rotted are got anew.
		if _, err := r.Blob(ctx, d); err != nil {
			missing++
			log.Warn("bytes missing", "digest", fmt.Sprintf("%x", d[:8]), "error", err)
			continue
		}
		have[d] = true
	}
	return missing
}

// sweep removes what nothing refers to and was put before a time.
func (r *Replicated) sweep(from Referrer, have map[state.Digest]bool, before time.Time) error {
	needed := map[state.Digest]bool{}
	from.Referenced(func(d state.Digest) { needed[d] = true })
	all, err := r.disk.List()
	if err != nil {
		return err
	}
	var errs []error
	for _, d := range all {
		if needed[d] {
			continue
		}
		if info, err := os.Stat(r.disk.path(d)); errors.Is(err, fs.ErrNotExist) || err == nil && info.ModTime().After(before) {
			continue
		}
		delete(have, d)
		errs = append(errs, r.disk.Delete(d))
	}
	return errors.Join(errs...)
}

// touch makes bytes that are put again new: they are not garbage for a while.
func (d *Disk) touch(digest state.Digest) error {
	now := time.Now()
	if err := os.Chtimes(d.path(digest), now, now); err != nil {
		return fmt.Errorf("store: put: %w", err)
	}
	return nil
}
