package route

import (
	"testing"

	"manta/head/state"
)

// The least loaded ready replica with credit of its own epoch is chosen; ties by
// fewest outstanding, then id.
func TestChoose(t *testing.T) {
	view := &state.View{Replicas: map[string]state.Replica{}}
	for id, epoch := range map[string]uint64{"a": 1, "b": 1, "c": 2} {
		view.Replicas[id] = state.Replica{ID: id, Deployment: "m", Epoch: epoch, Phase: state.Ready}
	}
	view.Replicas["other"] = state.Replica{ID: "other", Deployment: "n", Epoch: 1, Phase: state.Ready}
	view.Replicas["loading"] = state.Replica{ID: "loading", Deployment: "m", Epoch: 1, Phase: state.Loading}
	for name, c := range map[string]struct {
		loads   map[string]Load
		choices int
		want    string // "": none
	}{
		"no credit":              {map[string]Load{}, 1, ""},
		"credit spent":           {map[string]Load{"a": {1, 4, 4}}, 1, ""},
		"not enough for all":     {map[string]Load{"a": {1, 3, 4}}, 2, ""},
		"more than all, alone":   {map[string]Load{"a": {1, 0, 4}}, 9, "a"},
		"credit of an old epoch": {map[string]Load{"c": {1, 0, 4}}, 1, ""},
		"not ready":              {map[string]Load{"loading": {1, 0, 4}}, 1, ""},
		"another deployment":     {map[string]Load{"other": {1, 0, 4}}, 1, ""},
		"least loaded":           {map[string]Load{"a": {1, 3, 4}, "b": {1, 2, 4}}, 1, "b"},
		"load is a part":         {map[string]Load{"a": {1, 3, 4}, "b": {1, 5, 10}}, 1, "b"},
		"a tie: fewest, then id": {map[string]Load{"c": {2, 0, 8}, "b": {1, 0, 4}}, 1, "b"},
		"a tie: fewest first":    {map[string]Load{"a": {1, 2, 8}, "b": {1, 1, 4}}, 1, "b"},
		"the full one is no tie": {map[string]Load{"a": {1, 0, 0}, "b": {1, 1, 4}}, 1, "b"},
	} {
		got, ok := Choose(view, "m", c.loads, c.choices)
		if ok != (c.want != "") || got.ID != c.want {
			t.Errorf("%s: %q, want %q", name, got.ID, c.want)
		}
	}
}

// The driver is the process of rank (0,0), wherever it stands in the list.
func TestDriver(t *testing.T) {
	replica := state.Replica{Shards: []state.Placement{{Stage: 1, Node: "x"}, {Rank: 1, Node: "y"}, {Node: "z"}}}
	if node, ok := Driver(replica); !ok || node != "z" {
		t.Errorf("%q, %v", node, ok)
	}
	if _, ok := Driver(state.Replica{}); ok {
		t.Error("a replica without shards has a driver")
	}
}
