package place

import (
	"fmt"
	"slices"
	"testing"

	"manta/head/state"
	"manta/node/wire"
)

// serving makes a world whose replicas are ready on as many nodes as there are.
func serving(t *testing.T, nodes int, d state.Deployment) *world {
	w := newWorld(t, d)
	for i := range nodes {
		node := fmt.Sprint("n", i)
		w.reports[node] = report(node, plenty)
	}
	w.settle()
	w.ready()
	return w
}

// ready has every node report what it runs as ready, with work in progress.
func (w *world) ready() {
	w.t.Helper()
	w.run(wire.PhaseReady, "")
	for _, r := range w.reports {
		for i := range r.Replicas {
			r.Replicas[i].Engine.Running = 1
		}
	}
	w.settle()
}

// of lists the ids of replicas in a phase, in order.
func (w *world) of(phase state.Phase) []string {
	var ids []string
	for id, r := range w.view.Replicas {
		if r.Phase == phase {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

func (w *world) want(what string, ready, draining, placed int) {
	w.t.Helper()
	if r, d, p := w.of(state.Ready), w.of(state.Draining), w.of(state.Placed); len(r) != ready || len(d) != draining || len(p) != placed {
		w.t.Fatalf("%s: ready %v, draining %v, placed %v; want %d, %d, %d", what, r, d, p, ready, draining, placed)
	}
}

// What finds no other place stays on a node that is drained, unless that is forced; then
// it waits.
func TestForcedDrainLeavesNothing(t *testing.T) {
	w := serving(t, 1, deployment("m", 1, 1))
	node := w.view.Replicas["m/0"].Shards[0].Node
	w.apply(state.Change{DrainNode: &state.DrainNode{ID: node, Drained: true}})
	w.settle()
	w.want("drained, without another place", 1, 0, 0)
	w.apply(state.Change{DrainNode: &state.DrainNode{ID: node, Drained: true, Forced: true}})
	w.overdue = map[string]bool{"m/0": true}
	out := w.settle()
	w.want("by force", 0, 0, 0)
	if len(out.Waiting) != 1 || out.Waiting[0].Missing != 1 {
		t.Fatalf("waiting %+v", out.Waiting)
	}
	w.apply(state.Change{DrainNode: &state.DrainNode{ID: node}})
	w.settle()
	w.want("undrained", 0, 0, 1)
}

// A node that drains keeps its replica until another is ready elsewhere; then it
// ends what it has, and goes when it is idle or has had its time.
func TestDrainingNodeHandsOver(t *testing.T) {
	for name, drain := range map[string]func(w *world, node string){
		"by its operator": func(w *world, node string) {
			w.apply(state.Change{DrainNode: &state.DrainNode{ID: node, Drained: true}})
		},
		"by itself": func(w *world, node string) {
			r := w.reports[node]
			r.Draining = true
			w.reports[node] = r
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := serving(t, 2, deployment("m", 1, 1))
			from := w.view.Replicas["m/0"].Shards[0].Node
			drain(w, from)
			w.settle()
			w.want("before the successor is ready", 1, 0, 1)
			w.ready()
			w.want("with a ready successor", 1, 1, 0)
			if r := w.view.Replicas["m/1"]; r.Shards[0].Node == from || r.Phase != state.Ready {
				t.Fatalf("the successor: %+v", r)
			}
			w.overdue = map[string]bool{"m/0": true}
			w.settle()
			w.want("after its time", 1, 0, 0)
			if len(Assignments(w.view)[from].Replicas) != 0 {
				t.Fatal("the drained node still has work")
			}
		})
	}
}

// Where there is no other place, what an operator drains stays, and says why; a
// node that stops anyway ends what it has.
func TestDrainWithoutAnotherPlace(t *testing.T) {
	w := serving(t, 1, deployment("m", 1, 1))
	w.apply(state.Change{DrainNode: &state.DrainNode{ID: "n0", Drained: true}})
	if out := w.settle(); len(out.Waiting) != 1 || out.Waiting[0].Missing != 1 || out.Waiting[0].Reasons[0].Lacks != "it is draining" {
		t.Fatalf("waiting %+v", out.Waiting)
	}
	w.want("drained by its operator", 1, 0, 0)
	r := w.reports["n0"]
	r.Draining = true
	w.reports["n0"] = r
	w.settle()
	w.want("stopping", 0, 1, 0)
	r.Replicas[0].Engine.Running = 0
	w.settle()
	w.want("idle", 0, 0, 0)
}

// A shard on a node that stops moves alone where there is no room for a second
// replica: the others keep what is loaded.
func TestShardOfAStoppingNodeMovesAlone(t *testing.T) {
	const small = 36 << 20
	w := newWorld(t, staged(1, 2))
	for _, node := range []string{"a", "b", "c"} {
		w.reports[node] = report(node, small)
	}
	w.settle()
	w.ready()
	before := w.view.Replicas["m/0"]
	r := w.reports[before.Shards[1].Node]
	r.Draining = true
	w.reports[r.Node] = r
	w.settle()
	after := w.view.Replicas["m/0"]
	if after.Shards[0] != before.Shards[0] || after.Shards[1].Node == r.Node || after.Epoch <= before.Epoch {
		t.Fatalf("from %+v to %+v", before.Shards, after.Shards)
	}
}

// A rolling update never has fewer ready replicas than wanted, less the spare, nor
// more of them than wanted and the surge; it ends with all of the new version.
func TestRollingUpdate(t *testing.T) {
	for _, replicas := range []int{1, 2, 4, 9} {
		w := serving(t, 3, deployment("m", replicas, 1))
		d := w.view.Deployments["m"]
		d.Settings.MaxModelLen = 256
		w.apply(state.Change{PutDeployment: &d})
		version := w.view.Deployments["m"].Version
		for step := range 100 {
			w.settle()
			ready, fresh := w.of(state.Ready), 0
			for _, r := range w.view.Replicas {
				if r.Version == version && r.Phase == state.Ready {
					fresh++
				}
			}
			if fresh == replicas && len(w.view.Replicas) == replicas {
				break
			}
			if step == 99 {
				t.Fatalf("%d replicas: the update does not end: %+v", replicas, w.view.Replicas)
			}
			if len(ready) < replicas-spare(replicas) {
				t.Fatalf("%d replicas, step %d: only %v are ready", replicas, step, ready)
			}
			if n := len(w.view.Replicas) - len(w.of(state.Draining)); n > replicas+surge(replicas) {
				t.Fatalf("%d replicas, step %d: %d stand", replicas, step, n)
			}
			w.ready()
			w.overdue = map[string]bool{}
			for _, id := range w.of(state.Draining) {
				w.overdue[id] = true
			}
		}
	}
}

// Without room for two an old version gives its place to the new one.
func TestUpdateInPlace(t *testing.T) {
	d := deployment("m", 1, 1)
	w := newWorld(t, d)
	w.reports["a"] = gpus("a", 1, plenty)
	w.settle()
	w.ready()
	d.Settings.MaxModelLen = 256
	w.apply(state.Change{PutDeployment: &d})
	if out := w.settle(); len(out.Waiting) != 0 {
		t.Errorf("room is being made, and yet it waits: %+v", out.Waiting)
	}
	w.want("making room", 0, 1, 0)
	w.overdue = map[string]bool{"m/0": true}
	w.settle()
	w.want("with room", 0, 0, 1)
}

// Auto is one replica a device: new nodes take one, leaving ones give theirs up,
// and what stands elsewhere never moves.
func TestAutoFollowsTheNodes(t *testing.T) {
	d := deployment("m", 0, 1)
	d.Auto = true
	w := serving(t, 2, d)
	w.want("two nodes", 2, 0, 0)
	kept := w.view.Replicas["m/0"]
	for i := 2; i < 6; i++ {
		node := fmt.Sprint("n", i)
		w.reports[node] = report(node, plenty)
	}
	w.settle()
	w.want("six nodes", 2, 0, 4)
	w.ready()
	w.want("six nodes, later", 6, 0, 0)
	on := map[string]bool{}
	for _, r := range w.view.Replicas {
		on[r.Shards[0].Node] = true
	}
	if len(on) != 6 {
		t.Fatalf("replicas on %v", on)
	}
	for i := 2; i < 6; i++ {
		r := w.reports[fmt.Sprint("n", i)]
		r.Draining, r.Leaving = true, true
		w.reports[r.Node] = r
	}
	w.settle()
	w.want("four leave", 2, 4, 0)
	w.overdue = map[string]bool{"m/2": true, "m/3": true, "m/4": true, "m/5": true}
	w.settle()
	w.want("four have left", 2, 0, 0)
	if len(w.view.Nodes) != 2 {
		t.Errorf("the leaving nodes are still known: %v", w.view.Nodes)
	}
	if now := w.view.Replicas["m/0"]; now.Epoch != kept.Epoch {
		t.Errorf("a replica that stood moved: %+v", now)
	}
	w.apply(state.Change{Scale: &state.Scale{Deployment: "m"}})
	w.settle()
	w.want("scaled to 0", 0, 2, 0)
	w.apply(state.Change{Scale: &state.Scale{Deployment: "m", Replicas: 1}})
	w.settle()
	w.want("wanted again", 1, 1, 0)
}

// A selector keeps shards off nodes without its labels, and replicas spread over
// zones before they share one.
func TestLabels(t *testing.T) {
	d := deployment("m", 2, 1)
	d.NodeSelector = map[string]string{"disk": "ssd"}
	w := newWorld(t, d)
	for node, zone := range map[string]string{"a": "east", "b": "east", "c": "west", "d": "west"} {
		r := report(node, plenty)
		r.Labels = map[string]string{state.Zone: zone}
		if node != "d" {
			r.Labels["disk"] = "ssd"
		}
		if zone == "east" {
			r.Devices[0].Memory *= 2 // alone, memory would put both there
		}
		w.reports[node] = r
	}
	w.settle()
	zones := map[string]int{}
	for _, r := range w.view.Replicas {
		zones[w.view.Nodes[r.Shards[0].Node].Labels[state.Zone]]++
	}
	if zones["east"] != 1 || zones["west"] != 1 {
		t.Fatalf("replicas by zone: %v", zones)
	}
	delete(w.reports, "c")
	delete(w.reports, "a")
	delete(w.reports, "b")
	if out := w.settle(); len(out.Waiting) != 1 || out.Waiting[0].Reasons[0].Lacks != "it lacks the label disk=ssd" {
		t.Fatalf("waiting %+v", out.Waiting)
	}
}
