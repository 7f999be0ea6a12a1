package cli

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
)

// answering is a server that gives fixed answers by method and path.
func answering(t *testing.T, answers map[string]string) string {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer, ok := answers[r.Method+" "+r.URL.EscapedPath()]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			answer = fmt.Sprintf(`{"error":{"message":"nothing at %s"}}`, r.URL.Path)
		}
		fmt.Fprint(w, answer)
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// The commands of the cluster say in a person's words what the API tells, and
// refuse what they can't do.
func TestClusterCommands(t *testing.T) {
	const deployment = `{"name":"org/x","model":"hf:org/x","replicas":2,"ready":1,"replica_states":[
		{"id":"org/x/0","phase":"ready","epoch":7,"nodes":["n1"],"shards":["0.0 on n1 cpu:0, 5 of 9 heads","0.1 on n1 cpu:1, 4 of 9 heads"]},
		{"id":"org/x/1","phase":"loading","bytes_done":50,"bytes_total":200,"epoch":9,"nodes":["n2"],"outdated":true}]}`
	url := answering(t, map[string]string{
		"GET /api/cluster/nodes":       `{"nodes":[{"id":"n-1","status":"Ready","devices":[{"name":"EPYC","memory":2147483648}],"labels":{"zone":"a"},"replicas":["x/0"]},{"id":"m-1","status":"NotReady"}]}`,
		"GET /api/cluster/deployments": `{"deployments":[` + deployment + `]}`,
		"GET /api/cluster/explain/org%2Fx": `{"deployment":` + deployment + `,"pending":[{"deployment":"org/x","missing":1,"reasons":[{"node":"n2","lacks":"it is draining"}]}],
			"events":[{"type":"Warning","reason":"Failed","object":"replica/org/x/1","message":"why"}]}`,
		"GET /api/cluster":                        `{"leader":"h-1","heads":[{"id":"h-1","name":"h","api":"a:1"}],"nodes":[],"deployments":[` + deployment + `],"pending":[{"deployment":"org/x","missing":1,"reasons":[{"lacks":"no node has joined"}]}]}`,
		"GET /api/cluster/events":                 `{"events":[{"type":"Normal","reason":"Placed","object":"replica/x/0"}]}`,
		"PATCH /api/cluster/deployments/org%2Fx":  deployment,
		"DELETE /api/cluster/deployments/org%2Fx": `{}`,
		"POST /api/cluster/deployments":           deployment,
		"POST /api/cluster/nodes/n/drain":         `{"id":"n-1","replicas":[]}`,
	})
	for _, c := range []struct {
		command string
		want    []string // in the output, or in the error where it begins with "!"
	}{
		{"get nodes", []string{"NAME", "n-1", "Ready", "2.0 GiB", "m-1", "NotReady"}},
		{"get node n", []string{"n-1"}},
		{"get nodes -o wide", []string{"LABELS", "zone=a", "1x EPYC"}},
		{"get nodes other", []string{"!no \"other\""}},
		{"get nodes -o json", []string{`"id": "n-1"`}},
		{"get nodes -o yaml", []string{"id: n-1", "status: NotReady"}},
		{"get nodes m -o json", []string{"[\n    {\n        \"id\": \"m-1\""}},
		{"get nodes other -o yaml", []string{"!no \"other\""}},
		{"get nodes -o xml", []string{"!json, yaml or wide"}},
		{"get things", []string{"!get what?"}},
		{"get deployments", []string{"org/x", "1/2"}},
		{"get replicas", []string{"org/x/1", "loading 25%", "(outdated)"}},
		{"get replicas -o wide", []string{"cpu:0, 5 of 9 heads; 0.1 on n1"}},
		{"get heads", []string{"h-1", "leader"}},
		{"get events", []string{"Placed", "replica/x/0"}},
		{"explain org/x", []string{"1 of 2 replicas ready", "cpu:0, 5 of 9 heads; 0.1 on n1", "no place for 1", "n2: it is draining", "Failed"}},
		{"status", []string{"h-1", "leader", "org/x", "no node has joined"}},
		{"scale org/x --replicas auto", []string{"scaled to auto"}},
		{"scale org/x --replicas few", []string{"!must be a number or auto"}},
		{"delete org/x", []string{"deleted"}},
		{"delete cat x", []string{"!delete what?"}},
		{"serve hf:org/x --replicas 2 --wait=false", []string{"deployment org/x"}},
		{"serve hf:org/x --replicas some", []string{"!--replicas"}},
		{"drain n", nil},
		{"drain", []string{"!or --self"}},
		{"undrain n --self", []string{"!or --self"}},
	} {
		args := strings.Fields(c.command)
		out, err := run(t, "", append(args, "--url", url)...)
		for _, want := range c.want {
			text, failed := strings.CutPrefix(want, "!")
			switch {
			case failed && (err == nil || !strings.Contains(err.Error(), text)):
				t.Errorf("%s: error %v, want %q", c.command, err, text)
			case !failed && (err != nil || !strings.Contains(out, text)):
				t.Errorf("%s: %q is not in\n%s(%v)", c.command, text, out, err)
			}
		}
		if len(c.want) == 0 && err != nil {
			t.Errorf("%s: %v", c.command, err)
		}
	}
}

// What is shown again is what is new: a row whose age or columns' widths alone have
// changed is not, and data is shown whole.
func TestWatchShowsNews(t *testing.T) {
	looks := []listing{
		{head: "AGE\tNAME", rows: []row{{name: "a", line: "1s\ta", news: "a", data: 1}}},
		{head: "AGE\tNAME", rows: []row{{name: "a", line: "2s\ta", news: "a", data: 1}, {name: "long one", line: "1s\tlong one", news: "b", data: 2}}},
		{head: "AGE\tNAME", rows: []row{{name: "a", line: "200s\ta", news: "a", data: 1}, {name: "long one", line: "3s\tlong one", news: "b", data: 2}}},
	}
	for output, want := range map[string]string{
		"":     "AGE   NAME\n1s    a\n1s    long one\n",
		"json": "[\n    1\n]\n[\n    1,\n    2\n]\n",
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, stop := context.WithCancel(t.Context())
			var out strings.Builder
			look := 0
			err := watched(ctx, &out, func() ([]part, error) {
				l := looks[min(look, len(looks)-1)]
				if look++; look == len(looks) {
					stop()
				}
				return l.print(output, "")
			})
			if err != nil || out.String() != want {
				t.Errorf("-o %q: %q, %v, want %q", output, out.String(), err, want)
			}
		})
	}
}
