//go:build e2e && unix

package cluster

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"

	"github.com/anishathalye/porcupine"
)

// askedJob is one call of the Jobs API.
type askedJob struct {
	kind string // submit, look, stop, delete
	id   string
}

// toldJob is what became of it.
type toldJob struct {
	status int  // of HTTP; 0: it may have taken effect, or not
	over   bool // look: the job has ended; stop: it had before
}

// Where a job of one id stands. It never ends by itself: nothing is placed.
const (
	noJob       = iota
	openJob     // accepted, nobody asked for its end
	askedJobEnd // its end was asked for, and has come or not
	overJob
)

// jobModel is what a cluster keeps of one job.
var jobModel = porcupine.NondeterministicModel{
	Partition: partitioned(func(op porcupine.Operation) string { return op.Input.(askedJob).id }),
	Init:      func() []any { return []any{noJob} },
	Step: func(state, input, output any) []any {
		now, in, out := state.(int), input.(askedJob), output.(toldJob)
		// to gives the next states, if now is one of those that the answer can come from.
		to := func(next int, from ...int) []any {
			for _, f := range from {
				if f == now {
					return []any{next}
				}
			}
			return nil
		}
		switch {
		case out.status == http.StatusNotFound:
			return to(noJob, noJob)
		case out.status == http.StatusConflict && in.kind == "submit":
			return to(now, openJob, askedJobEnd, overJob)
		case out.status == http.StatusConflict: // a delete of what is not over
			return to(now, openJob, askedJobEnd)
		case in.kind == "look" && out.over, in.kind == "stop" && out.over:
			return to(overJob, askedJobEnd, overJob)
		case in.kind == "look":
			return to(now, openJob, askedJobEnd)
		}
		var changed []any
		switch in.kind {
		case "submit":
			changed = to(openJob, noJob)
		case "stop":
			changed = to(askedJobEnd, openJob, askedJobEnd)
		case "delete":
			changed = to(noJob, askedJobEnd, overJob)
		}
		if out.status == 0 {
			return append(changed, now)
		}
		return changed
	},
	DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v -> %+v", input, output) },
}

func drawJob(random *rand.Rand, _ int) (a askedJob, kind string, looks bool) {
	a = askedJob{kind: []string{"submit", "submit", "look", "look", "stop", "delete", "delete"}[random.IntN(7)], id: fmt.Sprint("j", random.IntN(4))}
	return a, a.kind, a.kind == "look"
}

func callJob(ctx context.Context, base string, a askedJob) (out toldJob, known bool) {
	method, url, body := http.MethodGet, base+"/api/jobs/"+a.id, map[string]any{}
	switch a.kind {
	case "submit":
		method, url = http.MethodPost, base+"/api/jobs/"
		body = map[string]any{"submission_id": a.id, "entrypoint": "manta serve smollm2 --served-model-name of-" + a.id + " --node-selector never=placed"}
	case "stop":
		method, url = http.MethodPost, url+"/stop"
	case "delete":
		method = http.MethodDelete
	}
	var d struct {
		Status  string `json:"status"`
		Stopped bool   `json:"stopped"`
	}
	status := once(ctx, method, url, body, &d)
	switch status {
	case http.StatusOK, http.StatusNotFound, http.StatusConflict:
	default:
		return toldJob{}, false
	}
	out = toldJob{status: status}
	if status == http.StatusOK {
		switch a.kind {
		case "look":
			out.over = d.Status != "PENDING" && d.Status != "RUNNING"
		case "stop":
			out.over = !d.Stopped
		}
	}
	return out, true
}
