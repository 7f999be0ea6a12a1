package route

import (
	"fmt"
	"testing"

	"manta/head/state"
	"manta/runtime/kv"
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
		"credit spent":           {map[string]Load{"a": {Epoch: 1, Outstanding: 4, Credit: 4}}, 1, ""},
		"not enough for all":     {map[string]Load{"a": {Epoch: 1, Outstanding: 3, Credit: 4}}, 2, ""},
		"more than all, alone":   {map[string]Load{"a": {Epoch: 1, Outstanding: 0, Credit: 4}}, 9, "a"},
		"credit of an old epoch": {map[string]Load{"c": {Epoch: 1, Outstanding: 0, Credit: 4}}, 1, ""},
		"not ready":              {map[string]Load{"loading": {Epoch: 1, Outstanding: 0, Credit: 4}}, 1, ""},
		"another deployment":     {map[string]Load{"other": {Epoch: 1, Outstanding: 0, Credit: 4}}, 1, ""},
		"least loaded":           {map[string]Load{"a": {Epoch: 1, Outstanding: 3, Credit: 4}, "b": {Epoch: 1, Outstanding: 2, Credit: 4}}, 1, "b"},
		"a backlog of prompts":   {map[string]Load{"a": {Epoch: 1, Outstanding: 1, Credit: 4, Pending: 900}, "b": {Epoch: 1, Outstanding: 3, Credit: 4}}, 1, "b"},
		"a tie: fewest, then id": {map[string]Load{"c": {Epoch: 2, Outstanding: 0, Credit: 8}, "b": {Epoch: 1, Outstanding: 0, Credit: 4}}, 1, "b"},
		"a tie: fewest first":    {map[string]Load{"a": {Epoch: 1, Outstanding: 2, Credit: 8}, "b": {Epoch: 1, Outstanding: 1, Credit: 4}}, 1, "b"},
		"the full one is no tie": {map[string]Load{"a": {Epoch: 1, Outstanding: 0, Credit: 0}, "b": {Epoch: 1, Outstanding: 1, Credit: 4}}, 1, "b"},
	} {
		got, ok := Choose(view, c.loads, Request{Deployment: "m", Choices: c.choices})
		if ok != (c.want != "") || got.ID != c.want {
			t.Errorf("%s: %q, want %q", name, got.ID, c.want)
		}
	}
}

// A request goes where its prefix is cached, unless that replica is busier by more
// than the hit saves: in prompts to compute, in sequences, or over the last time.
func TestPrefix(t *testing.T) {
	view := &state.View{Replicas: map[string]state.Replica{}}
	for _, id := range []string{"a", "b", "c", "d"} {
		view.Replicas[id] = state.Replica{ID: id, Deployment: "m", Epoch: 1, Phase: state.Ready}
	}
	with := func(change func(loads map[string]Load)) map[string]Load {
		loads := map[string]Load{}
		for id := range view.Replicas {
			loads[id] = Load{Epoch: 1, Credit: 64}
		}
		change(loads)
		return loads
	}
	hits := map[string]int{"c": 512, "d": 256}
	for name, c := range map[string]struct {
		loads map[string]Load
		want  string
	}{
		"idle":                     {with(func(map[string]Load) {}), "c"},
		"a little busier":          {with(func(l map[string]Load) { l["c"] = Load{Epoch: 1, Credit: 64, Outstanding: 8, Pending: 100} }), "c"},
		"the shorter hit is freer": {with(func(l map[string]Load) { l["c"] = Load{Epoch: 1, Credit: 64, Pending: 300} }), "d"},
		"both are too busy": {with(func(l map[string]Load) {
			l["c"], l["d"] = Load{Epoch: 1, Credit: 64, Pending: 600}, Load{Epoch: 1, Credit: 64, Outstanding: 40}
		}), "a"},
		"far more than its part":    {with(func(l map[string]Load) { l["c"] = Load{Epoch: 1, Credit: 64, Work: 9000} }), "d"},
		"a little more than it":     {with(func(l map[string]Load) { l["c"] = Load{Epoch: 1, Credit: 64, Work: 200} }), "c"},
		"no credit where it is hit": {with(func(l map[string]Load) { l["c"] = Load{Epoch: 1, Credit: 4, Outstanding: 4} }), "d"},
	} {
		if got, ok := Choose(view, c.loads, Request{Deployment: "m", Choices: 1, Prompt: 600, Hits: hits}); !ok || got.ID != c.want {
			t.Errorf("%s: %q, want %q", name, got.ID, c.want)
		}
	}
}

