package head

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"manta/head/api"
	"manta/head/place"
	"manta/head/state"
	"manta/internal/trust"
	"manta/node/member"
	"manta/node/wire"
	"manta/parallel/link"
)

const (
	reconcileEvery = 500 * time.Millisecond
	commandTimeout = 5 * time.Second
	// resolveTimeout bounds how long a model reference is asked about: a node may
	// have to ask a hub.
	resolveTimeout = 2 * time.Minute
	// hearWithin is how long nodes that this leader has not heard of yet are taken
	// for living.
	hearWithin = 5 * time.Second
	// heartbeatLost is how old a node's newest report may be, and silentDead how old
	// when gossip has given the node up too.
	heartbeatLost = 4 * time.Second
	silentDead    = 1500 * time.Millisecond
	// retryFailed is how long a replica that failed is left alone: twice as long for
	// each time in a row, retryAtMost at most.
	retryFailed = 250 * time.Millisecond
	retryAtMost = 30 * time.Second
	// frozenFor is how long a node that its peers could not reach is avoided.
	frozenFor = 10 * time.Second
	// drainWithin is how long a replica that is to go may work on what it has;
	// then its sequences move.
	drainWithin = 10 * time.Second
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
		head: h, log: h.log, courier: link.NewCourier(h.link), wake: make(chan struct{}, 1),
		awake: newAwake(), reports: map[string]wire.Report{}, heard: map[string]time.Duration{},
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
				c.reconcile(ctx, living, heads, time.Since(since) < hearWithin)
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
func (c *control) reconcile(ctx context.Context, living map[string]wire.Report, heads []state.Change, isNew bool) {
	view := c.head.raft.View()
	unheard := map[string]bool{}
	for node := range view.Nodes {
		if _, heard := living[node]; isNew && !heard {
			unheard[node] = true
		}
	}
	out := place.Reconcile(place.Input{
		View: view, Reports: living, Unheard: unheard, Paused: c.paused(view), Frozen: c.avoided(view), Overdue: c.overdue(view),
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
				c.log.Warn("placement not committed", "error", err)
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
			c.log.Info("replica placed", "replica", r.ID, "epoch", r.Epoch, "shards", len(r.Shards), "blocks", r.Blocks, "memory", r.Memory)
		case change.SetPhase != nil:
			p := change.SetPhase
			c.log.Info("replica", "replica", p.Replica, "epoch", p.Epoch, "phase", p.Phase, "reason", p.Reason)
		case change.DeleteReplica != "":
			c.log.Info("replica removed", "replica", change.DeleteReplica)
		}
	}
}

// living gives the reports of living nodes, and the changes that bring the list
// of heads up to date. A dead node's report is forgotten: gossip has given it up
// and it is silent, or it has been silent for long.
func (c *control) living() (map[string]wire.Report, []state.Change) {
	view := c.head.raft.View()
	member := map[string]bool{}
	var changes []state.Change
	staying := c.head.staying()
	for _, m := range c.head.members.Load().Members() {
		if m.Role == trust.Node {
			member[m.ID] = true
			continue
		}
		now := state.Head{ID: m.ID, Name: m.ID[:max(0, strings.LastIndexByte(m.ID, '-'))], API: reachable(m), Reads: m.Info.Reads}
		if view.Heads[m.ID] != now && slices.Contains(staying, m.ID) {
			changes = append(changes, state.Change{PutHead: &now})
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	living := map[string]wire.Report{}
	for node, report := range c.reports {
		silent := c.awake.now() - c.heard[node]
		if silent < silentDead || member[node] && silent < heartbeatLost {
			living[node] = report
			continue
		}
		level := slog.LevelWarn
		if report.Draining || report.Leaving {
			level = slog.LevelInfo // it has said so
		}
		c.log.Log(context.Background(), level, "node lost", "node", node, "member", member[node], "silent", silent.Round(time.Millisecond))
		delete(c.reports, node)
		delete(c.heard, node)
		delete(c.frozen, node) // if it comes back, it moves again
		c.head.silence(node)
		c.head.dispatch.Disconnected(node)
	}
	return living, changes
}

// reachable gives the address of a head's API as others reach it.
func reachable(m member.Member) string {
	host, port, err := net.SplitHostPort(m.Info.API)
	if ip := net.ParseIP(host); err == nil && ip != nil && ip.IsUnspecified() {
		return net.JoinHostPort(m.IP.String(), port)
	}
	return m.Info.API
}

// paused gives the replicas that failed a short while ago.
func (c *control) paused(view *state.View) map[string]bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	paused := map[string]bool{}
	now := time.Now()
	for id, r := range view.Replicas {
		f := c.failed[id]
		if r.Phase != state.Failed {
			if r.Phase == state.Ready {
				delete(c.failed, id)
			}
			continue
		}
		if f.epoch != r.Epoch {
			f = failure{epoch: r.Epoch, at: now, row: f.row + 1}
			c.failed[id] = f
		}
		wait := min(retryAtMost, retryFailed<<min(f.row-1, 10))
		if now.Sub(f.at) < wait {
			paused[id] = true
		}
	}
	for id := range c.failed {
		if _, ok := view.Replicas[id]; !ok {
			delete(c.failed, id)
		}
	}
	return paused
}

// overdue gives the replicas that have been draining for drainWithin.
func (c *control) overdue(view *state.View) map[string]bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range c.drained {
		if view.Replicas[id].Phase != state.Draining {
			delete(c.drained, id)
		}
	}
	overdue := map[string]bool{}
	now := time.Now()
	for id, r := range view.Replicas {
		if r.Phase != state.Draining {
			continue
		}
		if c.drained[id].IsZero() {
			c.drained[id] = now
		}
		overdue[id] = now.Sub(c.drained[id]) > drainWithin
	}
	return overdue
}

// ranks gives what the nodes of a replica told last of its epoch. It holds mu.
func (c *control) ranks(r state.Replica) iter.Seq[wire.ReplicaReport] {
	return func(yield func(wire.ReplicaReport) bool) {
		for _, s := range r.Shards {
			for _, told := range c.reports[s.Node].Replicas {
				if told.Replica == r.ID && told.Epoch == r.Epoch && !yield(told) {
					return
				}
			}
		}
	}
}

// avoided gives the nodes that a peer could not reach a short while ago.
func (c *control) avoided(view *state.View) map[string]bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	for _, r := range view.Replicas {
		// Of two that can't reach each other both say so: the first is believed.
		var named []string
		for told := range c.ranks(r) {
			named = append(named, told.Lost...)
		}
		known := slices.DeleteFunc(slices.Clone(named), func(n string) bool { return c.frozen[n].IsZero() })
		if len(known) == 0 && len(named) > 0 {
			known = named[:1]
			c.log.Warn("node frozen", "node", named[0], "replica", r.ID, "epoch", r.Epoch)
		}
		for _, node := range known {
			c.frozen[node] = now
		}
	}
	avoided := map[string]bool{}
	for node, at := range c.frozen {
		if now.Sub(at) > frozenFor {
			delete(c.frozen, node)
			continue
		}
		avoided[node] = true
	}
	return avoided
}

