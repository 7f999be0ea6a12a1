// Package place decides where replicas run. It is pure: from what users intend
// (the View) and what nodes tell (reports) it computes the changes that bring the
// one nearer to the other, and says why what waits waits. The leader's loop calls
// it again and again, until there is nothing to do.
//
// Memory is computed beforehand by runtime/plan, so that what is placed fits.
// A replica stands on one node if it fits there; else its stages go across nodes,
// the tensor ranks of each together as long as they fit. A lost rank moves alone.
package place

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"manta/head/state"
	"manta/node/wire"
	"manta/runtime/plan"
)

// Utilization is the part of a device's memory that shards may use when a
// deployment does not say (vLLM's default).
const Utilization = 0.9

// CPUBytes bounds what a replica on a CPU takes for keys and values, beside its
// weights, when its deployment does not say how much memory it may use.
const CPUBytes = 4 << 30

// Input is what the decision rests on. Nothing of it is changed.
type Input struct {
	View *state.View
	// Reports holds the newest report of each living node; a node that is neither
	// in it nor in Unheard is taken for dead.
	Reports map[string]wire.Report
	// Unheard holds nodes that may live but have not reported to this leader yet:
	// what they run stays as it is.
	Unheard map[string]bool
	// Paused holds replicas that failed a short while ago and are left alone.
	Paused map[string]bool
	// Frozen holds nodes that their peers can't reach, although they report: no
	// place for a shard while there is another.
	Frozen map[string]bool
}

// Output is what to do.
type Output struct {
	Changes []state.Change
	Waiting []Waiting
}

// Waiting says why a replica is not placed.
type Waiting struct {
	Deployment string
	Replica    string
	Reasons    []Reason // one a node, or one without a node
}

// Reason says what a node lacks, and what would help.
type Reason struct {
	Node  string
	Lacks string
}

// planner is one decision in the making.
type planner struct {
	Input
	out  Output
	used map[device]int64         // bytes placed
	lost map[string]state.Replica // of these, what lives stays where it is
}

type device struct{ node, id string }

// Reconcile compares and decides.
func Reconcile(in Input) Output {
	p := &planner{Input: in, used: map[device]int64{}, lost: map[string]state.Replica{}}
	p.nodes()
	keep := p.replicas()
	for _, r := range keep {
		p.occupy(r)
	}
	p.phases(p.thaw(keep))
	p.missing(keep)
	return p.out
}

func (p *planner) change(c state.Change) { p.out.Changes = append(p.out.Changes, c) }

func (p *planner) occupy(r state.Replica) {
	for _, s := range r.Shards {
		p.used[device{s.Node, s.Device}] += r.Memory
	}
}

// nodes takes over what nodes tell of their devices.
func (p *planner) nodes() {
	for _, id := range slices.Sorted(maps.Keys(p.Reports)) {
		devices := make([]state.Device, 0, len(p.Reports[id].Devices))
		for _, d := range p.Reports[id].Devices {
			devices = append(devices, state.Device(d))
		}
		known, ok := p.View.Nodes[id]
		if !ok || !slices.Equal(known.Devices, devices) || !maps.Equal(known.Labels, p.Reports[id].Labels) {
			p.change(state.Change{PutNode: &state.Node{ID: id, Devices: devices, Labels: p.Reports[id].Labels}})
		}
	}
}

// replicas gives those that stay where they are, and removes the others: those
// of no deployment, those too many, those made from an earlier version, and
// those that lost a node.
func (p *planner) replicas() (keep []state.Replica) {
	for _, id := range slices.Sorted(maps.Keys(p.View.Replicas)) {
		r := p.View.Replicas[id]
		d, ok := p.View.Deployments[r.Deployment]
		switch {
		case !ok || !slices.Contains(names(d), id), r.Version != d.Version:
			p.change(state.Change{DeleteReplica: id})
		case slices.ContainsFunc(r.Shards, p.gone):
			p.change(state.Change{DeleteReplica: id})
			p.lost[id] = r
		default:
			keep = append(keep, r)
		}
	}
	return keep
}

// thaw moves the shards of failed replicas away from frozen nodes, if there is a
// place for them, and gives the replicas that stay.
func (p *planner) thaw(keep []state.Replica) (rest []state.Replica) {
	for _, r := range keep {
		stuck := func(s state.Placement) bool { return p.Frozen[s.Node] }
		if phase, _ := p.phase(r); phase == state.Failed && slices.ContainsFunc(r.Shards, stuck) {
			p.release(r)
			if moved, ok := p.mend(p.View.Deployments[r.Deployment], r); ok {
				p.occupy(moved)
				p.change(state.Change{StartReplica: &state.StartReplica{Replica: moved, After: r.Epoch}})
				continue
			}
			p.occupy(r)
		}
		rest = append(rest, r)
	}
	return rest
}

func (p *planner) release(r state.Replica) {
	for _, s := range r.Shards {
		p.used[device{s.Node, s.Device}] -= r.Memory
	}
}

