package api

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"manta/head/dispatch"
	"manta/head/state"
	"manta/internal/trust"
	"manta/node/wire"
)

// logsOf is what members logged, by id.
type logsOf map[string][]string

func (l logsOf) Logs(_ context.Context, role trust.Role, id string, lines int, containing string) ([]string, error) {
	all, ok := l[string(role)+"/"+id]
	if !ok {
		return nil, errors.New("out of reach")
	}
	return slices.DeleteFunc(slices.Clone(all[max(0, len(all)-lines):]), func(line string) bool { return !strings.Contains(line, containing) }), nil
}

// Logs are of a node, a head, or of a replica's nodes where they name it.
func TestLogsAPI(t *testing.T) {
	control := &fakeControl{}
	b := newBench(t, func(c *Config, _ *dispatch.Config) {
		c.Cluster = control
		c.Logs = logsOf{string(trust.Node) + "/n-1": {"one", "replica=x/0 two"}, string(trust.Head) + "/h-1": {"three"}}
	})
	b.cluster.Update(func(v *state.View) {
		v.Nodes = map[string]state.Node{"n-1": {ID: "n-1"}, "gone-1": {ID: "gone-1"}}
		v.Heads = map[string]state.Head{"h-1": {ID: "h-1", Name: "h"}}
		v.Replicas["x/0"] = state.Replica{ID: "x/0", Shards: []state.Placement{{Node: "n-1"}}}
	})
	for path, want := range map[string]string{
		"n": "n-1: one\nn-1: replica=x/0 two\n", "n?tail=1": "n-1: replica=x/0 two\n", "h": "h-1: three\n", "x%2F0": "n-1: replica=x/0 two\n",
		"gone": "gone-1: no answer: out of reach\n",
	} {
		if status, _, text := b.do("GET", "/api/cluster/logs/"+path, ""); status != 200 || text != want {
			t.Errorf("%s: %d %q, want %q", path, status, text, want)
		}
	}
	for path, status := range map[string]int{"nobody": 404, "n?tail=0": 400, "n?tail=x": 400, "n?tail=1000000": 400} {
		if got, _, text := b.do("GET", "/api/cluster/logs/"+path, ""); got != status {
			t.Errorf("%s: %d %s, want %d", path, got, text, status)
		}
	}
}

// heardOf is what nodes told.
type heardOf map[string]wire.Report

func (h heardOf) Report(node string) (wire.Report, bool) { r, ok := h[node]; return r, ok }
func (h heardOf) Lives(string) bool                      { return true }

// Nodes are listed with what they tell, drained, undrained and forgotten, by id or
// by stable name; a deployment is scaled and explained; what happened is told.
func TestNodesAndScaleAPI(t *testing.T) {
	control := &fakeControl{waiting: []Waiting{{Deployment: "m", Missing: 2, Reasons: []Reason{{"n1", "it is draining"}}}}}
	b := newBench(t, func(c *Config, _ *dispatch.Config) {
		c.Cluster, c.Heard = control, heardOf{"alive-1": {}, "going-2": {Draining: true}}
	})
	control.view = b.cluster.Update
	for _, id := range []string{"alive-1", "going-2", "dead-3", "twin-1", "twin-2"} {
		if err := control.Change(t.Context(), state.Change{PutNode: &state.Node{ID: id}}); err != nil {
			t.Fatal(err)
		}
	}
	_, _, text := b.do("GET", "/api/cluster/nodes", "")
	for _, want := range []string{`"id":"alive-1","status":"Ready"`, `"id":"going-2","status":"Stopping"`, `"id":"dead-3","status":"NotReady"`} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is not in %s", want, text)
		}
	}
	if n := post[Node](b, "/api/cluster/nodes/alive/drain", "", 200); n.ID != "alive-1" || !n.Drained || n.Status != "Ready,Drained" {
		t.Errorf("drained: %+v", n)
	}
	if n := post[Node](b, "/api/cluster/nodes/alive-1/undrain", "", 200); n.Drained {
		t.Errorf("undrained: %+v", n)
	}
	for _, c := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"POST", "/api/cluster/nodes/nobody/drain", "", 404, "no node"},
		{"POST", "/api/cluster/nodes/twin/drain", "", 404, "several"},
		{"POST", "/api/cluster/nodes/alive/drain?force=perhaps", "", 400, "force must be true or false"},
		{"DELETE", "/api/cluster/nodes/dead-3", "", 200, "dead-3"},
		{"GET", "/api/cluster/nodes/dead-3", "", 404, "no node"},
		{"PATCH", "/api/cluster/deployments/m", `{"replicas":"auto"}`, 200, `"auto":true`},
		{"PATCH", "/api/cluster/deployments/m", `{"replicas":0}`, 200, `"replicas":0`},
		{"PATCH", "/api/cluster/deployments/m", `{"replicas":-1}`, 400, `"param":"replicas"`},
		{"PATCH", "/api/cluster/deployments/m", `{"replicas":"many"}`, 400, `"param":"replicas"`},
		{"PATCH", "/api/cluster/deployments/m", `{}`, 400, `"param":"replicas"`},
		{"PATCH", "/api/cluster/deployments/other", `{"replicas":1}`, 404, "no deployment"},
		{"GET", "/api/cluster/explain/m", "", 200, "it is draining"},
		{"GET", "/api/cluster/explain/other", "", 404, "no deployment"},
		{"GET", "/api/cluster/events?name=alive", "", 200, `"reason":"Undrained","object":"node/alive-1"`},
		{"GET", "/api/cluster", "", 200, `"missing":2`},
	} {
		if status, _, text := b.do(c.method, c.path, c.body); status != c.status || !strings.Contains(text, c.want) {
			t.Errorf("%s %s %s: %d %s, want %d with %s", c.method, c.path, c.body, status, text, c.status, c.want)
		}
	}
}
