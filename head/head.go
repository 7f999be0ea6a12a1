// Package head is the composition root of the control plane: it builds a head's
// parts, hands them to each other, and stops them in reverse.
//
//	secrets → identity → raft, store → gossip → link → dispatch → HTTP
//
// A head decides nothing here: placement is head/place's, requests are
// head/dispatch's, HTTP is head/api's.
package head

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"manta/head/api"
	"manta/head/dispatch"
	"manta/head/jobs"
	"manta/head/kube"
	"manta/head/limit"
	"manta/head/route"
	"manta/head/state"
	"manta/head/store"
	"manta/internal/tail"
	"manta/internal/telemetry"
	"manta/internal/trace"
	"manta/internal/trust"
	"manta/internal/version"
	"manta/node/member"
	"manta/node/wire"
	"manta/parallel/link"
)

// Config says how a head is made. Addresses are host:port; port 0 takes a free one.
type Config struct {
	Name    string // stable over restarts
	Dir     string // of this head alone
	Secrets trust.Secrets
	Gossip  string
	Raft    string
	Link    string
	// API is the listener of the HTTP API, Metrics a second one for /metrics
	// alone, or nil. The head closes them, and Kube's.
	API     net.Listener
	Metrics net.Listener
	Join    []string // gossip addresses of other members
	// Bootstrap makes a new cluster of this one head when Dir holds no state.
	Bootstrap bool
	// Expect is the number of heads that found a cluster together; 0: join one.
	Expect    int
	Advertise string        // the address that others reach this head at; empty: that of Gossip
	Heartbeat time.Duration // of raft; 0: its default
	Grace     time.Duration // for requests in progress when the head stops
	Keys      *api.Keys     // beside those that the cluster knows; nil: none
	KeysOff   bool          // no key is demanded, whatever keys there are
	Kube      kube.Config   // what it does for Kubernetes
	Tracer    *trace.Tracer // nil: requests are not traced
	Logger    *slog.Logger
	Tail      *tail.Lines // of Logger; nil: none is kept
	// StreamInterval is how many tokens go to a client at once, after its first; 0: as they come.
	StreamInterval int
}

// Head is a running head.
type Head struct {
	cfg      Config
	id       trust.Identity
	log      *slog.Logger
	disk     *store.Disk
	store    *store.Replicated
	raft     *state.Server
	members  atomic.Pointer[member.List] // nil until New has joined
	link     *link.Link
	metrics  *telemetry.Metrics
	dispatch *dispatch.Dispatcher
	api      *api.Server
	control  *control
	rates    *limit.Limiter
	lender   lender
	jobs     *jobs.Runner

	leave chan struct{} // closed by Leave: Run ends
	once  sync.Once     // closes leave
	gone  chan error    // holds one: what became of Leave
	left  atomic.Bool   // the others have removed this head
	away  sync.Map      // ids of heads that have left, as long as they gossip
	met   atomic.Bool   // since it started this head was seen with a leader
}

// New builds a head: its ports are open and it is a member when New returns. Run
// makes it work; Close is needed in any case.
func New(cfg Config) (_ *Head, err error) {
	h := &Head{cfg: cfg, log: cfg.Logger, metrics: telemetry.New(), rates: limit.New(cfg.Expect), leave: make(chan struct{}), gone: make(chan error, 1)}
	defer func() {
		if err != nil {
			h.Close()
		}
	}()
	if err := wipe(cfg.Dir); err != nil {
		return nil, err
	}
	id, err := trust.StableID(cfg.Dir, cfg.Name)
	if err != nil {
		return nil, err
	}
	h.id = trust.Identity{Role: trust.Head, ID: id}
	authority, err := trust.NewAuthority(cfg.Secrets, h.id)
	if err != nil {
		return nil, err
	}
	if h.disk, err = store.Open(filepath.Join(cfg.Dir, "store")); err != nil {
		return nil, err
	}
	h.store = store.NewReplicated(h.disk, copies{h})
	h.raft, err = state.Open(state.Config{
		Dir: filepath.Join(cfg.Dir, "raft"), Listen: cfg.Raft, Authority: authority, Resolve: h.raftAddress,
		Bootstrap: cfg.Bootstrap, Heartbeat: cfg.Heartbeat, Logger: cfg.Logger,
	})
	if err != nil {
		return nil, err
	}
	h.link, err = link.Start(link.Config{
		Authority: authority, Listen: cfg.Link, Resolve: h.linkAddress, Lost: h.lost, Logger: cfg.Logger,
	})
	if err != nil {
		return nil, err
	}
	keys, err := cfg.Secrets.GossipKeys()
	if err != nil {
		return nil, err
	}
	h.dispatch = dispatch.New(dispatch.Config{
		Head: id, Views: h.raft, Link: sender{h}, Meter: dispatch.Metered{Metrics: h.metrics}, Log: cfg.Logger,
		StreamInterval: cfg.StreamInterval,
	})
	h.metrics.Leading(h.raft.Leading)
	h.control = newControl(h)
	h.listen()
	h.listenToHeads()
	h.listenToLeavers()
	h.tellLoads()
	h.listenToReaders()
	members, err := member.Start(member.Config{
		Self: h.id, Keys: keys, Listen: cfg.Gossip, Advertise: cfg.Advertise, Logger: cfg.Logger, Info: h.info(),
	})
	if err != nil {
		return nil, err
	}
	h.members.Store(members)
	h.api = api.New(api.Config{
		Views: &truthful{control: h.control}, Texts: api.NewStoreTexts(h.store), Dispatch: h.dispatch, Cluster: h.control, Heard: h.control, Logs: h.control,
		Keys: cfg.Keys, KeysOff: cfg.KeysOff, Keyring: keyring{h}, Rates: h.rates,
		Work: work{h}, Store: h.store, Tracer: cfg.Tracer,
		Metrics: h.metrics.Handler(), Log: cfg.Logger, CanQueue: h.canQueue, Restored: h.raft.Restored,
	})
	h.jobs = jobs.New(jobs.Config{Head: id, Cluster: work{h}, Store: h.store, Lines: h.api, Log: cfg.Logger})
	return h, nil
}

