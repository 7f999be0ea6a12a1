package place

import (
	"fmt"
	"reflect"
	"slices"
	"testing"

	"manta/head/state"
	"manta/node/wire"
	"manta/parallel/shard"
)

func staged(tensor, pipeline int) state.Deployment {
	d := deployment("m", 1, 1)
	d.Layout = shard.Layout{Tensor: tensor, Pipeline: pipeline}
	d.Settings.MaxModelLen = 256
	return d
}

func spread(d state.Deployment) state.Deployment {
	d.Strategy = state.Spread
	return d
}

func gpus(node string, n int, memory int64) wire.Report {
	r := wire.Report{Node: node}
	for i := range n {
		r.Devices = append(r.Devices, wire.Device{ID: fmt.Sprintf("GPU-%s-%d", node, i), Kind: "cuda", Memory: memory})
	}
	return r
}

// nodesOf lists where the ranks of the one replica stand, stage by stage.
func (w *world) nodesOf() []string {
	w.t.Helper()
	var nodes []string
	for _, s := range w.view.Replicas["m/0"].Shards {
		nodes = append(nodes, s.Node)
	}
	return nodes
}

// A replica stands on one node if it fits there; else stages go across nodes, and
// the tensor ranks of a stage stay together as long as a node has room for them.
func TestRanksAcrossNodes(t *testing.T) {
	const small, large = 36 << 20, 500 << 20
	tests := []struct {
		name    string
		d       state.Deployment
		reports []wire.Report
		want    []string // in order, for ranks that stand together
	}{
		{"fits on one node", staged(1, 2), []wire.Report{report("a", large), report("b", large)}, []string{"a", "a"}},
		{"spread where it would fit on one", spread(staged(1, 2)), []wire.Report{report("a", large), report("b", large)}, []string{"a", "b"}},
		{"two stages, each node too small for both", staged(1, 2), []wire.Report{report("a", small), report("b", small)}, []string{"a", "b"}},
		{"tensor ranks together", staged(2, 2), []wire.Report{gpus("a", 2, large), gpus("b", 2, large)}, []string{"a", "a", "b", "b"}},
		{"tensor ranks apart where they must", staged(2, 1), []wire.Report{gpus("a", 1, large), gpus("b", 1, large)}, []string{"a", "b"}},
		{"no node, to spread over", spread(staged(1, 2)), nil, nil},
		{"no node", staged(1, 2), nil, nil},
		{"nowhere", staged(2, 2), []wire.Report{gpus("a", 1, large), gpus("b", 2, large)}, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t, test.d)
			for _, r := range test.reports {
				w.reports[r.Node] = r
			}
			out := w.settle()
			got := w.nodesOf()
			if !slices.Equal(got, test.want) {
				t.Errorf("ranks on %v, want %v; waiting %+v", got, test.want, out.Waiting)
			}
			if (test.want == nil) != (len(out.Waiting) == 1) {
				t.Errorf("waiting %+v", out.Waiting)
			}
		})
	}
}

// When a node is lost its ranks move; the others stay with the blocks that they
// have, in a new epoch, so that their nodes keep what is loaded.
func TestLostRankMovesAlone(t *testing.T) {
	const small = 36 << 20
	w := newWorld(t, staged(1, 2))
	for _, node := range []string{"a", "b", "c"} {
		w.reports[node] = report(node, small)
	}
	w.settle()
	before := w.view.Replicas["m/0"]
	nodes := w.nodesOf()
	if len(nodes) != 2 || nodes[0] == nodes[1] {
		t.Fatalf("ranks on %v", nodes)
	}
	delete(w.reports, nodes[1])
	w.settle()
	after := w.view.Replicas["m/0"]
	if after.Shards[0] != before.Shards[0] {
		t.Errorf("the surviving rank moved from %v to %v", before.Shards[0], after.Shards[0])
	}
	if after.Shards[1].Node == nodes[1] || after.Shards[1].Node == nodes[0] {
		t.Errorf("the lost rank is on %s", after.Shards[1].Node)
	}
	if after.Epoch <= before.Epoch || !slices.Equal(after.Blocks, before.Blocks) || after.MaxLen != before.MaxLen {
		t.Errorf("epoch %d after %d, blocks %v after %v", after.Epoch, before.Epoch, after.Blocks, before.Blocks)
	}
	delete(w.reports, after.Shards[1].Node)
	if out := w.settle(); len(out.Waiting) != 1 || len(w.view.Replicas) != 0 {
		t.Errorf("one node left: waiting %+v, replicas %v", out.Waiting, w.view.Replicas)
	}
}

