package device

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"
	"time"

	"manta/internal/trust"
	"manta/node/serve"
	"manta/node/wire"
	"manta/parallel/link"
)

// sendTimeout bounds how long a message may wait for its link.
const sendTimeout = 5 * time.Second

// LauncherConfig says how a node runs device processes.
type LauncherConfig struct {
	// Argv starts one; empty: this program's hidden subcommand.
	Argv      []string
	Node      string
	Secrets   trust.Secrets
	Devices   string // as --devices has it
	Downloads string // where models are kept by default
	Traces    string // as --otlp-traces-endpoint has it
	Link      *link.Link
	// Members lists the processes of the cluster that ranks may talk to.
	Members func() []wire.Member
	Logger  *slog.Logger
	// Changed is called when a process told something new. It must not block.
	Changed func()
}

// Launcher runs a node's device processes, one a replica.
type Launcher struct {
	cfg     LauncherConfig
	courier *link.Courier

	mu       sync.Mutex // guards what follows
	hosts    map[trust.Identity]*host
	draining bool
	drained  chan struct{} // closed and renewed when a process has told of its requests
}

var _ serve.Hosts = (*Launcher)(nil)

// NewLauncher makes a launcher; the node's server calls it. Close ends it.
func NewLauncher(cfg LauncherConfig) (*Launcher, error) {
	if len(cfg.Argv) == 0 {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		cfg.Argv = []string{self, Command}
	}
	l := &Launcher{cfg: cfg, courier: link.NewCourier(cfg.Link, link.Control), hosts: map[trust.Identity]*host{}, drained: make(chan struct{})}
	Handle(cfg.Link, cfg.Logger, l.told, wire.KindTold, trust.Device)
	return l, nil
}

// Close must come before the link's.
func (l *Launcher) Close() { l.courier.Close() }

// Host implements serve.Hosts.
func (l *Launcher) Host(a wire.Assignment) serve.Hosted {
	h := newHost(l, a)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hosts[h.id] = h
	return h
}

// told hands what a process says to its host. Who is not expected is not heard.
func (l *Launcher) told(m wire.Told) {
	l.mu.Lock()
	h := l.hosts[trust.DeviceOf(l.cfg.Node, m.Report.Replica)]
	l.mu.Unlock()
	if h == nil || m.Version > wire.Version || !h.hear(m) {
		return
	}
	l.mu.Lock()
	close(l.drained)
	l.drained = make(chan struct{})
	l.mu.Unlock()
	l.cfg.Changed()
}

// disconnect breaks what leads to a process.
func (l *Launcher) disconnect(process trust.Identity) {
	if err := l.cfg.Link.Disconnect(process); err != nil {
		l.cfg.Logger.Error("device process", "error", err)
	}
}

// Tell repeats every process's orders.
func (l *Launcher) Tell() {
	members := l.cfg.Members()
	heads := 0
	for _, m := range members {
		if m.Role == string(trust.Head) {
			heads++
		}
	}
	for _, h := range l.living() {
		l.order(h, members, heads)
	}
}

func (l *Launcher) living() []*host {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := make([]*host, 0, len(l.hosts))
	for _, h := range l.hosts {
		list = append(list, h)
	}
	return list
}

func (l *Launcher) order(h *host, members []wire.Member, heads int) {
	l.mu.Lock()
	draining := l.draining
	l.mu.Unlock()
	a, alive := h.orders()
	if !alive {
		return
	}
	data, err := wire.Marshal(wire.Orders{Version: wire.Version, Assignment: a, Heads: max(1, heads), Draining: draining, Members: members})
	if err != nil {
		l.cfg.Logger.Error("orders", "replica", a.Replica, "error", err)
		return
	}
	l.courier.Tell(h.id, wire.KindOrders, "", data)
}

// gone forgets a host that has ended.
func (l *Launcher) gone(h *host) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.hosts[h.id] == h {
		delete(l.hosts, h.id)
	}
	peers := map[trust.Identity]bool{}
	for id := range l.hosts {
		peers[id] = true
	}
	l.courier.Keep(peers)
}

// Drain implements serve.Hosts.
func (l *Launcher) Drain(ctx context.Context) error {
	l.mu.Lock()
	l.draining = true
	l.mu.Unlock()
	l.Tell()
	for {
		l.mu.Lock()
		wake := l.drained
		l.mu.Unlock()
		open := 0
		for _, h := range l.living() {
			open += h.requests()
		}
		if open == 0 {
			return nil
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return errors.Join(errors.New("device: requests are in progress"), ctx.Err())
		}
	}
}
