package serve

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"manta/node/gpu"
	"manta/node/wire"
)

// bus is GPUs that a test takes away and lets fault.
type bus struct {
	list   func() []gpu.Device
	faults chan gpu.Fault
}

func (b *bus) Read() ([]gpu.Device, error) { return b.list(), nil }

func (b *bus) Watch(ctx context.Context, report func(gpu.Fault)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case f := <-b.faults:
			report(f)
		}
	}
}

// A GPU that does not answer three times, or that has a fault after which none of
// its contexts is safe, is not offered any more; a program's own fault, or an
// answer missed once, takes nothing away. What was lost stays lost.
func TestLostGPUIsNotOffered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		looks := 0
		b := &bus{faults: make(chan gpu.Fault)}
		b.list = func() []gpu.Device {
			looks++
			list := []gpu.Device{{Index: 0, UUID: "a"}, {Index: 1, UUID: "b"}, {Index: 2, UUID: "c"}}
			if looks == 2 || looks >= 10 && looks < 14 {
				list[1].Lost = "it fell off the bus"
			}
			return list
		}
		c := &CUDA{health: newGPUHealth(b)}
		for _, id := range []string{"a", "b", "c"} {
			c.found = append(c.found, foundGPU{wire.Device{ID: id}, id})
		}
		changes := 0
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- c.Watch(ctx, slog.New(slog.DiscardHandler), func() { changes++ }) }()
		offered := func() (ids string) {
			for _, d := range c.Devices() {
				ids += d.ID
			}
			return ids
		}
		tick := func(seconds int) {
			for range seconds {
				<-time.After(gpuEvery)
			}
			synctest.Wait()
		}
		tick(5)
		b.faults <- gpu.Fault{UUID: "a", Xid: 31}
		synctest.Wait()
		if got := offered(); got != "abc" || changes != 0 {
			t.Errorf("offered %s after %d changes; nothing was lost", got, changes)
		}
		tick(10)
		if got := offered(); got != "ac" || changes != 1 {
			t.Errorf("offered %s after %d changes", got, changes)
		}
		b.faults <- gpu.Fault{UUID: "c", Xid: 79, Fatal: true}
		tick(5)
		if got := offered(); got != "a" || changes != 2 {
			t.Errorf("offered %s after %d changes", got, changes)
		}
		for i, want := range []wire.GPU{{UUID: "a", Xid: 31}, {Index: 1, UUID: "b", Lost: "it fell off the bus"}, {Index: 2, UUID: "c", Xid: 79, Lost: "Xid 79"}} {
			if got := c.GPUs()[i]; got != want {
				t.Errorf("%+v, want %+v", got, want)
			}
		}
		// Only memory that comes back in bulk is offered.
		for free, want := range map[int64]int64{1000: 1000, 1019: 1000, 1021: 1021} {
			if got := newGPUHealthWith(free).memory("a", 1000); got != want {
				t.Errorf("%d bytes are free: %d offered, want %d", free, got, want)
			}
		}
		stop()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

func newGPUHealthWith(free int64) *gpuHealth {
	h := newGPUHealth(nil)
	h.look([]gpu.Device{{UUID: "a", Free: free}})
	h.look([]gpu.Device{{UUID: "a"}}) // taken by shards since
	return h
}
