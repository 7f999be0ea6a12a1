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

// failing is processors whose driver loses them in the middle of a step.
type failing struct {
	CPU
	lost *atomic.Bool
}

func (f failing) Open(device string, want Want) (kernels.Ops, error) {
	ops, err := f.CPU.Open(device, want)
	return failingOps{ops, f.lost}, err
}

type failingOps struct {
	kernels.Ops
	lost *atomic.Bool
}

func (o failingOps) End() kernels.Pending { return failingStep{o.Ops.End(), o.lost} }

type failingStep struct {
	kernels.Pending
	lost *atomic.Bool
}

func (s failingStep) Wait() ([]kernels.Sampled, error) {
	sampled, err := s.Pending.Wait()
	if s.lost.Load() {
		err = fmt.Errorf("%w: an illegal memory access was encountered", cuda.ErrDevice)
	}
	return sampled, err
}

// A device that is lost ends the process that can't mend it, with the reason, and
// the replica is not reported as failed: its node says what has become of it.
func TestLostDeviceIsBroken(t *testing.T) {
	lost := &atomic.Bool{}
	broken := make(chan error, 1)
	changed := make(chan struct{}, 1)
	s := New(Config{
		Node: "n1", Devices: []Kind{failing{CPU{Count: 1, Threads: 1, Memory: 1 << 30}, lost}}, Logger: slog.New(slog.DiscardHandler),
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
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	s.Assign(assignment(1, modelPath))
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
