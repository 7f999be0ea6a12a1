package serve

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"

	"manta/kernels"
	"manta/kernels/cuda"
	"manta/node/wire"
	"manta/runtime/weights"
)

// failing is processors whose driver loses the first of them in the middle of a step;
// the others' steps then end no more.
type failing struct {
	CPU
	lost *atomic.Bool
	end  context.Context // of the test
}

func (f failing) Open(device string, want Want) (kernels.Ops, error) {
	ops, err := f.CPU.Open(device, want)
	return failingOps{ops, f, device == f.Devices()[0].ID}, err
}

type failingOps struct {
	kernels.Ops
	failing failing
	first   bool
}

func (o failingOps) End() kernels.Pending { return failingStep{o.Ops.End(), o} }

type failingStep struct {
	kernels.Pending
	failingOps
}

func (s failingStep) Wait() ([]kernels.Sampled, error) {
	sampled, err := s.Pending.Wait()
	if s.failing.lost.Load() {
		if !s.first {
			<-s.failing.end.Done()
		}
		err = fmt.Errorf("%w: an illegal memory access was encountered", cuda.ErrDevice)
	}
	return sampled, err
}

// A device that is lost ends the process that can't mend it, with the reason, and
// the replica is not reported as failed: its node says what has become of it. That
// other ranks are stuck since, in sums with that one, changes nothing.
func TestLostDeviceIsBroken(t *testing.T) {
	for ranks := 1; ranks <= 2; ranks++ {
		t.Run(fmt.Sprintf("%d ranks", ranks), func(t *testing.T) { lostDevice(t, ranks) })
	}
}

func lostDevice(t *testing.T, ranks int) {
	lost := &atomic.Bool{}
	broken := make(chan error, 1)
	changed := make(chan struct{}, 1)
	ctx, stop := context.WithCancel(t.Context())
	s := New(Config{
		Node: "n1", Devices: []Kind{failing{CPU{Count: ranks, Threads: 1, Memory: 1 << 30}, lost, ctx}}, Logger: slog.New(slog.DiscardHandler),
		Send:    &head{t: t, frames: make(chan wire.Frame, 1<<12)},
		Library: func(string) *weights.Library { return weights.NewLibrary(t.TempDir()) },
		Broken:  func(err error) { broken <- err },
		Changed: func() {
			select {
			case changed <- struct{}{}:
			default:
			}
		},
	})
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	a := assignment(1, modelPath)
	a.Replicas[0].Layout.Tensor, a.Replicas[0].Shards = ranks, nil
	for rank := range ranks {
		a.Replicas[0].Shards = append(a.Replicas[0].Shards, wire.Shard{Node: "n1", Rank: rank, Device: fmt.Sprint("cpu:", rank)})
	}
	s.Assign(a)
	phase := func() wire.Phase { return s.Report().Replicas[0].Phase }
	for phase() != wire.PhaseReady {
		<-changed
	}
	lost.Store(true)
	ids, _ := prompt(t)
	s.Request(request(ids, 1, 1, 1, 20))
	if err := <-broken; !errors.Is(err, cuda.ErrDevice) {
		t.Errorf("broken by %v", err)
	}
	if got := phase(); got != wire.PhaseReady {
		t.Errorf("phase %s is told", got)
	}
	stop()
	<-ended
}
