package place

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"manta/head/state"
	"manta/kernels"
	"manta/node/wire"
	"manta/parallel/shard"
	"manta/runtime/plan"
)

// shapes are those of a small llama: about 48 MB of weights.
func shapes() plan.Shapes {
	return plan.Shapes{
		Architecture: "llama", Layers: 8, Hidden: 256, Heads: 8, KVHeads: 4, HeadDim: 32, FFN: 512, Vocab: 1000, Context: 1024, Tied: true,
		Windows: make([]int, 8), EmbeddingBytes: 1 << 20, AttentionBytes: 2 << 20, FFNBytes: 4 << 20, WeightType: kernels.F32, Unit: 1,
	}
}

func deployment(name string, replicas int, version uint64) state.Deployment {
	return state.Deployment{
		Name: name, Model: name, Shapes: shapes(), Replicas: replicas, Version: version, Layout: shard.Layout{Tensor: 1, Pipeline: 1},
		Settings: state.Settings{MaxNumSeqs: 4, MaxNumBatchedTokens: 64},
	}
}

func report(node string, memory int64, replicas ...wire.ReplicaReport) wire.Report {
	return wire.Report{Node: node, Devices: []wire.Device{{ID: "cpu:0", Kind: "cpu", Memory: memory}}, Replicas: replicas}
}

// A world is a View with what living nodes tell; it obeys decisions.
type world struct {
	t       *testing.T
	view    *state.View
	reports map[string]wire.Report
	paused  map[string]bool
	unheard map[string]bool
	frozen  map[string]bool
	overdue map[string]bool
}

func newWorld(t *testing.T, deployments ...state.Deployment) *world {
	w := &world{t: t, reports: map[string]wire.Report{}, paused: map[string]bool{}, view: &state.View{Index: 100}}
	for i := range deployments {
		w.apply(state.Change{PutDeployment: &deployments[i]})
	}
	return w
}

func (w *world) apply(changes ...state.Change) {
	w.t.Helper()
	next, err := w.view.Apply(w.view.Index+1, state.Command{Changes: changes})
	if err != nil {
		w.t.Fatalf("a decision is refused: %v", err)
	}
	w.view = next
}

// settle reconciles until there is nothing to do.
func (w *world) settle() Output {
	w.t.Helper()
	for range 10 {
		out := Reconcile(Input{View: w.view, Reports: w.reports, Paused: w.paused, Unheard: w.unheard, Overdue: w.overdue, Frozen: w.frozen})
		if len(out.Changes) == 0 {
			return out
		}
		w.apply(out.Changes...)
	}
	w.t.Fatal("decisions go on and on")
	return Output{}
}

// run makes every node report its replicas in a phase.
func (w *world) run(phase wire.Phase, reason string) {
	for node, r := range w.reports {
		r.Replicas = nil
		for _, a := range Assignments(w.view)[node].Replicas {
			r.Replicas = append(r.Replicas, wire.ReplicaReport{Replica: a.Replica, Epoch: a.Epoch, Phase: phase, Reason: reason})
		}
		w.reports[node] = r
	}
}

const plenty = 4 << 30

// A deployment is placed, loads, becomes ready; nothing more happens then.
func TestLifeOfAReplica(t *testing.T) {
	w := newWorld(t, deployment("m", 1, 1))
	if out := w.settle(); len(out.Waiting) != 1 || out.Waiting[0].Reasons[0].Lacks != "no node is ready" {
		t.Fatalf("without nodes: %+v", out)
	}
	w.reports["a"] = report("a", plenty)
	if out := w.settle(); len(out.Waiting) != 0 {
		t.Fatalf("with a node: %+v", out.Waiting)
	}
	r := w.view.Replicas["m/0"]
	if r.Phase != state.Placed || r.Shards[0].Node != "a" || r.Epoch == 0 || len(r.Blocks) != 1 || r.Blocks[0] == 0 || r.MaxLen != 1024 {
		t.Fatalf("placed: %+v", r)
	}
	for _, step := range []struct {
		told wire.Phase
		want state.Phase
	}{{wire.PhasePulling, state.Loading}, {wire.PhaseLoading, state.Loading}, {wire.PhaseReady, state.Ready}} {
		w.run(step.told, "")
		w.settle()
		if got := w.view.Replicas["m/0"]; got.Phase != step.want || got.Epoch != r.Epoch {
			t.Fatalf("told %s: %+v", step.told, got)
		}
	}
}

