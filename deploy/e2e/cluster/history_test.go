//go:build e2e && unix

package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

var historyTime = flag.Duration("history", 12*time.Second, "how long a history of commands is")

// asked is one call of the API; name is of a deployment.
type asked struct {
	kind     string // serve, get, scale, delete
	name     string
	replicas int // serve, scale
}

// told is what became of it.
type told struct {
	known    bool // else it may have taken effect, or not
	exists   bool // false: 404
	replicas int  // get
}

// deploymentModel is what a cluster keeps of one deployment: its number of
// replicas, or -1 when there is none.
var deploymentModel = porcupine.Model{
	Partition: partitioned(func(op porcupine.Operation) string { return op.Input.(asked).name }),
	Init:      func() any { return -1 },
	Step: func(state, input, output any) (bool, any) {
		now, in, out := state.(int), input.(asked), output.(told)
		switch in.kind {
		case "serve":
			return true, in.replicas
		case "get":
			return out.exists == (now >= 0) && (!out.exists || out.replicas == now), now
		}
		if out.known && out.exists != (now >= 0) {
			return false, now
		}
		switch {
		case now < 0:
			return true, now
		case in.kind == "scale":
			return true, in.replicas
		}
		return true, -1 // delete
	},
	DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v -> %+v", input, output) },
}

func drawDeployment(random *rand.Rand, n int) (a asked, kind string, looks bool) {
	a = asked{
		kind: []string{"serve", "get", "get", "get", "scale", "scale", "delete"}[random.IntN(7)],
		name: fmt.Sprint("d", random.IntN(3)), replicas: 1 + n%4000,
	}
	return a, a.kind, a.kind == "get"
}

// call asks one head, once.
func call(ctx context.Context, base string, a asked) (out told, known bool) {
	method, path, body := http.MethodGet, base+"/api/cluster/deployments/"+a.name, map[string]any{}
	switch a.kind {
	case "serve":
		// No node has the label: nothing is ever placed.
		method, path = http.MethodPost, base+"/api/cluster/deployments"
		body = map[string]any{"name": a.name, "model": "smollm2", "replicas": a.replicas, "node_selector": map[string]string{"never": "placed"}}
	case "scale":
		method, body = http.MethodPatch, map[string]any{"replicas": a.replicas}
	case "delete":
		method = http.MethodDelete
	}
	var d struct {
		Replicas int `json:"replicas"`
	}
	switch status := once(ctx, method, path, body, &d); {
	case status == http.StatusNotFound:
		return told{known: true}, true
	case status/100 != 2:
		return told{}, false
	}
	return told{known: true, exists: true, replicas: d.Replicas}, true
}

// once does a request and gives the status of its answer, 0 where nothing is known: it
// failed, or the head said that what it knows may be old.
func once(ctx context.Context, method, url string, body, into any) int {
	data, err := json.Marshal(body)
	if err != nil {
		return 0
	}
	ctx, stop := context.WithTimeout(ctx, 10*time.Second)
	defer stop()
	request, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(data))
	if err != nil {
		return 0
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0
	}
	defer answer.Body.Close()
	if answer.Header.Get("X-Manta-Stale") != "" {
		return 0
	}
	if answer.StatusCode/100 == 2 && json.NewDecoder(answer.Body).Decode(into) != nil {
		return 0
	}
	return answer.StatusCode
}

// partitioned cuts a history by what its calls name: each name is a register of its own.
func partitioned(name func(op porcupine.Operation) string) func([]porcupine.Operation) [][]porcupine.Operation {
	return func(history []porcupine.Operation) [][]porcupine.Operation {
		parts := map[string][]porcupine.Operation{}
		for _, op := range history {
			parts[name(op)] = append(parts[name(op)], op)
		}
		return slices.Collect(maps.Values(parts))
	}
}

// A history is what clients did at all heads, each one call after the other.
type history struct {
	ctx    context.Context // ends when enough was done
	needed []string        // kinds of calls that must be among them
	began  time.Time
	heads  []string

	mu    sync.Mutex // guards what follows
	calls []porcupine.Operation
	kinds map[string]int
}

// of lets clients draw calls and make them until the history is long enough. A call
// that only looks and has no known outcome says nothing.
func of[In any, Out any](h *history, clients int, draw func(random *rand.Rand, n int) (in In, kind string, looks bool), call func(ctx context.Context, base string, in In) (out Out, known bool)) {
	var running sync.WaitGroup
	for i := range clients {
		running.Go(func() {
			random := rand.New(rand.NewPCG(uint64(i), 1))
			for n := 1; h.goesOn(); n++ {
				in, kind, looks := draw(random, clients*n+i)
				op := porcupine.Operation{ClientId: i, Input: in, Call: int64(time.Since(h.began))}
				out, known := call(context.WithoutCancel(h.ctx), "http://"+h.heads[random.IntN(len(h.heads))], in)
				op.Output, op.Return = out, int64(time.Since(h.began))
				if !known {
					if looks {
						continue
					}
					// It may take effect at any time, or never; the checker wants one call at
					// a time of each client.
					op.Return, op.ClientId, kind = 1<<62, clients+i*1_000_000+n, kind+", unknown"
				}
				h.mu.Lock()
				h.calls, h.kinds[kind] = append(h.calls, op), h.kinds[kind]+1
				h.mu.Unlock()
			}
		})
	}
	running.Wait()
}

// goesOn tells whether the history is not yet long enough, or lacks a kind of call: on
// a machine that does little else it comes later.
func (h *history) goesOn() bool {
	if h.ctx.Err() == nil {
		return true
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return time.Since(h.began) < patience && slices.ContainsFunc(h.needed, func(kind string) bool { return h.kinds[kind] == 0 })
}

// check fails the test unless one machine could have answered so.
func (h *history) check(t *testing.T, model porcupine.Model) {
	t.Helper()
	if result, _ := porcupine.CheckOperationsVerbose(model, h.calls, patience); result != porcupine.Ok {
		t.Fatalf("%v: %d operations, %v", result, len(h.calls), h.kinds)
	}
	for _, kind := range h.needed {
		if h.kinds[kind] == 0 {
			t.Errorf("no %s was tested: %v", kind, h.kinds)
		}
	}
	t.Logf("%d operations are linearizable: %v", len(h.calls), h.kinds)
}

// What clients see of deployments and of jobs, through all heads while leaders die, is
// what one machine would have shown them (Herlihy & Wing 1990).
func TestHistoriesAreLinearizable(t *testing.T) {
	b := newBench(t)
	b.whole()
	ctx, stop := context.WithTimeout(t.Context(), *historyTime)
	defer stop()
	fresh := func(needed ...string) *history {
		return &history{ctx: ctx, needed: needed, began: time.Now(), heads: b.API, kinds: map[string]int{}}
	}
	deployments, work := fresh("serve", "get", "scale", "delete"), fresh("submit", "look", "stop", "delete")
	var running sync.WaitGroup
	running.Go(func() { of(deployments, 5, drawDeployment, call) })
	running.Go(func() { of(work, 4, drawJob, callJob) })
	killed := 0
	for ctx.Err() == nil {
		leader, _ := b.leader()
		since := time.Now()
		mend := b.kill(leader)
		b.newLeader(leader, since)
		mend()
		b.whole()
		killed++
	}
	running.Wait()
	t.Logf("%d leaders were killed", killed)
	deployments.check(t, deploymentModel)
	work.check(t, jobModel.ToModel())
}
