//go:build cuda

package cuda

import (
	"fmt"
	"sync"
	"unsafe"

	"gorgonia.org/cu"

	"manta/kernels"
)

// What a step brings in comes first in it, what it takes out last. Copies between
// host and device run on a stream of their own, over device memory that is the
// slot's (a crossing): rows of the next step come and those of the last one go while
// the device computes. Between devices the sender writes into the receiver's memory.

// ofStep is an error that ends a step alone; the device is well.
type ofStep struct{ error }

func (e ofStep) Unwrap() error { return e.error }

// A crossing is where rows lie between host and device. A slot has one each way.
type crossing struct {
	host   []byte // pinned
	device pointer
	event  cu.Event
}

var (
	_ kernels.Stager = (*Ops)(nil)
	_ kernels.Hop    = (*hop)(nil)
)

// Bring notes where a step's rows come from.
func (o *Ops) Bring(t kernels.Tensor, rows func() ([]byte, error)) {
	o.opening(t).bring = func(s *slot) error {
		b, err := rows()
		if err != nil {
			return ofStep{err}
		}
		if len(b) != 4*t.Rows*t.Cols {
			return ofStep{fmt.Errorf("cuda: brought %d bytes for %d×%d", len(b), t.Rows, t.Cols)}
		}
		c := &s.crossings[0]
		if err := o.cross(c, len(b)); err != nil {
			return err
		}
		copy(c.host, b)
		if err := cu.MemcpyHtoDAsync(cu.DevicePtr(c.device), unsafe.Pointer(&c.host[0]), int64(len(b)), o.side); err != nil {
			return wrapDevice(err, "rows brought")
		}
		if err := c.event.Record(o.side); err != nil {
			return wrapDevice(err, "event")
		}
		return o.copyAfter(c.event, bufferOf(t).at, c.device, len(b))
	}
}

// opening and closing give the open step, of which t is what comes in or goes out.
func (o *Ops) opening(t kernels.Tensor) *slot {
	if s := o.step; s == nil || len(s.list) > 0 || s.bring != nil || t.Rows*t.Cols == 0 {
		panic("cuda: rows are brought first in a step, once")
	}
	bufferOf(t).narrow = false
	return o.step
}

func (o *Ops) closing(t kernels.Tensor) *slot {
	if s := o.step; s == nil || s.take != nil || t.Rows*t.Cols == 0 || bufferOf(t).narrow {
		panic("cuda: float32 rows are taken last in a step, once")
	}
	return o.step
}

// cross makes room; it runs on the worker's thread.
func (o *Ops) cross(c *crossing, bytes int) (err error) {
	if o.side == (cu.Stream{}) {
		if o.side, err = cu.MakeStream(cu.NonBlocking); err != nil {
			return wrapDevice(err, "stream")
		}
	}
	if c.event == (cu.Event{}) {
		if c.event, err = cu.MakeEvent(cu.DisableTiming); err != nil {
			return wrapDevice(err, "event")
		}
		o.events = append(o.events, c.event)
	}
	if len(c.host) >= bytes {
		return nil
	}
	size := roomFor(bytes)
	device, err := cu.MemAlloc(int64(size))
	if err != nil {
		return wrapDevice(err, fmt.Sprintf("%d bytes for rows between stages", size))
	}
	o.allocated = append(o.allocated, device)
	c.device = pointer(device)
	c.host, err = o.pin(size)
	return err
}

// copyAfter copies on the step's stream once an event has come.
func (o *Ops) copyAfter(event cu.Event, to, from pointer, bytes int) error {
	if err := o.stream.Wait(event, 0); err != nil {
		return wrapDevice(err, "wait for rows")
	}
	return o.copy(to, from, bytes)
}

func (o *Ops) copy(to, from pointer, bytes int) error {
	return wrapDevice(cu.MemcpyDtoDAsync(cu.DevicePtr(to), cu.DevicePtr(from), int64(bytes), o.stream), "copy of rows")
}