// told gives what a node says of a replica's epoch right now, if it says anything:
// the View alone may be of the time before a restart.
func (c *control) told(r state.Replica, node string) (wire.ReplicaReport, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.awake.now()-c.heard[node] > heartbeatLost {
		return wire.ReplicaReport{}, false
	}
	for _, told := range c.reports[node].Replicas {
		if told.Replica == r.ID && told.Epoch == r.Epoch {
			return told, true
		}
	}
	return wire.ReplicaReport{}, false
}

// ready reports whether every rank of a replica has a heartbeat and is ready.
func (c *control) ready(r state.Replica) bool {
	for _, s := range r.Shards {
		if told, ok := c.told(r, s.Node); !ok || told.Phase != wire.PhaseReady {
			return false
		}
	}
	return r.Phase == state.Ready
}

// hasFailed reports whether a rank of a replica says that it failed.
func (c *control) hasFailed(r state.Replica) bool {
	for _, s := range r.Shards {
		if told, ok := c.told(r, s.Node); ok && told.Phase == wire.PhaseFailed {
			return r.Phase == state.Failed
		}
	}
	return false
}

// Report implements api.Heard.
func (c *control) Report(node string) (wire.Report, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	report, ok := c.reports[node]
	return report, ok && c.awake.now()-c.heard[node] < heartbeatLost
}