// A rank on a node that its peers can't reach moves, although that node reports;
// a replica that did not fail stays, and without another place so does this one.
func TestFrozenNodeIsAvoided(t *testing.T) {
	const small = 36 << 20
	w := newWorld(t, staged(1, 2))
	for _, node := range []string{"a", "b", "c"} {
		w.reports[node] = report(node, small)
	}
	w.settle()
	w.run(wire.PhaseReady, "")
	w.settle()
	before := w.view.Replicas["m/0"]
	frozen := before.Shards[1].Node
	w.frozen = map[string]bool{frozen: true}
	if w.settle(); !reflect.DeepEqual(w.view.Replicas["m/0"], before) {
		t.Errorf("a replica that runs moved: %+v", w.view.Replicas["m/0"])
	}
	w.run(wire.PhaseFailed, "no answer")
	w.paused = map[string]bool{"m/0": true}
	w.settle()
	after := w.view.Replicas["m/0"]
	if after.Shards[0] != before.Shards[0] || after.Shards[1].Node == frozen || after.Epoch <= before.Epoch || after.Phase != state.Placed {
		t.Errorf("after a failure: %+v", after)
	}
	w.frozen[after.Shards[1].Node] = true
	w.run(wire.PhaseFailed, "no answer")
	w.settle()
	if stays := w.view.Replicas["m/0"]; !slices.Equal(stays.Shards, after.Shards) || stays.Phase != state.Failed {
		t.Errorf("without another place: %+v", stays)
	}
	w.paused = nil
	w.settle()
	if again := w.view.Replicas["m/0"]; !slices.Equal(again.Shards, after.Shards) || again.Epoch <= after.Epoch {
		t.Errorf("after its pause: %+v", again)
	}
}

// Two nodes that can't reach each other are left both where others have room, else
// the replica would start on them again and again.
func TestAllFrozenNodesAreLeft(t *testing.T) {
	const small = 36 << 20
	w := newWorld(t, staged(1, 2))
	for _, node := range []string{"a", "b", "c", "d"} {
		w.reports[node] = report(node, small)
	}
	w.settle()
	w.run(wire.PhaseReady, "")
	w.settle()
	before := w.view.Replicas["m/0"]
	w.frozen = map[string]bool{before.Shards[0].Node: true, before.Shards[1].Node: true}
	w.run(wire.PhaseFailed, "no answer")
	w.settle()
	after := w.view.Replicas["m/0"]
	for _, shard := range after.Shards {
		if w.frozen[shard.Node] || after.Epoch <= before.Epoch {
			t.Fatalf("from %+v to %+v", before, after)
		}
	}
}

// Ranks of a group speak one protocol, also while nodes are upgraded: a lost rank
// goes to a node of the survivors' protocol, a new group where one has enough nodes.
func TestGroupsSpeakOneProtocol(t *testing.T) {
	const small = 36 << 20
	w := newWorld(t, spread(staged(1, 2)))
	speak := func(node string, protocol int) {
		r := report(node, small)
		r.Protocol = protocol
		w.reports[node] = r
	}
	speak("a", 0) // of before protocols were told
	speak("b", 2)
	if out := w.settle(); len(out.Waiting) != 1 {
		t.Fatalf("a group of two protocols: %v", w.nodesOf())
	}
	speak("c", 1)
	w.settle()
	if got := w.nodesOf(); !slices.Equal(got, []string{"a", "c"}) && !slices.Equal(got, []string{"c", "a"}) {
		t.Fatalf("ranks on %v", got)
	}
	speak("d", 2)
	speak("e", 1)
	delete(w.reports, "c")
	w.settle()
	if got := w.nodesOf(); slices.Contains(got, "b") || slices.Contains(got, "d") || !slices.Contains(got, "e") {
		t.Errorf("after a loss, ranks on %v", got)
	}
	speak("e", 2) // it came back as another program
	w.settle()
	if got := w.nodesOf(); len(got) != 2 || slices.Contains(got, "a") {
		t.Errorf("with one old node left, ranks on %v", got)
	}
	if out := w.settle(); len(out.Changes) > 0 {
		t.Errorf("it goes on: %+v", out.Changes)
	}
}

// Two nodes of unlike memory, neither with room for all, get layers by what they have;
// each is charged what its own shard takes, and a shard that is lost goes where that fits.
func TestUnevenStages(t *testing.T) {
	w := newWorld(t, staged(1, 2))
	w.reports["a"] = report("a", 54<<20)
	w.reports["b"] = report("b", 24<<20)
	if out := w.settle(); len(out.Waiting) > 0 {
		t.Fatalf("waiting %+v", out.Waiting)
	}
	r := w.view.Replicas["m/0"]
	if want := []string{"a", "b"}; !slices.Equal(w.nodesOf(), want) {
		t.Fatalf("ranks on %v, want %v", w.nodesOf(), want)
	}
	if cut := r.Layout.StageLayers; len(cut) != 2 || cut[0] <= cut[1] || cut[0]+cut[1] != 8 {
		t.Fatalf("layers %v", cut)
	}
	w.fits(0)
	for _, a := range Assignments(w.view)["b"].Replicas {
		if !slices.Equal(a.Layout.StageLayers, r.Layout.StageLayers) {
			t.Errorf("node b is told of layers %v, want %v", a.Layout.StageLayers, r.Layout.StageLayers)
		}
	}
	w.run(wire.PhaseReady, "")
	w.settle()
	delete(w.reports, "b")
	w.reports["c"] = report("c", 24<<20)
	w.settle()
	w.fits(0)
	if want := []string{"a", "c"}; !slices.Equal(w.nodesOf(), want) {
		t.Fatalf("after a loss ranks on %v, want %v", w.nodesOf(), want)
	}
	if now := w.view.Replicas["m/0"]; !slices.Equal(now.Layout.StageLayers, r.Layout.StageLayers) || !slices.Equal(now.Blocks, r.Blocks) {
		t.Errorf("the survivor's layers and blocks were %v %v, are %v %v", r.Layout.StageLayers, r.Blocks, now.Layout.StageLayers, now.Blocks)
	}
}