// A group that ended starts again under a new epoch: after its node restarted
// (it runs nothing), and after it failed, once its pause is over.
func TestEpochsRise(t *testing.T) {
	ready := func(t *testing.T) *world {
		w := newWorld(t, deployment("m", 1, 1))
		w.reports["a"] = report("a", plenty)
		w.settle()
		w.run(wire.PhaseReady, "")
		w.settle()
		return w
	}
	t.Run("node restarted", func(t *testing.T) {
		w := ready(t)
		before := w.view.Replicas["m/0"].Epoch
		w.reports["a"] = report("a", plenty)
		w.settle()
		if r := w.view.Replicas["m/0"]; r.Epoch <= before || r.Phase != state.Placed {
			t.Fatalf("after epoch %d: %+v", before, r)
		}
	})
	t.Run("failed", func(t *testing.T) {
		w := ready(t)
		before := w.view.Replicas["m/0"].Epoch
		w.run(wire.PhaseFailed, "broken")
		w.paused["m/0"] = true
		w.settle()
		if r := w.view.Replicas["m/0"]; r.Epoch != before || r.Phase != state.Failed || !strings.Contains(r.Reason, "broken") {
			t.Fatalf("failed: %+v", r)
		}
		w.paused = nil
		out := Reconcile(Input{View: w.view, Reports: w.reports})
		w.apply(out.Changes...)
		if r := w.view.Replicas["m/0"]; r.Epoch <= before || r.Phase != state.Placed {
			t.Fatalf("after the pause: %+v", r)
		}
	})
	t.Run("stale report", func(t *testing.T) {
		w := ready(t)
		before := w.view.Replicas["m/0"]
		r := w.reports["a"]
		r.Replicas = append(r.Replicas, wire.ReplicaReport{Replica: "m/0", Epoch: before.Epoch - 1, Phase: wire.PhaseFailed})
		w.reports["a"] = r
		w.settle()
		if now := w.view.Replicas["m/0"]; !reflect.DeepEqual(now, before) {
			t.Fatalf("an old epoch's failure counts: %+v", now)
		}
	})
}

// A replica whose node died is placed elsewhere; one whose node was not heard of
// yet by a new leader stays.
func TestLostNodes(t *testing.T) {
	w := newWorld(t, deployment("m", 1, 1))
	w.reports["a"] = report("a", plenty)
	w.settle()
	w.run(wire.PhaseReady, "")
	w.settle()
	before := w.view.Replicas["m/0"]

	delete(w.reports, "a")
	w.reports["b"] = report("b", plenty)
	w.unheard = map[string]bool{"a": true}
	w.settle()
	if now := w.view.Replicas["m/0"]; !reflect.DeepEqual(now, before) {
		t.Fatalf("moved before its node was heard of: %+v", now)
	}
	w.unheard = nil
	w.settle()
	if now := w.view.Replicas["m/0"]; now.Shards[0].Node != "b" || now.Epoch <= before.Epoch {
		t.Fatalf("after the node's death: %+v", now)
	}
}

// What users change is followed: fewer replicas, another version, deletion.
func TestIntentIsFollowed(t *testing.T) {
	w := newWorld(t, deployment("m", 3, 1))
	w.reports["a"], w.reports["b"] = report("a", plenty), report("b", plenty)
	w.settle()
	if len(w.view.Replicas) != 3 {
		t.Fatalf("%d replicas", len(w.view.Replicas))
	}
	on := map[string]int{}
	for _, r := range w.view.Replicas {
		on[r.Shards[0].Node]++
	}
	if on["a"] == 0 || on["b"] == 0 {
		t.Fatalf("not spread: %v", on)
	}
	kept := w.view.Replicas["m/0"]
	d := w.view.Deployments["m"]
	d.Replicas = 1
	w.apply(state.Change{PutDeployment: &d})
	w.settle()
	if now := w.view.Replicas["m/0"]; len(w.view.Replicas) != 1 || !reflect.DeepEqual(now, kept) {
		t.Fatalf("scaled down: %+v", w.view.Replicas)
	}
	d.Settings.MaxModelLen = 256
	w.apply(state.Change{PutDeployment: &d})
	w.settle()
	if now := w.view.Replicas["m/0"]; now.MaxLen != 256 || now.Epoch <= kept.Epoch {
		t.Fatalf("changed: %+v", now)
	}
	w.apply(state.Change{DeleteDeployment: "m"})
	w.settle()
	if len(w.view.Replicas) != 0 || len(Assignments(w.view)["a"].Replicas) != 0 {
		t.Fatalf("deleted: %+v", w.view.Replicas)
	}
}

