//go:build kubernetes && linux

package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"manta/head/client"
)

// load is a steady load of seeded streams: whenever one ends, the next begins.
type load struct {
	t       *testing.T
	key     string
	streams int
	alone   []string // what each seed gives undisturbed

	stop chan struct{}
	over sync.Once // closes stop
	all  sync.WaitGroup

	mu       sync.Mutex
	ended    int
	failures []error
	refused  int           // starts that were tried again: no head took them yet
	longest  time.Duration // from one piece of a stream to the next, its start included
}

const streamTokens = 100

// startLoad first hears each seed alone, then begins the load.
func startLoad(t *testing.T, streams int) *load {
	t.Helper()
	l := &load{t: t, key: key(t), streams: streams, stop: make(chan struct{})}
	for seed := range streams {
		text, _, err := l.tell(t.Context(), seed)
		if err != nil {
			t.Fatalf("seed %d, undisturbed: %v", seed, err)
		}
		l.alone = append(l.alone, text)
	}
	for seed := range streams {
		l.all.Go(func() {
			for {
				select {
				case <-l.stop:
					return
				default:
					l.once(seed)
				}
			}
		})
	}
	return l
}

// once streams a seed's story and notes how it went.
func (l *load) once(seed int) {
	ctx, stop := context.WithTimeout(context.Background(), 2*patience)
	defer stop()
	text, pause, err := l.tell(ctx, seed)
	if err == nil && text != l.alone[seed] {
		err = fmt.Errorf("%q, undisturbed %q", text, l.alone[seed])
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended++
	l.longest = max(l.longest, pause)
	if err != nil {
		l.failures = append(l.failures, fmt.Errorf("seed %d: %w", seed, err))
	}
}

// tell streams a seed's story. What no head has taken yet is asked for again, as any
// client does whose connection was refused; what has begun goes on by its event's id.
func (l *load) tell(ctx context.Context, seed int) (string, time.Duration, error) {
	c := client.New(l.key, bases(seed)...)
	defer c.Close()
	var text strings.Builder
	var pause time.Duration
	last := time.Now()
	temperature, n, fixed := 0.8, streamTokens, int64(seed)
	for {
		_, err := c.Complete(ctx, "smollm2", fmt.Sprintf("Story number %d. Once upon a time", seed),
			client.Options{Temperature: &temperature, Seed: &fixed, MaxTokens: &n, IgnoreEOS: true},
			func(p client.Piece) error {
				pause = max(pause, time.Since(last)) // the wait for the first piece too
				last = time.Now()
				text.WriteString(p.Text)
				return nil
			})
		if text.Len() > 0 || !unserved(err) || ctx.Err() != nil {
			return text.String(), pause, err
		}
		l.mu.Lock()
		l.refused++
		l.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// unserved reports whether no head took a request: none was reached, or it said to
// come again.
func unserved(err error) bool {
	var refused *client.Error
	if errors.As(err, &refused) {
		return refused.Status == http.StatusServiceUnavailable
	}
	return err != nil
}

// round waits until every stream that ran when it was called has ended, so that all
// it has met shows.
func (l *load) round(ctx context.Context) {
	l.mu.Lock()
	want := l.ended + 2*l.streams
	l.mu.Unlock()
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for {
		l.mu.Lock()
		enough := l.ended >= want || len(l.failures) > 0
		l.mu.Unlock()
		if enough {
			return
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// through runs a disturbance under the load and prints the longest pause of a
// stream; no stream may fail.
func (l *load) through(name string, disturb func(t *testing.T)) {
	l.t.Run(name, func(t *testing.T) {
		t.Cleanup(func() { report(t, namespace) })
		l.mu.Lock()
		before := l.ended
		l.longest, l.refused, l.failures = 0, 0, nil
		l.mu.Unlock()
		start := time.Now()
		disturb(t)
		ctx, stop := context.WithTimeout(context.Background(), patience)
		defer stop()
		l.round(ctx)
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, err := range l.failures {
			t.Error(err)
		}
		measured.disturbed(disturbance{
			name: name, took: time.Since(start), longest: l.longest, ended: l.ended - before, failed: len(l.failures), restarts: l.refused,
		})
	})
}

// end lets the streams in progress end; again it does nothing.
func (l *load) end() {
	l.over.Do(func() { close(l.stop) })
	l.all.Wait()
}
