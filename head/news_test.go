package head

import (
	"testing"

	"manta/node/wire"
)

// A node that repeats itself wakes nobody; one that has changed does.
func TestNews(t *testing.T) {
	report := func(change func(*wire.Report)) wire.Report {
		r := wire.Report{
			Node: "n", Sequence: 7, Devices: []wire.Device{{ID: "sim:0", Memory: 1}}, Labels: map[string]string{"zone": "a"},
			Replicas: []wire.ReplicaReport{{Replica: "r", Epoch: 1, Phase: wire.PhaseReady}},
		}
		change(&r)
		return r
	}
	before := report(func(*wire.Report) {})
	for _, test := range []struct {
		name   string
		change func(*wire.Report)
		want   bool
	}{
		{"again", func(r *wire.Report) { r.Sequence++ }, false},
		{"counts", func(r *wire.Report) {
			r.Sequence++
			r.Replicas[0].Engine.Steps = 9
			r.GPUs = []wire.GPU{{Utilisation: 3}}
		}, false},
		{"another boot", func(r *wire.Report) { r.Sequence = 1 }, true},
		{"draining", func(r *wire.Report) { r.Draining = true }, true},
		{"leaving", func(r *wire.Report) { r.Leaving = true }, true},
		{"a device less", func(r *wire.Report) { r.Devices = nil }, true},
		{"more memory", func(r *wire.Report) { r.Devices[0].Memory++ }, true},
		{"another zone", func(r *wire.Report) { r.Labels["zone"] = "b" }, true},
		{"a replica more", func(r *wire.Report) { r.Replicas = append(r.Replicas, wire.ReplicaReport{Replica: "s"}) }, true},
		{"another epoch", func(r *wire.Report) { r.Replicas[0].Epoch++ }, true},
		{"failed", func(r *wire.Report) { r.Replicas[0].Phase = wire.PhaseFailed }, true},
		{"out of reach", func(r *wire.Report) { r.Replicas[0].Lost = []string{"m"} }, true},
		{"other ranks", func(r *wire.Report) { r.Protocol++ }, true},
	} {
		if got := news(before, report(test.change)); got != test.want {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}
