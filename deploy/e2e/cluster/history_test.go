//go:build e2e && unix

package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
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
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		parts := map[string][]porcupine.Operation{}
		for _, op := range history {
			parts[op.Input.(asked).name] = append(parts[op.Input.(asked).name], op)
		}
		var all [][]porcupine.Operation
		for _, part := range parts {
			all = append(all, part)
		}
		return all
	},
	Init: func() any { return -1 },
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

// call asks one head, once.
func call(ctx context.Context, base string, a asked) told {
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
	data, err := json.Marshal(body)
	if err != nil {
		return told{}
	}
	ctx, stop := context.WithTimeout(ctx, 10*time.Second)
	defer stop()
	request, err := http.NewRequestWithContext(ctx, method, path, bytes.NewReader(data))
	if err != nil {
		return told{}
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return told{}
	}
	defer answer.Body.Close()
	var d struct {
		Replicas int `json:"replicas"`
	}
	switch {
	case answer.Header.Get("X-Manta-Stale") != "":
		return told{}
	case answer.StatusCode == http.StatusNotFound:
		return told{known: true}
	case answer.StatusCode/100 != 2 || json.NewDecoder(answer.Body).Decode(&d) != nil:
		return told{}
	}
	return told{known: true, exists: true, replicas: d.Replicas}
}

// What clients see of deployments, through all heads while leaders die, is what one
// machine would have shown them (Herlihy & Wing 1990).
func TestHistoriesAreLinearizable(t *testing.T) {
	b := newBench(t)
	b.whole()
	const clients, names = 6, 3
	ctx, stop := context.WithTimeout(t.Context(), *historyTime)
	defer stop()
	began := time.Now()
	histories := make([][]porcupine.Operation, clients)
	var running sync.WaitGroup
	for i := range clients {
		running.Go(func() {
			random := rand.New(rand.NewPCG(uint64(i), 1))
			for n := 1; ctx.Err() == nil; n++ {
				a := asked{
					kind: []string{"serve", "get", "get", "get", "scale", "scale", "delete"}[random.IntN(7)],
					name: fmt.Sprint("d", random.IntN(names)), replicas: 1 + (clients*n+i)%4000,
				}
				op := porcupine.Operation{ClientId: i, Input: a, Call: int64(time.Since(began))}
				out := call(context.WithoutCancel(ctx), "http://"+b.apis[random.IntN(headCount)], a)
				op.Output, op.Return = out, int64(time.Since(began))
				if !out.known {
					if a.kind == "get" {
						continue
					}
					op.Return = 1 << 62 // it may take effect at any time, or never
				}
				histories[i] = append(histories[i], op)
			}
		})
	}
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
	var history []porcupine.Operation
	kinds := map[string]int{}
	for i, h := range histories {
		for j, op := range h {
			if op.Return == 1<<62 {
				// The checker wants one call at a time of each client.
				op.ClientId = clients + i*1_000_000 + j
				kinds["unknown"]++
			}
			kinds[op.Input.(asked).kind]++
			history = append(history, op)
		}
	}
	result, info := porcupine.CheckOperationsVerbose(deploymentModel, history, patience)
	if result != porcupine.Ok {
		var lines strings.Builder
		_ = porcupine.Visualize(deploymentModel, info, &lines)
		t.Fatalf("%v: %d operations, %v", result, len(history), kinds)
	}
	if kinds["serve"] == 0 || kinds["get"] == 0 || killed == 0 {
		t.Errorf("nothing was tested: %v, %d leaders killed", kinds, killed)
	}
	t.Logf("%d operations linearizable while %d leaders were killed: %v", len(history), killed, kinds)
}
