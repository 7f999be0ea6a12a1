// Package place decides where replicas run. It is pure: from what users intend
// (the View) and what nodes tell (reports) it computes the changes that bring the
// one nearer to the other, and says why what waits waits. The leader's loop calls
// it again and again, until there is nothing to do.
//
// Memory is computed beforehand by runtime/plan, so that what is placed fits.
// All ranks of a replica stand on one node.
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
	used map[device]int64 // bytes placed
}

type device struct{ node, id string }

// Reconcile compares and decides.
func Reconcile(in Input) Output {
	p := &planner{Input: in, used: map[device]int64{}}
	p.nodes()
	keep := p.replicas()
	for _, r := range keep {
		p.occupy(r)
	}
	p.phases(keep)
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
		if !ok || !slices.Equal(known.Devices, devices) {
			p.change(state.Change{PutNode: &state.Node{ID: id, Devices: devices, Labels: known.Labels}})
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
		case !ok || !slices.Contains(names(d), id), r.Version != d.Version, p.lost(r):
			p.change(state.Change{DeleteReplica: id})
		default:
			keep = append(keep, r)
		}
	}
	return keep
}

// lost reports whether a node of the replica is dead, or has no such device.
func (p *planner) lost(r state.Replica) bool {
	return slices.ContainsFunc(r.Shards, func(s state.Placement) bool {
		if p.Unheard[s.Node] {
			return false
		}
		report, alive := p.Reports[s.Node]
		return !alive || !slices.ContainsFunc(report.Devices, func(d wire.Device) bool { return d.ID == s.Device })
	})
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

// place finds the node that a replica fits on best: most memory left afterwards,
// then by id.
func (p *planner) place(d state.Deployment, id string) (state.Replica, []Reason) {
	var reasons []Reason
	var best state.Replica
	var bestLeft int64 = -1
	for _, node := range slices.Sorted(maps.Keys(p.Reports)) {
		r, left, err := p.on(node, d)
		if err != nil {
			reasons = append(reasons, Reason{Node: node, Lacks: err.Error()})
			continue
		}
		if left > bestLeft {
			best, bestLeft = r, left
		}
	}
	if bestLeft < 0 {
		if len(reasons) == 0 {
			reasons = []Reason{{Lacks: "no node has joined"}}
		}
		return state.Replica{}, reasons
	}
	best.ID, best.Deployment, best.Version, best.Layout = id, d.Name, d.Version, d.Layout
	return best, nil
}

// on tries one node.
func (p *planner) on(node string, d state.Deployment) (state.Replica, int64, error) {
	report := p.Reports[node]
	switch {
	case report.Draining || p.View.Nodes[node].Drained:
		return state.Replica{}, 0, fmt.Errorf("it is draining")
	case d.Home != "" && d.Home != node:
		return state.Replica{}, 0, fmt.Errorf("%s is on node %s only", d.Model, d.Home)
	case len(report.Devices) == 0:
		return state.Replica{}, 0, fmt.Errorf("it has no device")
	}
	chosen, err := p.devices(report, d.Layout.Ranks())
	if err != nil {
		return state.Replica{}, 0, err
	}
	budget, left, err := p.budget(node, chosen, d)
	if err != nil {
		return state.Replica{}, 0, err
	}
	fit, err := plan.Compute(d.Shapes, d.Layout, budget)
	if err != nil {
		return state.Replica{}, 0, err
	}
	r := state.Replica{Blocks: fit.Blocks, MaxLen: fit.MaxLen, Memory: fit.WeightBytes + fit.ScratchBytes + fit.KVBytes}
	for stage := range d.Layout.Pipeline {
		for tensor := range d.Layout.Tensor {
			r.Shards = append(r.Shards, state.Placement{
				Stage: stage, Rank: tensor, Node: node, Device: chosen[stage*d.Layout.Tensor+tensor].ID,
			})
		}
	}
	return r, left - r.Memory, nil
}

// devices gives one a rank: those with most memory left first. Ranks share a CPU,
// never a GPU.
func (p *planner) devices(report wire.Report, ranks int) ([]wire.Device, error) {
	all := slices.Clone(report.Devices)
	slices.SortStableFunc(all, func(a, b wire.Device) int {
		return cmp.Or(
			cmp.Compare(a.Kind, b.Kind)*-1, // "cuda" before "cpu"
			cmp.Compare(p.left(report.Node, b), p.left(report.Node, a)),
			cmp.Compare(a.ID, b.ID))
	})
	kind := all[0].Kind
	same := slices.IndexFunc(all, func(d wire.Device) bool { return d.Kind != kind })
	if same < 0 {
		same = len(all)
	}
	if kind != "cpu" && same < ranks {
		return nil, fmt.Errorf("it has %d devices of kind %s, %d ranks need one each", same, kind, ranks)
	}
	chosen := make([]wire.Device, ranks)
	for i := range chosen {
		chosen[i] = all[i%same]
	}
	return chosen, nil
}

func (p *planner) left(node string, d wire.Device) int64 {
	return d.Memory - p.used[device{node, d.ID}]
}

// budget says what each rank may use of its device, and how much the fullest of
// the devices has left now.
func (p *planner) budget(node string, chosen []wire.Device, d state.Deployment) (plan.Budget, int64, error) {
	kind := chosen[0].Kind
	cache, err := plan.CacheType(kind, d.Settings.KVCacheDType)
	if err != nil {
		return plan.Budget{}, 0, err
	}
	sharing := map[string]int64{}
	for _, c := range chosen {
		sharing[c.ID]++
	}
	utilization := cmp.Or(d.Settings.GPUMemoryUtilization, Utilization)
	b := plan.Budget{
		KVType: cache, MaxLen: d.Settings.MaxModelLen,
		MaxSequences: d.Settings.MaxNumSeqs, MaxRows: d.Settings.MaxNumBatchedTokens,
	}.Defaults(kind)
	var left int64 = 1 << 62
	b.Memory = left
	for _, c := range chosen {
		free := p.left(node, c)
		left = min(left, free)
		b.Memory = min(b.Memory, min(free, int64(utilization*float64(c.Memory)))/sharing[c.ID])
	}
	if kind == "cpu" && d.Settings.GPUMemoryUtilization == 0 {
		stored := int64(d.Shapes.Layers)*(d.Shapes.AttentionBytes+d.Shapes.FFNBytes) + d.Shapes.EmbeddingBytes + d.Shapes.OutputBytes
		b.Memory = min(b.Memory, 2*stored+CPUBytes)
	}
	return b, left, nil
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
		}
		all.Replicas = append(all.Replicas, a)
	}
	return all
}