// Run works until ctx ends, or Leave is called. Then another head leads, this one
// refuses new requests, gives those in progress their grace, and only then lets go
// of the rest.
func (h *Head) Run(ctx context.Context) error {
	rest, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	group, rest := errgroup.WithContext(rest)
	serving, stopServing := context.WithCancel(ctx)
	defer stopServing()
	group.Go(func() error {
		defer stop()
		if err := h.api.Serve(serving, h.cfg.API, h.cfg.Grace); err != nil {
			return fmt.Errorf("head: HTTP: %w", err)
		}
		select {
		case <-h.leave:
			err := h.depart(rest)
			h.gone <- err
			return err
		default:
			h.handOver(rest) // it may lead again
			return nil
		}
	})
	group.Go(func() error {
		defer stopServing()
		select {
		case <-rest.Done(): // something failed: stop serving too
			return nil
		case <-ctx.Done():
		case <-h.leave:
		}
		h.handOver(rest)
		return nil
	})
	group.Go(func() error {
		select {
		case err := <-h.raft.TooNew():
			return err
		case <-rest.Done():
			return nil
		}
	})
	if h.cfg.Metrics != nil {
		group.Go(func() error { return serveMetrics(rest, h.cfg.Metrics, h.metrics.Handler()) })
	}
	group.Go(func() error { return over(rest, kube.Run(rest, h.cfg.Kube, fleet{h}, h.log)) })
	group.Go(func() error { return over(rest, h.dispatch.Run(rest)) })
	group.Go(func() error { return over(rest, h.control.run(rest)) })
	group.Go(func() error { return over(rest, h.assemble(rest)) })
	group.Go(func() error { return over(rest, h.control.homes(rest)) })
	group.Go(func() error { return over(rest, h.control.awake.run(rest)) })
	group.Go(func() error { return over(rest, h.lend(rest)) })
	group.Go(func() error { return over(rest, h.tellPrefixes(rest)) })
	group.Go(func() error { return over(rest, h.store.Keep(rest, work{h}, h.log)) })
	group.Go(func() error { return over(serving, h.jobs.Run(serving)) }) // before it drains: the next leader goes on
	return group.Wait()
}

// handOver lets another head lead, if there is one.
func (h *Head) handOver(ctx context.Context) {
	ctx, stop := context.WithTimeout(ctx, commandTimeout)
	defer stop()
	if err := h.raft.HandOver(ctx); err != nil {
		h.log.Info("leadership not handed over", "error", err)
	}
}

// over drops the error of something that ended because it was told to.
func over(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil
	}
	return err
}

