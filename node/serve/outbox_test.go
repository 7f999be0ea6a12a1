package serve

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"manta/node/wire"
)

// flaky is a way to a head that fails for a while.
type flaky struct {
	until time.Time
	got   []int // offsets
}

func (f *flaky) Send(_ context.Context, _, _ string, data []byte) error {
	if time.Now().Before(f.until) {
		return errors.New("not a living member")
	}
	var frames wire.Frames
	if err := wire.Unmarshal(data, &frames); err != nil {
		return err
	}
	for _, frame := range frames.Frames {
		f.got = append(f.got, frame.Offset)
	}
	return nil
}

// What can't be sent waits, in order, for as long as its head may come back: a head
// that misses a request's last frame would wait for ever. Later it is given up.
func TestFramesWaitForTheirHead(t *testing.T) {
	for _, c := range []struct {
		out  time.Duration
		want []int
	}{{time.Second, []int{0, 1, 2}}, {2 * headGone, []int{2}}} {
		synctest.Test(t, func(t *testing.T) {
			way := &flaky{until: time.Now().Add(c.out)}
			o := newOutboxes(way, slog.New(slog.DiscardHandler))
			ctx, stop := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- o.run(ctx) }()
			for offset := range 2 {
				o.put("h", wire.Frame{Offset: offset})
				synctest.Wait()
			}
			<-time.After(c.out + time.Second)
			o.put("h", wire.Frame{Offset: 2})
			<-time.After(time.Second)
			stop()
			<-done
			if !slices.Equal(way.got, c.want) {
				t.Errorf("out of reach for %v: the head got %v, want %v", c.out, way.got, c.want)
			}
		})
	}
}
