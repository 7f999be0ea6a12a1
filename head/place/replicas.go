package place

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"manta/head/state"
	"manta/node/wire"
)

// fleet is what stands of one deployment.
type fleet struct {
	d        state.Deployment
	good     []state.Replica // wanted as they are
	old      []state.Replica // of an earlier version
	moving   []state.Replica // on a node that drains
	draining []state.Replica // going, with what they have in progress
	ready    map[string]bool // by their nodes' own words
}

// surge is how many replicas a deployment may have beyond its number while it is
// updated, and spare how many may be missing: Kubernetes' 25%, up and down.
func surge(replicas int) int { return max(1, (replicas+3)/4) }
func spare(replicas int) int { return replicas / 4 }

// deployment brings one deployment nearer to what is wanted.
func (p *planner) deployment(d state.Deployment, standing, lost []state.Replica) {
	f := p.sort(d, standing)
	find := p.search(d)
	defer find.done()
	for _, r := range f.good {
		find.count(r, true)
	}
	p.restart(f, find)
	for _, r := range slices.Concat(f.old, f.moving, f.draining) {
		find.count(r, !d.Auto) // where each has its own device, an old one stands beside the new
	}
	if !d.Auto {
		p.shrink(f)
	}
	missing, reasons := p.grow(f, find, lost)
	stuck := p.retire(f, find, reasons)
	if missing > 0 && len(f.draining) == 0 && reasons != nil {
		p.out.Waiting = append(p.out.Waiting, Waiting{Deployment: d.Name, Missing: missing, Reasons: reasons})
	} else if stuck > 0 {
		p.out.Waiting = append(p.out.Waiting, Waiting{Deployment: d.Name, Missing: stuck, Reasons: reasons})
	}
}

// sort tells what is wanted as it is from what is to go, and drops what does
// nothing any more.
func (p *planner) sort(d state.Deployment, standing []state.Replica) *fleet {
	f := &fleet{d: d, ready: map[string]bool{}}
	for _, r := range standing {
		unheard := slices.ContainsFunc(r.Shards, func(s state.Placement) bool { return p.Unheard[s.Node] })
		told, _ := p.phase(r)
		f.ready[r.ID] = told == state.Ready || unheard && r.Phase == state.Ready
		leaves := r.Version != d.Version || slices.ContainsFunc(r.Shards, p.leaves) || r.Phase == state.Draining
		switch {
		case !leaves:
			f.good = append(f.good, r)
		case unheard:
			f.draining = append(f.draining, r) // for its node to tell
		case !f.ready[r.ID]:
			p.remove(r)
		case r.Phase != state.Draining && r.Version != d.Version:
			f.old = append(f.old, r)
		case r.Phase != state.Draining:
			f.moving = append(f.moving, r)
		case !d.Auto && len(f.good) < d.Replicas && r.Version == d.Version && !slices.ContainsFunc(r.Shards, p.leaves):
			p.phaseOf(r, state.Ready, "") // it is wanted again
			f.good = append(f.good, r)
		case p.Overdue[r.ID] || p.idle(r):
			p.remove(r)
		default:
			f.draining = append(f.draining, r)
		}
	}
	return f
}

// leaves reports whether a shard's node drains.
func (p *planner) leaves(s state.Placement) bool {
	m := p.byNode[s.Node]
	return m != nil && (m.going || m.drained)
}

// must reports whether a shard's node stops soon, whatever becomes of the shard.
func (p *planner) must(s state.Placement) bool {
	m := p.byNode[s.Node]
	return m != nil && m.going
}

// idle reports whether a replica's driver has nothing in progress.
func (p *planner) idle(r state.Replica) bool {
	for _, s := range r.Shards {
		if p.Unheard[s.Node] {
			return false
		}
		for _, told := range p.Reports[s.Node].Replicas {
			if s.Stage == 0 && s.Rank == 0 && told.Replica == r.ID {
				return told.Engine.Running == 0 && told.Engine.Waiting == 0
			}
		}
	}
	return true
}