// What waits says what every node lacks.
func TestReasons(t *testing.T) {
	for name, c := range map[string]struct {
		change func(w *world, d *state.Deployment)
		want   string
	}{
		"memory":   {func(w *world, d *state.Deployment) { w.reports["a"] = report("a", 1<<20) }, "weights"},
		"draining": {func(w *world, d *state.Deployment) { r := report("a", plenty); r.Draining = true; w.reports["a"] = r }, "draining"},
		"home":     {func(w *world, d *state.Deployment) { d.Homes = []string{"b"} }, "on b only"},
		"devices":  {func(w *world, d *state.Deployment) { w.reports["a"] = wire.Report{Node: "a"} }, "no device"},
		"gpus": {func(w *world, d *state.Deployment) {
			w.reports["a"] = wire.Report{Node: "a", Devices: []wire.Device{{ID: "g", Kind: "cuda", Memory: plenty}}}
			d.Layout.Tensor = 2
		}, "2 ranks need one each"},
		"layout":      {func(w *world, d *state.Deployment) { d.Layout.Tensor = 64 }, "tensor"},
		"utilization": {func(w *world, d *state.Deployment) { d.Settings.GPUMemoryUtilization = 0.001 }, "weights"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.reports["a"] = report("a", plenty)
			d := deployment("m", 1, 1)
			c.change(w, &d)
			w.apply(state.Change{PutDeployment: &d})
			out := w.settle()
			if len(out.Waiting) != 1 || len(out.Waiting[0].Reasons) != 1 || !strings.Contains(out.Waiting[0].Reasons[0].Lacks, c.want) {
				t.Fatalf("waiting %+v, want %q", out.Waiting, c.want)
			}
		})
	}
}

// Properties, over random worlds: decisions come to an end, are deterministic,
// are never refused, and no device is asked for more than it has.
func TestProperties(t *testing.T) {
	for seed := range uint64(1000) {
		random := rand.New(rand.NewPCG(seed, 1))
		w := newWorld(t)
		for range 10 {
			switch random.IntN(8) {
			case 0, 1:
				name := fmt.Sprint("m", random.IntN(3))
				d := deployment(name, random.IntN(4), 1)
				d.Auto = random.IntN(4) == 0
				d.Settings.MaxModelLen = 256 << random.IntN(2) // another version
				d.Layout = shard.Layout{Tensor: 1 + random.IntN(3), Pipeline: 1 + random.IntN(3)}
				d.Strategy = []state.Strategy{state.Pack, state.Spread}[random.IntN(2)]
				if random.IntN(5) == 0 {
					d.NodeSelector = map[string]string{"disk": "fast"}
				}
				w.apply(state.Change{PutDeployment: &d})
			case 2:
				n := random.IntN(4)
				node := fmt.Sprint("n", n)
				r := report(node, (int64(seed%7)*30+int64(n)*100)<<20)
				if random.IntN(3) == 0 {
					r = gpus(node, 1+random.IntN(3), (int64(seed%7)*30+100)<<20)
				}
				for i := range r.Devices {
					if random.IntN(2) == 0 {
						r.Devices[i].Speed = plan.Speed{Bandwidth: 3e12, Operations: 600e12}.Times(float64(1+random.IntN(4)) / 4)
					}
				}
				if random.IntN(2) == 0 {
					r.Labels = map[string]string{"disk": "fast", state.Zone: fmt.Sprint("z", random.IntN(2))}
				}
				r.Protocol = 1 + random.IntN(4)/3
				w.reports[node] = r
			case 3:
				delete(w.reports, fmt.Sprint("n", random.IntN(4)))
			case 4:
				w.run([]wire.Phase{wire.PhaseLoading, wire.PhaseReady, wire.PhaseFailed}[random.IntN(3)], "")
				for id := range w.view.Replicas {
					w.paused[id] = true
				}
			case 5:
				w.unheard = map[string]bool{fmt.Sprint("n", random.IntN(4)): true}
			case 6:
				node := fmt.Sprint("n", random.IntN(4))
				if _, known := w.view.Nodes[node]; known {
					w.apply(state.Change{DrainNode: &state.DrainNode{ID: node, Drained: random.IntN(2) == 0}})
				}
				if r, alive := w.reports[node]; alive {
					r.Draining, r.Leaving = random.IntN(3) == 0, random.IntN(6) == 0
					w.reports[node] = r
				}
			case 7:
				w.overdue, w.frozen = map[string]bool{}, map[string]bool{fmt.Sprint("n", random.IntN(4)): true}
				for _, id := range w.of(state.Draining) {
					w.overdue[id] = random.IntN(2) == 0
				}
			}
			in := Input{View: w.view, Reports: w.reports, Paused: w.paused, Unheard: w.unheard, Overdue: w.overdue, Frozen: w.frozen}
			if a, b := Reconcile(in), Reconcile(in); !reflect.DeepEqual(a, b) {
				t.Fatalf("seed %d: two decisions on the same facts", seed)
			}
			w.settle()
			w.fits(seed)
		}
	}
}

func (w *world) fits(seed uint64) {
	w.t.Helper()
	type device struct{ node, id string }
	used := map[device]int64{}
	for _, r := range w.view.Replicas {
		for _, s := range r.Shards {
			used[device{s.Node, s.Device}] += r.Takes(s)
		}
	}
	for at, bytes := range used {
		for _, d := range w.reports[at.node].Devices { // of those that live
			if d.ID == at.id && bytes > d.Memory {
				w.t.Fatalf("seed %d: %v has %d bytes, %d are placed", seed, at, d.Memory, bytes)
			}
		}
	}
}