// A session stays at one replica, whatever else is equal; sessions spread; and few
// move when a replica goes.
func TestSessions(t *testing.T) {
	view := &state.View{Replicas: map[string]state.Replica{}}
	loads, count := map[string]Load{}, map[string]int{}
	for _, id := range []string{"a", "b", "c", "d"} {
		view.Replicas[id] = state.Replica{ID: id, Deployment: "m", Epoch: 1, Phase: state.Ready}
		loads[id] = Load{Epoch: 1, Credit: 8}
	}
	const sessions = 4000
	var first []string
	for i := range sessions {
		got, _ := Choose(view, loads, Request{Deployment: "m", Choices: 1, Prompt: 100, Session: fmt.Sprint("user", i)})
		first = append(first, got.ID)
		count[got.ID]++
	}
	for id, n := range count {
		if n < sessions/5 || n > sessions*3/10 {
			t.Errorf("%s has %d of %d sessions", id, n, sessions)
		}
	}
	delete(view.Replicas, "d")
	for i := range sessions {
		got, _ := Choose(view, loads, Request{Deployment: "m", Choices: 1, Prompt: 100, Session: fmt.Sprint("user", i)})
		if first[i] != "d" && got.ID != first[i] {
			t.Fatalf("session %d moved from %s to %s", i, first[i], got.ID)
		}
	}
}

// A flow that has its share leaves to others their part of what runs at once: of a
// credit of 16, 13 run.
func TestSpare(t *testing.T) {
	view := &state.View{Replicas: map[string]state.Replica{"a": {ID: "a", Deployment: "m", Epoch: 1, Phase: state.Ready}}}
	for _, c := range []struct {
		outstanding int
		spare       float64
		want        bool
	}{{15, 0, true}, {16, 0, false}, {0, 0.1, true}, {10, 0.1, true}, {11, 0.1, false}, {5, 0.5, true}, {6, 0.5, false}, {0, 1, true}, {1, 1, false}} {
		loads := map[string]Load{"a": {Epoch: 1, Credit: 16, Outstanding: c.outstanding}}
		if _, ok := Choose(view, loads, Request{Deployment: "m", Choices: 1, Spare: c.spare}); ok != c.want {
			t.Errorf("with %d of 16 outstanding, leaving %v: %v", c.outstanding, c.spare, ok)
		}
	}
}

// What was sent is a hit up to the block before the prompt's last token, until
// newer prompts have taken its place.
func TestCached(t *testing.T) {
	prompt := func(first int32, n int) []int32 {
		tokens := make([]int32, n)
		for i := range tokens {
			tokens[i] = first + int32(i)
		}
		return tokens
	}
	c := NewCached(1, 8)
	a, b := kv.Extend(nil, kv.Hash{}, prompt(0, 64)), kv.Extend(nil, kv.Hash{}, prompt(1000, 80))
	c.Sent(a)
	for n, want := range map[int]int{64: 48, 65: 64, 40: 32, 15: 0} {
		if got := c.Hit(kv.Extend(nil, kv.Hash{}, prompt(0, n)), n); got != want {
			t.Errorf("%d tokens: hit of %d, want %d", n, got, want)
		}
	}
	c.Sent(b) // five blocks: the last one of a goes
	if got := c.Hit(a, 65); got != 48 {
		t.Errorf("after another prompt: hit of %d, want 48", got)
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
