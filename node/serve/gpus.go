package serve

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"manta/node/gpu"
	"manta/node/wire"
)

const (
	// gpuEvery is between two looks at the GPUs.
	gpuEvery = time.Second
	// lostLooks is how many looks in a row a GPU may not answer.
	lostLooks = 3
)

// A Watched kind knows how its devices are. Run watches them until ctx ends and
// calls changed when one can't be used any more: it is not offered from then on,
// so that what runs there is placed elsewhere.
type Watched interface {
	Watch(ctx context.Context, log *slog.Logger, changed func()) error
	GPUs() []wire.GPU
}

// gpuReader is node/gpu's Reader.
type gpuReader interface {
	Read() ([]gpu.Device, error)
	Watch(ctx context.Context, report func(gpu.Fault)) error
}

var _ gpuReader = (*gpu.Reader)(nil)

// gpuHealth is how GPUs are, by their UUID.
type gpuHealth struct {
	reader gpuReader // nil: nothing is known

	mu     sync.Mutex // guards what follows
	newest []gpu.Device
	free   map[string]int64  // the most that was free at any look
	silent map[string]int    // looks in a row without an answer
	xids   map[string]uint64 // the last one
	broken map[string]string // why it is not offered
}

func newGPUHealth(reader gpuReader) *gpuHealth {
	return &gpuHealth{reader: reader, free: map[string]int64{}, silent: map[string]int{}, xids: map[string]uint64{}, broken: map[string]string{}}
}

// memory gives what shards may use of a GPU, where so much was known before: more
// only once a foreign program has given back a telling part of it.
func (h *gpuHealth) memory(uuid string, known int64) int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	if free := h.free[uuid]; free > known+known/50 {
		return free
	}
	return known
}

// usable tells whether a GPU may be offered. One that NVML does not know may.
func (h *gpuHealth) usable(uuid string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.broken[uuid] == ""
}

func (h *gpuHealth) watch(ctx context.Context, log *slog.Logger, changed func()) error {
	if h.reader == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		err := h.reader.Watch(ctx, func(f gpu.Fault) {
			log.Warn("GPU fault", "gpu", f.UUID, "xid", f.Xid, "fatal", f.Fatal)
			if h.fault(f) {
				changed()
			}
		})
		if err != nil && ctx.Err() == nil { // looking goes on without the driver's events
			log.Warn("GPU faults are not seen any more", "error", err)
		}
		return nil
	})
	group.Go(func() error {
		ticker := time.NewTicker(gpuEvery)
		defer ticker.Stop()
		for {
			list, err := h.reader.Read()
			if err != nil {
				log.Warn("read GPUs", "error", err)
			}
			for _, why := range h.look(list) {
				log.Error("GPU lost", "error", why)
				changed()
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-ticker.C:
			}
		}
	})
	return group.Wait()
}

// look takes what was read, and gives what was lost by it.
func (h *gpuHealth) look(list []gpu.Device) (lost []error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.newest = list
	for _, d := range list {
		if d.Lost == "" {
			h.silent[d.UUID], h.free[d.UUID] = 0, max(h.free[d.UUID], d.Free)
			continue
		}
		if h.silent[d.UUID]++; h.silent[d.UUID] == lostLooks && h.broken[d.UUID] == "" {
			h.broken[d.UUID] = d.Lost
			lost = append(lost, errors.New(d.UUID+": "+d.Lost))
		}
	}
	return lost
}

// fault takes an Xid, and tells whether a GPU is lost by it.
func (h *gpuHealth) fault(f gpu.Fault) (lost bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.xids[f.UUID] = f.Xid
	if !f.Fatal || h.broken[f.UUID] != "" {
		return false
	}
	h.broken[f.UUID] = fmt.Sprintf("Xid %d", f.Xid)
	return true
}

// list gives how the GPUs are; nothing before the first look.
func (h *gpuHealth) list() []wire.GPU {
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []wire.GPU
	for _, d := range h.newest {
		g := wire.GPU{
			Index: d.Index, UUID: d.UUID, Name: d.Name, Memory: d.Memory, Free: d.Free, Utilisation: d.Utilisation,
			Temperature: d.Temperature, Watts: d.Watts, Uncorrected: d.Uncorrected, Xid: h.xids[d.UUID], Lost: d.Lost,
		}
		if why := h.broken[d.UUID]; why != "" {
			g.Lost = why
		}
		all = append(all, g)
	}
	return all
}