// restart takes over how far the nodes have come with what is wanted. A group
// that was ready and is not any more, or that failed, starts again under a new
// epoch; the shards of a failed one leave nodes that are frozen.
func (p *planner) restart(f *fleet, find *search) {
	for _, r := range f.good {
		if slices.ContainsFunc(r.Shards, func(s state.Placement) bool { return p.Unheard[s.Node] }) || r.Phase == state.Draining {
			continue
		}
		phase, reason := p.phase(r)
		frozen := slices.ContainsFunc(r.Shards, func(s state.Placement) bool { return p.Frozen[s.Node] })
		switch {
		case phase == state.Failed && frozen && p.move(r, find):
		case r.Phase == state.Ready && phase != state.Ready && phase != state.Failed,
			r.Phase == state.Failed && phase == state.Failed && !p.Paused[r.ID]:
			p.change(state.Change{StartReplica: &state.StartReplica{Replica: r, After: r.Epoch}})
		case phase != "" && (phase != r.Phase || reason != r.Reason):
			p.phaseOf(r, phase, reason)
		}
	}
}

func (p *planner) phaseOf(r state.Replica, phase state.Phase, reason string) {
	p.change(state.Change{SetPhase: &state.SetPhase{Replica: r.ID, Epoch: r.Epoch, Phase: phase, Reason: reason}})
}

// phase puts the reports of a replica's nodes together: the least of them, and a
// failure before all; empty while some node has not begun.
func (p *planner) phase(r state.Replica) (state.Phase, string) {
	order := []state.Phase{"", state.Loading, state.Ready}
	least := len(order) - 1
	for _, s := range r.Shards {
		now := 0
		for _, report := range p.Reports[s.Node].Replicas {
			if report.Replica != r.ID || report.Epoch != r.Epoch {
				continue
			}
			switch report.Phase {
			case wire.PhaseFailed:
				return state.Failed, s.Node + ": " + report.Reason
			case wire.PhasePulling, wire.PhaseLoading:
				now = 1
			case wire.PhaseReady:
				now = 2
			}
		}
		least = min(least, now)
	}
	return order[least], ""
}

// drain lets a replica end what it has in progress; it takes nothing new.
func (p *planner) drain(f *fleet, r state.Replica, reason string) {
	p.phaseOf(r, state.Draining, reason)
	f.draining = append(f.draining, r)
}

