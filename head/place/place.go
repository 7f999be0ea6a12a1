// Package place decides where replicas run. It is pure: from what users intend
// (the View) and what nodes tell (reports) it computes the changes that bring the
// one nearer to the other, and says why what waits waits. The leader's loop calls
// it again and again, until there is nothing to do.
//
// Memory is computed beforehand by runtime/plan, so that what is placed fits.
// A replica stands on one node if it fits there; else its stages go across nodes,
// the tensor ranks of each together as long as they fit, and of unlike memory or speed
// the larger or faster gets more layers (plan.Stages), of unlike tensor ranks the faster
// more heads and columns (weighed). A speed that changes moves
// nothing that stands. Replicas of a deployment
// spread over zones, then over nodes. A lost rank moves alone. What is to go
// (a node drains, another version is wanted) goes once its successor is ready,
// where there is room for both.
package place

import (
	"cmp"
	"maps"
	"math"
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
	// Overdue holds replicas that have been draining for as long as they may.
	Overdue map[string]bool
}

// Output is what to do.
type Output struct {
	Changes []state.Change
	Waiting []Waiting
}

// Waiting says why replicas of a deployment are not placed, or can't move.
type Waiting struct {
	Deployment string
	Missing    int      // how many replicas wait
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
	out      Output
	machines []*machine // living nodes, by id
	byNode   map[string]*machine
	removed  map[string]bool // replicas that go away in this very decision
}

// Reconcile compares and decides.
func Reconcile(in Input) Output {
	p := &planner{Input: in, byNode: map[string]*machine{}, removed: map[string]bool{}}
	p.nodes()
	replicas, lost := p.replicas()
	for _, d := range p.deployments() {
		p.deployment(d, replicas[d.Name], lost[d.Name])
	}
	p.forget()
	return p.out
}

func (p *planner) change(c state.Change) { p.out.Changes = append(p.out.Changes, c) }

// remove takes a replica away, in this decision.
func (p *planner) remove(r state.Replica) {
	p.change(state.Change{DeleteReplica: r.ID})
	p.removed[r.ID] = true
	p.occupy(r, -1)
}