// Take notes who gets a step's rows.
func (o *Ops) Take(t kernels.Tensor, send func([]byte) error) {
	s, bytes := o.closing(t), 4*t.Rows*t.Cols
	s.take = func(s *slot) error {
		c := &s.crossings[1]
		if err := o.cross(c, bytes); err != nil {
			return err
		}
		if err := o.copy(c.device, bufferOf(t).at, bytes); err != nil {
			return err
		}
		if err := c.event.Record(o.stream); err != nil {
			return wrapDevice(err, "event")
		}
		if err := o.side.Wait(c.event, 0); err != nil {
			return wrapDevice(err, "wait for rows")
		}
		if err := cu.MemcpyDtoHAsync(unsafe.Pointer(&c.host[0]), cu.DevicePtr(c.device), int64(bytes), o.side); err != nil {
			return wrapDevice(err, "rows taken")
		}
		if err := c.event.Record(o.side); err != nil {
			return wrapDevice(err, "event")
		}
		s.taken = func() error {
			if err := wrapDevice(c.event.Synchronize(), "rows taken"); err != nil {
				return o.fail(err)
			}
			return send(c.host[:bytes])
		}
		return nil
	}
}

// A hop is a ring of buffers in the memory of the next stage's device. As many steps
// as it has buffers are in flight: when one is written again, the step that was
// there has been answered.
type hop struct {
	from, to *Ops
	ring     []crossing // without host memory
	bytes    int        // of each
	sent     int        // in all; of the sender's worker

	mu     sync.Mutex // guards what follows
	posted chan posting
	over   chan struct{}
	ended  bool
}

// A posting says that rows are on their way into a buffer.
type posting struct{ index, bytes int }

// Hop joins the device to the next stage's.
func (o *Ops) Hop(next kernels.Ops, rows, cols, depth int) (kernels.Hop, error) {
	to, ok := next.(*Ops)
	if !ok {
		return nil, nil
	}
	if reached, err := o.reach(to); err != nil || !reached {
		return nil, err
	}
	h := &hop{from: o, to: to, bytes: 4 * rows * cols, ended: true, over: make(chan struct{})}
	for range depth + 1 {
		at, err := to.allocate(h.bytes)
		if err != nil {
			return nil, err
		}
		h.ring = append(h.ring, crossing{device: at})
	}
	return h, o.do(func() error {
		for i := range h.ring {
			event, err := cu.MakeEvent(cu.DisableTiming)
			if err != nil {
				return wrapDevice(err, "event")
			}
			o.events = append(o.events, event)
			h.ring[i].event = event
		}
		return nil
	})
}

// Open begins an epoch.
func (h *hop) Open() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.posted, h.over, h.ended = make(chan posting, len(h.ring)), make(chan struct{}), false
}

// Close ends it.
func (h *hop) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.ended {
		h.ended = true
		close(h.over)
	}
}

// epoch gives the channels of the one that is open.
func (h *hop) epoch() (chan posting, chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.posted, h.over
}

// Send writes t to the next stage's device.
func (h *hop) Send(t kernels.Tensor) {
	bytes := 4 * t.Rows * t.Cols
	h.from.closing(t).take = func(*slot) error {
		posted, over := h.epoch()
		p := posting{h.sent % len(h.ring), bytes}
		h.sent++
		if err := cu.MemcpyPeerAsync(cu.DevicePtr(h.ring[p.index].device), h.to.context, cu.DevicePtr(bufferOf(t).at), h.from.context, int64(bytes), h.from.stream); err != nil {
			return wrapDevice(err, "copy of rows to the next stage")
		}
		if err := h.ring[p.index].event.Record(h.from.stream); err != nil {
			return wrapDevice(err, "event")
		}
		select {
		case posted <- p:
			return nil
		case <-over:
			return kernels.ErrUnlinked
		}
	}
}

// Receive fills t with what the stage before has sent.
func (h *hop) Receive(t kernels.Tensor) {
	bytes := 4 * t.Rows * t.Cols
	h.to.opening(t).bring = func(*slot) error {
		posted, over := h.epoch()
		select {
		case p := <-posted:
			if p.bytes != bytes {
				return ofStep{fmt.Errorf("cuda: %d bytes of rows from the stage before, want %d", p.bytes, bytes)}
			}
			return h.to.copyAfter(h.ring[p.index].event, bufferOf(t).at, h.ring[p.index].device, bytes)
		case <-over:
			return kernels.ErrUnlinked
		}
	}
}