// shrink lets go of replicas beyond the deployment's number: those not ready
// first, then those on nodes with several, then the youngest names.
func (p *planner) shrink(f *fleet) {
	over := len(f.good) - f.d.Replicas
	if over <= 0 {
		return
	}
	on := map[string]int{}
	for _, r := range f.good {
		on[r.Shards[0].Node]++
	}
	for range over {
		victim := slices.MinFunc(f.good, func(a, b state.Replica) int {
			return cmp.Or(
				compareBool(f.ready[a.ID], f.ready[b.ID]),
				cmp.Compare(on[b.Shards[0].Node], on[a.Shards[0].Node]),
				cmp.Compare(number(b.ID), number(a.ID)))
		})
		f.good = slices.DeleteFunc(f.good, func(r state.Replica) bool { return r.ID == victim.ID })
		on[victim.Shards[0].Node]--
		if f.ready[victim.ID] && !p.idle(victim) {
			p.drain(f, victim, "the deployment has "+strconv.Itoa(f.d.Replicas)+" replicas")
		} else {
			p.remove(victim)
		}
	}
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// number is a replica's own part of its id.
func number(id string) int {
	n, _ := strconv.Atoi(id[strings.LastIndexByte(id, '/')+1:])
	return n
}

// grow places what is missing, first what was lost. While replicas of an earlier
// version stand there are at most surge more than wanted. It gives how many find
// no place, and why.
func (p *planner) grow(f *fleet, find *search, lost []state.Replica) (missing int, reasons []Reason) {
	want := f.d.Replicas - len(f.good)
	if f.d.Auto {
		want = len(p.machines) * maxSlots
	}
	if len(f.old) > 0 {
		starting := 0
		for _, r := range f.good {
			if !f.ready[r.ID] {
				starting++
			}
		}
		want = min(want, surge(max(f.d.Replicas, len(f.old)))-starting)
	}
	next := 0
	for ; want > 0; want-- {
		var r state.Replica
		mended := false
		id := ""
		if len(lost) > 0 {
			id = lost[0].ID
			if r, mended = find.mend(lost[0]); mended {
				find.take(r)
			}
			lost = lost[1:]
		} else {
			id = p.name(f.d.Name, &next)
		}
		if !mended {
			if r, reasons = find.place(id); reasons != nil {
				break
			}
		}
		// A replica that goes away in this same command is not there any more.
		p.change(state.Change{StartReplica: &state.StartReplica{Replica: r}})
		delete(p.removed, id)
		f.good = append(f.good, r)
	}
	if f.d.Auto && len(f.good) > 0 {
		return 0, reasons
	}
	if f.d.Auto {
		return 1, reasons
	}
	return want, reasons
}

// name gives the first free id of a deployment from a number on.
func (p *planner) name(deployment string, next *int) string {
	for ; ; *next++ {
		id := fmt.Sprintf("%s/%d", deployment, *next)
		if _, taken := p.View.Replicas[id]; !taken || p.removed[id] {
			*next++
			return id
		}
	}
}

// retire lets go of replicas whose successors are ready. Where there is no room
// for both, an old version gives its place up, a shard on a node that stops moves
// alone, and what an operator drains stays until there is a place: stuck counts it.
func (p *planner) retire(f *fleet, find *search, noRoom []Reason) (stuck int) {
	ready, starting := 0, false
	for _, r := range f.good {
		if f.ready[r.ID] {
			ready++
		} else if r.Phase != state.Failed {
			starting = true
		}
	}
	available := ready + len(f.old) + len(f.moving)
	enough := func(r state.Replica, spare int) bool {
		if f.d.Auto {
			return ready > 0 && (r.Version == f.d.Version || f.beside(r))
		}
		return available-1 >= f.d.Replicas-spare || len(f.good) >= f.d.Replicas && ready == len(f.good)
	}
	for _, r := range f.moving {
		switch {
		case enough(r, 0):
			p.drain(f, r, "its node drains")
			available--
		case noRoom == nil || starting:
			// its successor comes
		case slices.ContainsFunc(r.Shards, p.must):
			if !p.move(r, find) {
				p.drain(f, r, "its node drains, and there is no other place")
			}
		default:
			stuck++
		}
	}
	for _, r := range f.old {
		switch {
		case enough(r, spare(f.d.Replicas)):
			p.drain(f, r, "another version replaces it")
			available--
		case noRoom != nil && !starting && len(f.draining) == 0:
			p.drain(f, r, "it makes room for another version")
			available--
		}
	}
	return stuck
}

// move lets the shards of a replica whose nodes take none any more go elsewhere, if
// there is a place for them; the others stay, in a new epoch. Where none can stay,
// or none beside those that do, the whole replica goes.
func (p *planner) move(r state.Replica, find *search) bool {
	p.occupy(r, -1)
	moved, ok := find.mend(r)
	if !ok {
		moved, ok = find.anew(r.ID)
	}
	if !ok {
		p.occupy(r, 1)
		return false
	}
	p.occupy(moved, 1)
	p.change(state.Change{StartReplica: &state.StartReplica{Replica: moved, After: r.Epoch}})
	return true
}

// beside reports whether a successor of an old replica is ready where that one is.
func (f *fleet) beside(old state.Replica) bool {
	return slices.ContainsFunc(f.good, func(r state.Replica) bool {
		return f.ready[r.ID] && slices.ContainsFunc(r.Shards, func(s state.Placement) bool {
			return slices.ContainsFunc(old.Shards, func(o state.Placement) bool { return o.Node == s.Node })
		})
	})
}