// Close stops what New started, in reverse.
func (h *Head) Close() error {
	var errs []error
	if members := h.members.Load(); members != nil {
		errs = append(errs, members.Leave(time.Second))
	}
	if h.control != nil {
		h.control.courier.Close()
	}
	if h.link != nil {
		h.link.Close()
	}
	if h.raft != nil {
		errs = append(errs, h.raft.Close())
		if h.left.Load() {
			errs = append(errs, wipe(h.cfg.Dir))
		}
	}
	for _, listener := range []net.Listener{h.cfg.API, h.cfg.Metrics, h.cfg.Kube.Metrics} {
		if listener != nil {
			if err := listener.Close(); !errors.Is(err, net.ErrClosed) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// ID is the head's id.
func (h *Head) ID() string { return h.id.ID }

// Gossip is the address at which others join this head.
func (h *Head) Gossip() string { return h.members.Load().Address() }

// View gives the newest state that this head has applied.
func (h *Head) View() *state.View { return h.raft.View() }

// Wait blocks until there is a View whose Index is greater, or ctx ends.
func (h *Head) Wait(ctx context.Context, index uint64) (*state.View, error) {
	return h.raft.Wait(ctx, index)
}

// Deploy is the API's write, for who runs a head in its own process.
func (h *Head) Deploy(ctx context.Context, d state.Deployment) (state.Deployment, error) {
	return h.control.Deploy(ctx, d)
}

// Put sets a deployment that was accepted before.
func (h *Head) Put(ctx context.Context, d state.Deployment) error {
	return h.apply(ctx, state.Change{PutDeployment: &d})
}

// Delete takes a deployment away.
func (h *Head) Delete(ctx context.Context, name string) error {
	return h.apply(ctx, state.Change{DeleteDeployment: name})
}

// Settled waits until there is a leader and this head has applied its log.
func (h *Head) Settled(ctx context.Context) error {
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for !h.raft.Leading() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", api.ErrNoLeader, ctx.Err())
		case <-ticker.C:
		}
	}
	_, err := h.raft.Barrier(ctx)
	return err
}

// Ready waits until a deployment can generate, or until it is clear that it can't.
func (h *Head) Ready(ctx context.Context, deployment string) (state.Replica, error) {
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		changed := h.raft.Changed()
		view := h.raft.View()
		for _, r := range view.Replicas {
			switch {
			case r.Deployment != deployment || r.Version != view.Deployments[deployment].Version:
			case h.control.ready(r):
				return r, nil
			case h.control.hasFailed(r):
				return r, fmt.Errorf("%s: %s", deployment, r.Reason)
			}
		}
		if reasons := h.control.explain(deployment); len(reasons) > 0 {
			return state.Replica{}, fmt.Errorf("%s finds no place: %s", deployment, strings.Join(reasons, "; "))
		}
		select {
		case <-ctx.Done():
			return state.Replica{}, ctx.Err()
		case <-changed:
		case <-ticker.C:
		}
	}
}

// info is what gossip tells of this head.
func (h *Head) info() member.Info {
	var now member.Info
	if members := h.members.Load(); members != nil {
		if m, ok := members.Find(h.id); ok {
			return m.Info
		}
	}
	now.Link, now.Raft = uint16(h.link.Port()), uint16(h.raft.Port())
	now.API, now.Version, now.Fresh = h.cfg.API.Addr().String(), version.String(), h.raft.Fresh()
	now.Reads = state.Version
	return now
}

// canQueue tells /readyz whether this head can do its work. Heads that restart one after
// the other wait until it has met the leader. Later, without a leader, nothing is placed
// but what is placed answers: no Service must forget all heads at once then.
func (h *Head) canQueue() error {
	if h.raft.Leader() != "" {
		h.met.Store(true)
		return nil
	}
	if h.met.Load() && h.control.answers() {
		return nil
	}
	return api.ErrNoLeader
}

func (h *Head) raftAddress(id string) (string, error) {
	members := h.members.Load()
	if members == nil {
		return "", fmt.Errorf("head: %s is not known yet", id)
	}
	m, ok := members.Find(trust.Identity{Role: trust.Head, ID: id})
	if !ok {
		return "", fmt.Errorf("head: %s is not a living member", id)
	}
	return m.Raft(), nil
}

func (h *Head) linkAddress(peer trust.Identity) (string, error) {
	members := h.members.Load()
	if members == nil {
		return "", fmt.Errorf("head: %s is not known yet", peer)
	}
	return members.Resolve(peer)
}

// lost is told by the link that messages to or from a peer may be lost.
func (h *Head) lost(peer trust.Identity, _ error) {
	if peer = peer.Home(); peer.Role == trust.Node {
		h.silence(peer.ID)
		h.dispatch.Disconnected(peer.ID)
	}
}

// silence takes back what a node's drivers have granted, until they grant anew:
// they do so again and again while they can be reached.
func (h *Head) silence(node string) {
	for _, r := range h.raft.View().Replicas {
		if driver, ok := route.Driver(r); ok && driver == node {
			h.dispatch.Credit(wire.Credit{Version: wire.Version, Replica: r.ID, Epoch: r.Epoch, Node: node})
		}
	}
}
