package serve

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"manta/node/wire"
	"manta/runtime/engine"
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

// arrivals notes what a head gets at once, and when.
type arrivals struct {
	began time.Time
	got   []string
}

func (a *arrivals) Send(_ context.Context, _, _ string, data []byte) error {
	var frames wire.Frames
	if err := wire.Unmarshal(data, &frames); err != nil {
		return err
	}
	text := time.Since(a.began).String()
	for _, f := range frames.Frames {
		text += fmt.Sprintf(" %d@%d", f.Request[0], f.Offset)
	}
	a.got = append(a.got, text)
	return nil
}

// Tokens of slow streams wait for the clock's next tick and go together, those of one
// node's drivers too. A stream's first token, its last, and those of a fast one go at
// once, and take with them what waits.
func TestSlowTokensGoTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		way := &arrivals{began: time.Now()}
		out := newOutboxes(way, slog.New(slog.DiscardHandler))
		s := newSessions(out, nil)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- out.run(ctx) }()
		drivers := []*account{{}, {}}
		for i := range byte(3) {
			if _, err := s.begin(wire.Request{ID: wire.RequestID{i}, Attempt: 1, Choices: 1, Head: "h"}, drivers[i/2]); err != nil {
				t.Fatal(err)
			}
		}
		at := func(ms time.Duration, of byte, finish engine.FinishReason) {
			<-time.After(time.Until(way.began.Add(ms*time.Millisecond + time.Microsecond)))
			s.deliver(drivers[of/2], []engine.Output{{ID: engine.RequestID{of}, Attempt: 1, Tokens: []int32{1}, Finish: finish}})
			synctest.Wait()
		}
		at(1, 0, "")
		at(2, 1, "")
		at(3, 2, "")
		at(101, 0, "")
		at(102, 1, "")
		at(102, 2, "")
		at(165, 0, "") // 64 ms after the one before
		at(166, 1, "")
		at(169, 2, "")
		at(170, 2, "") // and this one 1 ms
		at(269, 0, "")
		at(270, 1, "length")
		at(369, 0, "")
		<-time.After(time.Second)
		stop()
		<-done
		want := []string{
			"1.001ms 0@0", "2.001ms 1@0", "3.001ms 2@0", "104ms 0@1 1@1 2@1", "168ms 0@2 1@2", "170.001ms 2@2 2@3", "270.001ms 0@3 1@3", "372ms 0@4",
		}
		if !slices.Equal(way.got, want) {
			t.Errorf("the head got\n%q, want\n%q", way.got, want)
		}
	})
}