// nodes takes over what nodes tell of their devices and labels.
func (p *planner) nodes() {
	ids := make([]string, 0, len(p.Reports))
	for id := range p.Reports {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for _, id := range ids {
		report := p.Reports[id]
		known, ok := p.View.Nodes[id]
		m := newMachine(report, known, p.Frozen[id])
		p.machines = append(p.machines, m)
		p.byNode[id] = m
		if report.Leaving {
			continue
		}
		// Heads that can't read speeds yet take the node without them.
		bare := make([]state.Device, 0, len(report.Devices))
		devices := make([]state.Device, 0, len(report.Devices))
		for _, d := range settled(report.Devices, known.Devices) {
			devices = append(devices, kept(d))
			d.Speed = plan.Speed{}
			for _, k := range known.Devices {
				if k.ID == d.ID {
					d.Speed = k.Speed
				}
			}
			bare = append(bare, kept(d))
		}
		if !ok || !slices.Equal(known.Devices, bare) || !maps.Equal(known.Labels, report.Labels) {
			p.change(state.Change{PutNode: &state.Node{ID: id, Devices: bare, Labels: report.Labels}})
		}
		if !slices.Equal(bare, devices) {
			p.change(state.Change{PutNode: &state.Node{ID: id, Devices: devices, Labels: report.Labels}})
		}
	}
}

// kept is what the View keeps of a device: links matter to the leader alone, which
// hears of them again and again.
func kept(d wire.Device) state.Device {
	return state.Device{ID: d.ID, Kind: d.Kind, Name: d.Name, Memory: d.Memory, Speed: d.Speed}
}

// forget drops the nodes that leave for good, once nothing is placed on them.
func (p *planner) forget() {
	for _, m := range p.machines {
		if _, known := p.View.Nodes[m.node]; known && m.leaving && m.shards == 0 {
			p.change(state.Change{DeleteNode: m.node})
		}
	}
}

// replicas gives those that stand, and those that lost a node, by deployment. It
// removes the latter, and those of no deployment.
func (p *planner) replicas() (standing, lost map[string][]state.Replica) {
	standing, lost = map[string][]state.Replica{}, map[string][]state.Replica{}
	for _, id := range slices.Sorted(maps.Keys(p.View.Replicas)) {
		r := p.View.Replicas[id]
		p.occupy(r, 1)
		d, ok := p.View.Deployments[r.Deployment]
		switch {
		case !ok:
			p.remove(r)
		case slices.ContainsFunc(r.Shards, p.gone), p.mixed(r):
			reason := "its nodes speak protocols of different versions"
			if i := slices.IndexFunc(r.Shards, p.gone); i >= 0 {
				reason = "node " + r.Shards[i].Node + " is lost, or its device " + r.Shards[i].Device
			}
			p.phaseOf(r, state.Failed, reason)
			p.remove(r)
			if r.Version == d.Version && r.Phase != state.Draining {
				lost[d.Name] = append(lost[d.Name], r)
			}
		default:
			standing[d.Name] = append(standing[d.Name], r)
		}
	}
	return standing, lost
}

// deployments gives the oldest first, and those that take whatever is left last.
func (p *planner) deployments() []state.Deployment {
	last := func(d state.Deployment) int {
		if d.Auto {
			return 1
		}
		return 0
	}
	return slices.SortedFunc(maps.Values(p.View.Deployments), func(a, b state.Deployment) int {
		return cmp.Or(cmp.Compare(last(a), last(b)), a.Created.Compare(b.Created), cmp.Compare(a.Name, b.Name))
	})
}

// Assignments gives what each node shall run; one that is missing: nothing.
func Assignments(view *state.View) map[string]wire.Assignments {
	all := map[string]wire.Assignments{}
	for _, id := range slices.Sorted(maps.Keys(view.Replicas)) {
		r := view.Replicas[id]
		d, ok := view.Deployments[r.Deployment]
		if !ok {
			continue
		}
		a := assignment(view, d, r)
		for i, s := range r.Shards {
			if slices.ContainsFunc(r.Shards[:i], func(other state.Placement) bool { return other.Node == s.Node }) {
				continue
			}
			of := all[s.Node]
			of.Replicas = append(of.Replicas, a)
			all[s.Node] = of
		}
	}
	for node, of := range all {
		of.Version, of.Index = wire.Version, view.Index
		all[node] = of
	}
	return all
}

func assignment(view *state.View, d state.Deployment, r state.Replica) wire.Assignment {
	kind, memory := "cpu", int64(math.MaxInt64)
	a := wire.Assignment{
		Replica: r.ID, Deployment: r.Deployment, Epoch: r.Epoch, Model: d.Model, Revision: d.Revision,
		Layout: r.Layout, Blocks: r.Blocks, MaxLen: r.MaxLen,
	}
	for _, s := range r.Shards {
		a.Shards = append(a.Shards, wire.Shard{Stage: s.Stage, Rank: s.Rank, Node: s.Node, Device: s.Device})
		for _, device := range view.Nodes[s.Node].Devices {
			if device.ID == s.Device {
				kind, memory = device.Kind, min(memory, device.Memory)
			}
		}
	}
	b := plan.Budget{MaxSequences: d.Settings.MaxNumSeqs, MaxRows: d.Settings.MaxNumBatchedTokens}.Defaults(kind, memory)
	a.Settings = wire.Settings{
		MaxNumSeqs: b.MaxSequences, MaxNumBatchedTokens: b.MaxRows,
		DType: cmp.Or(d.Settings.DType, "auto"), KVCacheDType: cmp.Or(d.Settings.KVCacheDType, "auto"),
		PrefixCaching: d.Settings.PrefixCaching, DownloadDir: d.Settings.DownloadDir,
		LoadFormat: d.Settings.LoadFormat,
	}
	return a
}
