package head

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"manta/head/api"
	"manta/head/place"
	"manta/head/state"
	"manta/internal/trust"
	"manta/node/wire"
	"manta/parallel/link"
)

const (
	reconcileEvery = 500 * time.Millisecond
	commandTimeout = 5 * time.Second
	// hearWithin is how long nodes that this leader has not heard of yet are taken
	// for living.
	hearWithin = 5 * time.Second
	// refusedPause is how long a leader waits before it decides anew what was refused:
	// a refusal is a new View, which would have it decide at once.
	refusedPause = 50 * time.Millisecond
)

// control keeps what nodes report. On the leader it is the loop (desired, members,
// reports) → commands and assignments, again and again.
type control struct {
	head    *Head
	log     *slog.Logger
	courier *link.Courier
	awake   *awake
	wake    chan struct{} // holds one: a report came

	mu      sync.Mutex // guards what follows
	reports map[string]wire.Report
	heard   map[string]time.Duration // when, on awake, the newest report of each node came
	gone    map[string]time.Time     // nodes that were heard and then lost, and since when
	waiting []place.Waiting
	failed  map[string]failure   // of replicas
	frozen  map[string]time.Time // nodes that peers could not reach, and since when
	drained map[string]time.Time // replicas found draining, and since when
}

// failure is what this leader knows of a replica that has failed.
type failure struct {
	epoch uint64
	at    time.Time // when the epoch was found failed
	row   int       // how many epochs have failed without one that was ready
}

var (
	_ api.Cluster = (*control)(nil)
	_ api.Heard   = (*control)(nil)
)

func newControl(h *Head) *control {
	return &control{
		head: h, log: h.log, courier: link.NewCourier(h.link, link.Control), wake: make(chan struct{}, 1),
		awake: newAwake(), reports: map[string]wire.Report{}, heard: map[string]time.Duration{}, gone: map[string]time.Time{},
		failed: map[string]failure{}, frozen: map[string]time.Time{}, drained: map[string]time.Time{},
	}
}

// report takes what a node tells. It never blocks.
func (c *control) report(r wire.Report) {
	c.mu.Lock()
	before, known := c.reports[r.Node]
	if r.Sequence < before.Sequence {
		delete(c.frozen, r.Node) // it has started anew
	}
	c.reports[r.Node], c.heard[r.Node] = r, c.awake.now()
	delete(c.gone, r.Node)
	c.mu.Unlock()
	if known && !news(before, r) {
		return
	}
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *control) run(ctx context.Context) error {
	ticker := time.NewTicker(reconcileEvery)
	defer ticker.Stop()
	leads := false
	var since time.Time // when this head began to lead
	for {
		changed, members := c.head.raft.Changed(), c.head.members.Load().Changed()
		living, heads := c.living()
		if c.head.raft.Leading() {
			if !leads {
				// The View of a new leader may lack what an earlier one has committed.
				leads, since = c.barrier(ctx) == nil, time.Now()
			}
			if leads {
				c.reconcile(ctx, living, heads, since)
			}
		} else {
			leads = false
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-members:
		case <-c.wake:
		case <-c.head.raft.Leadership():
			leads = false
		case <-ticker.C:
		}
	}
}

func (c *control) barrier(ctx context.Context) error {
	ctx, stop := context.WithTimeout(ctx, commandTimeout)
	defer stop()
	_, err := c.head.raft.Barrier(ctx)
	return err
}

// reconcile makes one decision, commits it, and tells the nodes. A leader that is
// new waits for the nodes that it has not heard of.
func (c *control) reconcile(ctx context.Context, living map[string]wire.Report, heads []state.Change, since time.Time) {
	view := c.head.raft.View()
	out := place.Reconcile(place.Input{
		View: view, Reports: living, Unheard: c.unheard(view, living, since), Paused: c.paused(view), Frozen: c.avoided(view), Overdue: c.overdue(view),
	})
	c.mu.Lock()
	c.waiting = out.Waiting
	c.mu.Unlock()
	changes, unread := c.head.raft.Readable(append(heads, out.Changes...))
	if unread != nil {
		c.log.Warn("placement waits for an upgrade", "error", unread)
	}
	if len(changes) > 0 {
		if err := c.head.apply(ctx, changes...); err != nil {
			if ctx.Err() == nil {
				level := slog.LevelWarn
				if errors.Is(err, state.ErrUnknown) || errors.Is(err, state.ErrStale) {
					level = slog.LevelInfo // somebody else's change was first
				}
				c.log.Log(ctx, level, "placement not committed", "error", err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(refusedPause):
			}
			return
		}
		view = c.head.raft.View()
		c.tell(view, changes)
	}
	peers := map[trust.Identity]bool{}
	assignments := place.Assignments(view)
	for node := range living {
		of := assignments[node]
		of.Version, of.Index = wire.Version, view.Index // also of nothing
		data, err := wire.Marshal(of)
		if err != nil {
			c.log.Error("assignments", "node", node, "error", err)
			continue
		}
		peer := trust.Identity{Role: trust.Node, ID: node}
		peers[peer] = true
		c.courier.Tell(peer, wire.KindAssign, "", data)
	}
	c.courier.Keep(peers)
}

// tell logs what became of replicas.
func (c *control) tell(view *state.View, changes []state.Change) {
	for _, change := range changes {
		switch {
		case change.StartReplica != nil:
			r := view.Replicas[change.StartReplica.Replica.ID]
			c.log.Info("replica placed", "replica", r.ID, "epoch", r.Epoch, "nodes", r.Nodes(), "shards", len(r.Shards), "blocks", r.Blocks, "memory", r.Memory)
		case change.SetPhase != nil:
			p := change.SetPhase
			c.log.Info("replica", "replica", p.Replica, "epoch", p.Epoch, "phase", p.Phase, "reason", p.Reason)
		case change.DeleteReplica != "":
			c.log.Info("replica removed", "replica", change.DeleteReplica)
		}
	}
}
