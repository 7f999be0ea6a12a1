package head

import (
	"context"
	"iter"
	"log/slog"
	"net"
	"slices"
	"strings"
	"time"

	"manta/head/state"
	"manta/internal/trust"
	"manta/node/member"
	"manta/node/wire"
)

const (
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
		c.gone[node] = time.Now()
		delete(c.reports, node)
		delete(c.heard, node)
		delete(c.frozen, node) // if it comes back, it moves again
		c.head.silence(node)
		c.head.dispatch.Disconnected(node)
	}
	return living, changes
}

// unheard gives the nodes that a leader since then has not heard of yet and takes for
// living for a while; not those that it has lost itself, of which it need not hear.
func (c *control) unheard(view *state.View, living map[string]wire.Report, since time.Time) map[string]bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for node := range c.gone {
		if _, known := view.Nodes[node]; !known {
			delete(c.gone, node)
		}
	}
	unheard := map[string]bool{}
	for node := range view.Nodes {
		if _, heard := living[node]; !heard && time.Since(since) < hearWithin && !c.gone[node].After(since) {
			unheard[node] = true
		}
	}
	return unheard
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

// answers reports whether any replica does.
func (c *control) answers() bool {
	for _, r := range c.head.raft.View().Replicas {
		if c.ready(r) {
			return true
		}
	}
	return false
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

// Lives implements api.Heard.
func (c *control) Lives(head string) bool {
	return slices.ContainsFunc(c.head.heads(), func(m member.Member) bool { return m.ID == head })
}

// Report implements api.Heard.
func (c *control) Report(node string) (wire.Report, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	report, ok := c.reports[node]
	return report, ok && c.awake.now()-c.heard[node] < heartbeatLost
}
