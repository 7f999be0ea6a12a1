package place

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"

	"manta/head/state"
	"manta/node/wire"
	"manta/parallel/shard"
	"manta/runtime/plan"
)

// paced is a node whose one device has a speed.
func paced(node string, times float64) wire.Report {
	r := report(node, plenty)
	r.Devices[0].Speed = plan.Speed{Bandwidth: 50e9, Operations: 1e12}.Times(times)
	return r
}

// layers gives how many layers each node has of a replica.
func layers(t *testing.T, r state.Replica) map[string]int {
	t.Helper()
	of := map[string]int{}
	for _, s := range r.Shards {
		slice, err := shard.Cut(r.Layout, shapes().Shape(), s.Stage, s.Rank)
		if err != nil {
			t.Fatal(err)
		}
		of[s.Node] += slice.Layers.Len()
	}
	return of
}

// The slower of two nodes gets fewer layers. A speed that changes afterwards, by a
// wobble or by much, moves nothing; one within the wobble is not even noted.
func TestLayersFollowSpeed(t *testing.T) {
	d := staged(1, 2)
	d.Strategy = state.Spread
	w := newWorld(t, d)
	w.reports["fast"], w.reports["slow"] = paced("fast", 1), paced("slow", 0.25)
	w.settle()
	r := w.view.Replicas["m/0"]
	if of := layers(t, r); of["fast"] < 6 || of["slow"] < 1 {
		t.Fatalf("layers %v", of)
	}
	seconds := StageSeconds(w.view, w.view.Deployments["m"], r)
	if len(seconds) != 2 || seconds[0] <= 0 || seconds[1] <= 0 {
		t.Fatalf("a step takes %v", seconds)
	}
	w.run(wire.PhaseReady, "")
	w.settle()
	before := w.view
	random := rand.New(rand.NewPCG(3, 3))
	for range 50 {
		for node, times := range map[string]float64{"fast": 1, "slow": 0.25} {
			told := w.reports[node]
			told.Devices = paced(node, times*(0.81+0.4*random.Float64())).Devices
			w.reports[node] = told
		}
		if out := Reconcile(Input{View: w.view, Reports: w.reports}); len(out.Changes) != 0 {
			t.Fatalf("a wobble changes %+v", out.Changes[0])
		}
	}
	told := w.reports["fast"]
	told.Devices = paced("fast", 0.05).Devices
	w.reports["fast"] = told
	w.settle()
	if w.view.Nodes["fast"].Devices[0].Speed == before.Nodes["fast"].Devices[0].Speed {
		t.Error("the new speed is not noted")
	}
	if !reflect.DeepEqual(w.view.Replicas, before.Replicas) {
		t.Errorf("from %+v to %+v", before.Replicas, w.view.Replicas)
	}
}

// A head that can't read speeds takes a new node all the same: what holds the speeds is
// a change of its own, after one without them.
func TestSpeedsAreAChangeOfTheirOwn(t *testing.T) {
	w := newWorld(t)
	w.reports["a"] = paced("a", 1)
	changes := Reconcile(Input{View: w.view, Reports: w.reports}).Changes
	if len(changes) != 2 || changes[0].PutNode.Devices[0].Speed.Known() || !changes[1].PutNode.Devices[0].Speed.Known() {
		t.Fatalf("%+v", changes)
	}
	w.apply(changes[0])
	if again := Reconcile(Input{View: w.view, Reports: w.reports}).Changes; len(again) != 1 || !again[0].PutNode.Devices[0].Speed.Known() {
		t.Fatalf("without the second: %+v", again)
	}
}

// Of two unlike GPUs the faster gets more layers, as their drivers tell what they are:
// an A100 reads 0.37 of what an H200 does and computes 0.29.
func TestLayersFollowSpeedOfGPUs(t *testing.T) {
	d := staged(1, 2)
	d.Strategy = state.Spread
	w := newWorld(t, d)
	for node, speed := range map[string]plan.Speed{
		"h200": {Bandwidth: 4.43e12, Operations: 642e12}, "a100": {Bandwidth: 1.65e12, Operations: 187e12},
	} {
		told := report(node, plenty)
		told.Devices = []wire.Device{{ID: "cuda:0", Kind: "cuda", Name: node, Memory: plenty, Speed: speed}}
		w.reports[node] = told
	}
	w.settle()
	if of := layers(t, w.view.Replicas["m/0"]); of["h200"] < 2*of["a100"] || of["a100"] < 1 {
		t.Fatalf("layers %v", of)
	}
}

