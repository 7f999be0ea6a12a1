package place

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	"manta/head/state"
	"manta/node/wire"
	"manta/parallel/shard"
	"manta/runtime/plan"
)

// large makes a world of nodes with eight GPUs each and deployments of several
// layouts, unplaced. Applying is the state's part, so it is not what is measured.
func large(t testing.TB, nodes, deployments int) *world {
	view := &state.View{Index: 100}
	apply := func(changes ...state.Change) {
		next, err := view.Apply(view.Index+1, state.Command{At: time.Unix(int64(view.Index), 0), Changes: changes})
		if err != nil {
			t.Fatal(err)
		}
		view = next
	}
	for i := range deployments {
		d := deployment(fmt.Sprintf("m%03d", i), 1+i%10, 1)
		d.Layout = shard.Layout{Tensor: 1 << (i % 4), Pipeline: 1 + i%3/2}
		d.Strategy = []state.Strategy{state.Pack, state.Spread}[i%2]
		apply(state.Change{PutDeployment: &d})
	}
	w := &world{view: view, reports: map[string]wire.Report{}}
	for i := range nodes {
		node := fmt.Sprintf("n%04d", i)
		r := gpus(node, 8, int64(80+i%16)<<30)
		for j := range r.Devices {
			r.Devices[j].Speed = plan.Speed{Bandwidth: 3e12, Operations: 600e12}.Times(float64(2+i%5) / 4)
		}
		r.Labels = map[string]string{state.Zone: fmt.Sprint("zone-", i%3)}
		w.reports[node] = r
	}
	return w
}

// decide is Reconcile, and takes over what it decided.
func (w *world) decide(t testing.TB) Output {
	out := Reconcile(Input{View: w.view, Reports: w.reports})
	next, err := w.view.Apply(w.view.Index+1, state.Command{Changes: out.Changes})
	if err != nil {
		t.Fatal(err)
	}
	w.view = next
	return out
}

// Placing 100 deployments (550 replicas) on 1,000 nodes of eight devices.
func BenchmarkPlace(b *testing.B) {
	w := large(b, 1000, 100)
	b.Run("all", func(b *testing.B) {
		for b.Loop() {
			out := Reconcile(Input{View: w.view, Reports: w.reports})
			if len(out.Waiting) > 0 {
				b.Fatalf("%+v", out.Waiting[0])
			}
		}
	})
	w.decide(b)
	b.Run("nothing to do", func(b *testing.B) {
		for b.Loop() {
			if out := Reconcile(Input{View: w.view, Reports: w.reports}); len(out.Changes) > 0 {
				b.Fatalf("%+v", out.Changes[0])
			}
		}
	})
	for _, r := range w.view.Replicas {
		delete(w.reports, r.Shards[0].Node)
		break
	}
	b.Run("a node dies", func(b *testing.B) {
		for b.Loop() {
			if out := Reconcile(Input{View: w.view, Reports: w.reports}); len(out.Changes) == 0 {
				b.Fatal("nothing moves")
			}
		}
	})
	b.Run("assignments", func(b *testing.B) {
		for b.Loop() {
			Assignments(w.view)
		}
	})
}

// Whatever becomes of one node, only replicas with shards on it change; a node
// that joins moves nothing.
func TestOneNodeMovesOnlyItsOwn(t *testing.T) {
	w := large(t, 60, 20)
	w.decide(t)
	if out := w.decide(t); len(out.Changes) != 0 {
		t.Fatalf("it does not settle: %+v", out.Changes)
	}
	random := rand.New(rand.NewPCG(7, 7))
	for round := range 40 {
		before := w.view.Replicas
		node := fmt.Sprintf("n%04d", random.IntN(60))
		if r, ok := w.reports[node]; ok && round%2 == 0 {
			delete(w.reports, node)
			defer func() { w.reports[node] = r }()
		} else {
			r := gpus(node, 8, 80<<30)
			r.Labels = map[string]string{state.Zone: "zone-0"}
			if ok {
				r = w.reports[node]
			}
			w.reports[node] = r
		}
		for range 3 {
			w.decide(t)
		}
		for id, was := range before {
			on := false
			for _, s := range was.Shards {
				_, alive := w.reports[s.Node]
				on = on || !alive
			}
			if now := w.view.Replicas[id]; !on && !reflect.DeepEqual(now.Shards, was.Shards) {
				t.Fatalf("round %d: %s is not on %s, and moved from %v to %v", round, id, node, was.Shards, now.Shards)
			}
		}
	}
}