// gone reports whether a shard's node is dead, or has no such device.
func (p *planner) gone(s state.Placement) bool {
	if p.Unheard[s.Node] {
		return false
	}
	report, alive := p.Reports[s.Node]
	return !alive || !slices.ContainsFunc(report.Devices, func(d wire.Device) bool { return d.ID == s.Device })
}

// names gives the ids of a deployment's replicas.
func names(d state.Deployment) []string {
	ids := make([]string, d.Replicas)
	for i := range ids {
		ids[i] = fmt.Sprintf("%s/%d", d.Name, i)
	}
	return ids
}

// phases takes over how far the nodes have come. A group that was ready and is
// not any more, or that failed, starts again under a new epoch.
func (p *planner) phases(keep []state.Replica) {
	for _, r := range keep {
		if slices.ContainsFunc(r.Shards, func(s state.Placement) bool { return p.Unheard[s.Node] }) {
			continue
		}
		phase, reason := p.phase(r)
		switch {
		case r.Phase == state.Ready && phase != state.Ready && phase != state.Failed && phase != state.Draining,
			r.Phase == state.Failed && phase == state.Failed && !p.Paused[r.ID]:
			again := r
			p.change(state.Change{StartReplica: &state.StartReplica{Replica: again, After: r.Epoch}})
		case phase != "" && (phase != r.Phase || reason != r.Reason):
			p.change(state.Change{SetPhase: &state.SetPhase{Replica: r.ID, Epoch: r.Epoch, Phase: phase, Reason: reason}})
		}
	}
}

// phase puts the reports of a replica's nodes together: the least of them, and a
// failure before all; empty while some node has not begun.
func (p *planner) phase(r state.Replica) (state.Phase, string) {
	order := []state.Phase{"", state.Loading, state.Ready, state.Draining}
	least := len(order) - 1
	reason := ""
	for _, s := range r.Shards {
		var now state.Phase
		for _, report := range p.Reports[s.Node].Replicas {
			if report.Replica != r.ID || report.Epoch != r.Epoch {
				continue
			}
			switch report.Phase {
			case wire.PhaseFailed:
				return state.Failed, s.Node + ": " + report.Reason
			case wire.PhasePulling, wire.PhaseLoading:
				now, reason = state.Loading, ""
			case wire.PhaseReady:
				now = state.Ready
			case wire.PhaseDraining:
				now = state.Draining
			}
		}
		least = min(least, slices.Index(order, now))
	}
	return order[least], reason
}

// missing places what deployments lack, the oldest deployment first.
func (p *planner) missing(keep []state.Replica) {
	deployments := slices.SortedFunc(maps.Values(p.View.Deployments), func(a, b state.Deployment) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Name, b.Name))
	})
	for _, d := range deployments {
		for _, id := range names(d) {
			if slices.ContainsFunc(keep, func(r state.Replica) bool { return r.ID == id }) {
				continue
			}
			r, reasons := p.place(d, id)
			if reasons != nil {
				p.out.Waiting = append(p.out.Waiting, Waiting{Deployment: d.Name, Replica: id, Reasons: reasons})
				continue
			}
			p.occupy(r)
			// A replica that goes away in this same command is not there any more.
			p.change(state.Change{StartReplica: &state.StartReplica{Replica: r}})
		}
	}
}

// Assignments gives what a node shall run.
func Assignments(view *state.View, node string) wire.Assignments {
	all := wire.Assignments{Version: wire.Version, Index: view.Index}
	for _, id := range slices.Sorted(maps.Keys(view.Replicas)) {
		r := view.Replicas[id]
		d, ok := view.Deployments[r.Deployment]
		if !ok || !slices.ContainsFunc(r.Shards, func(s state.Placement) bool { return s.Node == node }) {
			continue
		}
		kind := "cpu"
		a := wire.Assignment{
			Replica: r.ID, Deployment: r.Deployment, Epoch: r.Epoch, Model: d.Model, Revision: d.Revision,
			Layout: r.Layout, Blocks: r.Blocks, MaxLen: r.MaxLen,
		}
		for _, s := range r.Shards {
			a.Shards = append(a.Shards, wire.Shard{Stage: s.Stage, Rank: s.Rank, Node: s.Node, Device: s.Device})
			for _, device := range view.Nodes[s.Node].Devices {
				if device.ID == s.Device {
					kind = device.Kind
				}
			}
		}
		b := plan.Budget{MaxSequences: d.Settings.MaxNumSeqs, MaxRows: d.Settings.MaxNumBatchedTokens}.Defaults(kind)
		a.Settings = wire.Settings{
			MaxNumSeqs: b.MaxSequences, MaxNumBatchedTokens: b.MaxRows,
			DType: cmp.Or(d.Settings.DType, "auto"), KVCacheDType: cmp.Or(d.Settings.KVCacheDType, "auto"),
			PrefixCaching: d.Settings.PrefixCaching, DownloadDir: d.Settings.DownloadDir,
			LoadFormat: d.Settings.LoadFormat,
		}
		all.Replicas = append(all.Replicas, a)
	}
	return all
}