// paces is a node with GPUs that read and compute so many times as much as an A100.
func paces(node string, times ...float64) wire.Report {
	told := report(node, plenty)
	told.Devices = nil
	for i, n := range times {
		told.Devices = append(told.Devices, wire.Device{
			ID: fmt.Sprint("cuda:", i), Kind: "cuda", Name: "GPU", Memory: plenty,
			Speed: plan.Speed{Bandwidth: 1.65e12, Operations: 187e12}.Times(n),
		})
	}
	return told
}

// Of unlike devices of a stage the faster takes more heads and columns, in the same
// order in all stages; alike ones, and those of unknown speed, take even parts. No part
// is more than its device has room for.
func TestHeadsFollowSpeed(t *testing.T) {
	for name, c := range map[string]struct {
		tensor, pipeline int
		nodes            []wire.Report
		uneven           bool
	}{
		"unlike":                {2, 1, []wire.Report{paces("a", 1, 2.5)}, true},
		"alike":                 {2, 1, []wire.Report{paces("a", 1, 1.1)}, false},
		"unknown":               {2, 1, []wire.Report{paces("a", 1, 0)}, false},
		"two stages":            {2, 2, []wire.Report{paces("a", 2.5, 1), paces("b", 1, 2.5)}, true},
		"three, one of them so": {3, 1, []wire.Report{paces("a", 1, 2, 1)}, true},
		"a stage of alike":      {2, 2, []wire.Report{paces("a", 1, 1), paces("b", 1, 2.5)}, false},
		"four alike":            {4, 1, []wire.Report{paces("a", 1, 1, 1, 1)}, false},
	} {
		t.Run(name, func(t *testing.T) {
			d := staged(c.tensor, c.pipeline)
			d.Strategy = state.Spread
			w := newWorld(t, d)
			speed, room := map[string]float64{}, map[string]int64{}
			for _, told := range c.nodes {
				w.reports[told.Node] = told
				for _, device := range told.Devices {
					speed[told.Node+device.ID], room[told.Node+device.ID] = device.Speed.Bandwidth, device.Memory
				}
			}
			w.settle()
			r := w.view.Replicas["m/0"]
			if uneven := r.Layout.TensorShares != nil; uneven != c.uneven || len(r.Shards) != c.tensor*c.pipeline {
				t.Fatalf("shares %v of %d shards", r.Layout.TensorShares, len(r.Shards))
			}
			heads := map[int]int{} // by stage
			for _, s := range r.Shards {
				slice, err := shard.Cut(r.Layout, shapes().Shape(), s.Stage, s.Rank)
				if err != nil {
					t.Fatal(err)
				}
				heads[s.Stage] += slice.Heads.Len()
				if takes := r.Takes(s); takes <= 0 || takes > room[s.Node+s.Device] {
					t.Errorf("%+v takes %d bytes", s, takes)
				}
				for _, other := range r.Shards {
					far, err := shard.Cut(r.Layout, shapes().Shape(), other.Stage, other.Rank)
					if err != nil {
						t.Fatal(err)
					}
					if !c.uneven || other.Stage != s.Stage || speed[s.Node+s.Device] <= speed[other.Node+other.Device] {
						continue
					}
					if slice.Heads.Len() < far.Heads.Len() || slice.FFN.Len() <= far.FFN.Len() { // heads are few here
						t.Errorf("%+v has %v, the slower %+v %v", s, slice, other, far)
					}
				}
			}
			for stage, n := range heads {
				if n != shapes().Heads {
					t.Errorf("stage %d has %d heads", stage, n)
				}
			}
		})
	}
}
