package device

import (
	"context"
	"fmt"
	"sync"
	"time"

	"manta/internal/trust"
	"manta/node/serve"
	"manta/node/wire"
)

const (
	// silence is how long a process may tell nothing before it is killed, and
	// startSilence how long before its first word.
	silence      = 5 * time.Second
	startSilence = 30 * time.Second
	// A process that dies before its first step is started again after a pause that
	// doubles with each death, up to restartPause; one that served is missed, and
	// started at once.
	restartPause = 30 * time.Second
	// attempts bounds the deaths in one epoch before its first step.
	attempts = 3
	// epochPatience is how long the leader has to begin another epoch.
	epochPatience = 5 * time.Second
)

// host is one replica's life in processes of its own, one after the other.
type host struct {
	launcher *Launcher
	id       trust.Identity
	replica  string
	ctx      context.Context
	stop     context.CancelFunc
	wanted   chan struct{} // holds one: assignment has changed

	mu         sync.Mutex // guards what follows
	assignment wire.Assignment
	state      wire.ReplicaReport
	credit     *wire.Credit
	boot       string    // of the living process; empty: there is none
	heard      time.Time // when it last told something, or was started
	spoke      bool
	open       int // requests in progress there
	process    wire.Process
}

var _ serve.Hosted = (*host)(nil)

func newHost(l *Launcher, a wire.Assignment) *host {
	ctx, stop := context.WithCancel(context.Background())
	return &host{
		launcher: l, id: trust.DeviceOf(l.cfg.Node, a.Replica), replica: a.Replica, ctx: ctx, stop: stop, wanted: make(chan struct{}, 1), assignment: a,
		state: wire.ReplicaReport{Replica: a.Replica, Epoch: a.Epoch, Phase: wire.PhasePulling},
	}
}

// Want implements serve.Hosted.
func (h *host) Want(a wire.Assignment) {
	h.mu.Lock()
	newer := a.Epoch > h.assignment.Epoch
	if newer {
		h.assignment = a
	}
	h.mu.Unlock()
	if !newer {
		return
	}
	select {
	case h.wanted <- struct{}{}:
	default:
	}
	h.launcher.cfg.Changed() // the next orders carry it
}

// Stop implements serve.Hosted.
func (h *host) Stop() { h.stop() }

// Report implements serve.Hosted.
func (h *host) Report() wire.ReplicaReport {
	h.mu.Lock()
	defer h.mu.Unlock()
	report, process := h.state, h.process
	report.Process = &process
	return report
}

// Credit implements serve.Hosted.
func (h *host) Credit(_ int, draining bool) (wire.Credit, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.credit == nil {
		return wire.Credit{}, false
	}
	credit := *h.credit
	if draining {
		credit.Choices = 0
	}
	return credit, true
}

func (h *host) requests() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.open
}

// orders gives what the living process shall run.
func (h *host) orders() (a wire.Assignment, alive bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.assignment, h.boot != ""
}

// hear takes what a process tells, if it is the one that lives.
func (h *host) hear(m wire.Told) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if m.Boot != h.boot || h.boot == "" {
		return false
	}
	if !h.spoke {
		// Who dialled before this process heard has sent to nobody, and must know.
		defer h.launcher.disconnect(h.id)
	}
	h.heard, h.spoke = time.Now(), true
	if m.Report.Phase != "" { // else it has had no orders yet
		h.state = m.Report
	}
	h.credit, h.open, h.process.Resident = m.Credit, m.Requests, m.Resident
	return true
}

// overdue reports a process that has been silent for too long.
func (h *host) overdue(now time.Time) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	limit := silence
	if !h.spoke {
		limit = startSilence
	}
	if quiet := now.Sub(h.heard); quiet > limit {
		return fmt.Errorf("device process was silent for %v and killed", limit)
	}
	return nil
}

// Run implements serve.Hosted.
func (h *host) Run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(h.ctx, cancel)()
	defer h.launcher.gone(h)
	deaths, early, pause := 0, 0, time.Duration(0)
	for {
		err := h.live(ctx)
		if ctx.Err() != nil {
			return
		}
		epoch, wasReady := h.died(err)
		deaths++
		h.launcher.cfg.Logger.Error("device process ended", "replica", h.replica, "epoch", epoch, "deaths", deaths, "error", err)
		h.launcher.disconnect(h.id)
		early++
		if wasReady || early >= attempts {
			phase := wire.PhaseFailed
			if wasReady {
				phase = wire.PhaseLoading // the leader begins another epoch at once
			}
			early = 0
			h.set(epoch, phase, err.Error())
			if wasReady && !h.newer(ctx, epoch, epochPatience) {
				h.set(epoch, wire.PhaseFailed, err.Error()) // it may not have seen it ready
			}
			h.newer(ctx, epoch, 0)
			pause = 0 // else the leader has paused
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = min(max(2*pause, time.Second), restartPause)
	}
}

// died notes that the process is gone, and tells in which epoch, and whether
// that had been ready: its requests are lost then.
func (h *host) died(err error) (epoch uint64, wasReady bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.boot, h.credit, h.open, h.process.Resident = "", nil, 0, 0
	epoch = h.assignment.Epoch
	wasReady = h.state.Phase == wire.PhaseReady && h.state.Epoch == epoch
	if !wasReady {
		h.state = wire.ReplicaReport{Replica: h.replica, Epoch: epoch, Phase: wire.PhaseLoading, Reason: err.Error()}
	}
	return epoch, wasReady
}

func (h *host) set(epoch uint64, phase wire.Phase, reason string) {
	h.mu.Lock()
	h.state = wire.ReplicaReport{Replica: h.replica, Epoch: epoch, Phase: phase, Reason: reason}
	h.mu.Unlock()
	h.launcher.cfg.Changed()
}

// newer waits for an epoch after the given one, for so long or, with 0, until ctx ends.
func (h *host) newer(ctx context.Context, than uint64, patience time.Duration) bool {
	if patience > 0 {
		limited, stop := context.WithTimeout(ctx, patience)
		defer stop()
		ctx = limited
	}
	for {
		h.mu.Lock()
		now := h.assignment.Epoch
		h.mu.Unlock()
		if now > than {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-h.wanted:
		}
	}
}