// Leader implements api.Cluster.
func (c *control) Leader() string { return c.head.raft.Leader() }

// Fresh implements api.Cluster.
func (c *control) Fresh(ctx context.Context) error { return c.head.Fresh(ctx) }

// Change commits what the API decided on.
func (c *control) Change(ctx context.Context, change state.Change) error {
	return c.head.apply(ctx, change)
}

// Deploy accepts a deployment: a node resolves the model once, what heads need of
// it goes to the store, and the deployment to raft.
func (c *control) Deploy(ctx context.Context, d state.Deployment) (state.Deployment, error) {
	node, answer, err := c.resolve(ctx, d)
	if err != nil {
		return state.Deployment{}, err
	}
	d.Model, d.Revision, d.Shapes = answer.Model, answer.Revision, answer.Shapes
	d.Name = cmp.Or(d.Name, answer.Model)
	g := answer.Generation
	d.Generation = state.Generation{
		EndTokens: g.EndTokens, Temperature: g.Temperature, TopP: g.TopP, TopK: g.TopK, MinP: g.MinP, RepetitionPenalty: g.RepetitionPenalty,
	}
	if d.Revision == "" { // a local path: others are asked whether they have it
		d.Homes, d.Weights = []string{node}, answer.Weights
	}
	if err := check(d); err != nil {
		return state.Deployment{}, err
	}
	if d.Tokenizer, err = c.head.store.PutBlob(ctx, answer.Tokenizer); err != nil {
		return state.Deployment{}, err
	}
	if answer.Template != "" {
		if d.Template, err = c.head.store.PutBlob(ctx, []byte(answer.Template)); err != nil {
			return state.Deployment{}, err
		}
	}
	if err := c.head.apply(ctx, state.Change{PutDeployment: &d}); err != nil {
		return state.Deployment{}, err
	}
	c.head.metrics.Known(d.Name)
	return c.head.raft.View().Deployments[d.Name], nil
}

// resolve asks a node; the next one where that can't be reached.
func (c *control) resolve(ctx context.Context, d state.Deployment) (string, wire.Resolved, error) {
	ctx, stop := context.WithTimeout(ctx, resolveTimeout)
	defer stop()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	failure := errors.New("no node has joined")
	for {
		for _, node := range c.nodes() {
			answer, err := c.ask(ctx, node, d)
			var unresolved *Unresolved
			if err == nil || errors.As(err, &unresolved) || errors.Is(err, link.ErrRemote) {
				return node, answer, err
			}
			failure = err
		}
		select {
		case <-ctx.Done():
			return "", wire.Resolved{}, &api.Error{
				Status: http.StatusServiceUnavailable, Type: "ServiceUnavailableError", RetryAfter: 5,
				Message: fmt.Sprintf("no node can be asked what %q is: %v", d.Model, failure),
			}
		case <-ticker.C:
		}
	}
}

// ask asks one node what a deployment's model stands for.
func (c *control) ask(ctx context.Context, node string, d state.Deployment) (wire.Resolved, error) {
	question, err := wire.Marshal(wire.Resolve{Version: wire.Version, Model: d.Model, DownloadDir: d.Settings.DownloadDir, LoadFormat: d.Settings.LoadFormat})
	if err != nil {
		return wire.Resolved{}, err
	}
	data, err := c.head.link.Call(ctx, trust.Identity{Role: trust.Node, ID: node}, wire.KindResolve, question)
	if err != nil {
		return wire.Resolved{}, err
	}
	var answer wire.Resolved
	if err := wire.Unmarshal(data, &answer); err != nil {
		return wire.Resolved{}, err
	}
	if answer.Err != "" {
		return wire.Resolved{}, &Unresolved{Model: d.Model, Reason: answer.Err}
	}
	return answer, nil
}

// Unresolved says that a model reference stands for nothing that can be served.
type Unresolved struct{ Model, Reason string }

func (u *Unresolved) Error() string { return u.Reason }

// Unwrap gives what an API client sees: the reference is its to mend.
func (u *Unresolved) Unwrap() error {
	return &api.Error{Status: http.StatusBadRequest, Type: "BadRequestError", Param: "model", Message: u.Reason}
}
