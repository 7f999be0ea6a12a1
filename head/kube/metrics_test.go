package kube

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"manta/internal/telemetry"
)

// heads stands for what all heads know. A test changes it under its lock.
type heads struct {
	sync.Mutex
	loads  map[string]telemetry.Load
	err    error
	nodes  []string
	follow bool
}

var _ Cluster = (*heads)(nil)

func (h *heads) Loads(context.Context) (map[string]telemetry.Load, error) {
	h.Lock()
	defer h.Unlock()
	return h.loads, h.err
}

func (h *heads) Nodes() []string {
	h.Lock()
	defer h.Unlock()
	return h.nodes
}

func (h *heads) Leading() bool {
	h.Lock()
	defer h.Unlock()
	return !h.follow
}

// Autoscalers find sums over models, one model's, and each node pod's share; what
// they can't have is refused with what there is.
func TestMetrics(t *testing.T) {
	cluster := &heads{
		loads: map[string]telemetry.Load{"a": {Waiting: 3, Running: 1, PerSecond: 0.25}, "b": {Waiting: 2}},
		nodes: []string{"manta-node-0", "manta-node-1"},
	}
	const ext, obj = "/apis/external.metrics.k8s.io/v1beta1", "/apis/custom.metrics.k8s.io/v1beta2"
	for name, test := range map[string]struct {
		path   string
		status int
		has    []string
	}{
		"all models":      {ext + "/namespaces/llm/vllm_num_requests_waiting", 200, []string{`"value":"5000m"`}},
		"one model":       {ext + "/namespaces/llm/vllm_requests_per_second?labelSelector=model_name%3Da", 200, []string{`"value":"250m"`, `"model_name":"a"`}},
		"no such model":   {ext + "/namespaces/llm/manta_requests?labelSelector=model_name%3Dc", 200, []string{`"value":"0m"`}},
		"of a Service":    {obj + "/namespaces/llm/services/manta-metrics/manta_requests", 200, []string{`"value":"6000m"`, `"kind":"Service"`, `"name":"manta-metrics"`}},
		"of each pod":     {obj + "/namespaces/llm/pods/*/manta_requests?labelSelector=x%3Dy", 200, []string{`"value":"3000m"`, `"manta-node-0"`, `"manta-node-1"`}},
		"of one pod":      {obj + "/namespaces/llm/pods/manta-node-1/manta_requests", 200, []string{`"manta-node-1"`}},
		"discovery":       {ext, 200, []string{`"groupVersion":"external.metrics.k8s.io/v1beta1"`, `"name":"manta_requests"`}},
		"discovery, too":  {obj, 200, []string{`"name":"services/manta_requests"`, `"name":"pods/manta_requests"`}},
		"another metric":  {ext + "/namespaces/llm/cpu", 404, []string{"there are manta_requests, vllm_num"}},
		"another pod":     {obj + "/namespaces/llm/pods/db-0/manta_requests", 404, []string{"db-0 is no node"}},
		"another kind":    {obj + "/namespaces/llm/jobs/x/manta_requests", 404, []string{"services and pods do"}},
		"another label":   {ext + "/namespaces/llm/manta_requests?labelSelector=app%3Dx", 404, []string{"only model_name=NAME"}},
		"two labels":      {ext + "/namespaces/llm/manta_requests?labelSelector=model_name%3Da%2Cb%3Dc", 404, []string{"only model_name=NAME"}},
		"another version": {"/apis/custom.metrics.k8s.io/v1beta1/namespaces/llm/pods/*/manta_requests", 404, []string{"nothing at"}},
		"the root":        {"/", 404, []string{"nothing at"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := httptest.NewRecorder()
			NewMetrics(cluster).ServeHTTP(w, httptest.NewRequest(http.MethodGet, test.path, nil))
			if w.Code != test.status || !json.Valid(w.Body.Bytes()) {
				t.Errorf("%d: %s", w.Code, w.Body)
			}
			for _, want := range test.has {
				if !strings.Contains(w.Body.String(), want) {
					t.Errorf("no %s in %s", want, w.Body)
				}
			}
		})
	}
}

// A sum that lacks a head's part is none: an autoscaler would take nodes away.
func TestNoSumWithoutAHead(t *testing.T) {
	w := httptest.NewRecorder()
	NewMetrics(&heads{err: errors.New("head-2 does not tell")}).ServeHTTP(w,
		httptest.NewRequest(http.MethodGet, "/apis/external.metrics.k8s.io/v1beta1/namespaces/llm/manta_requests", nil))
	if w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "head-2 does not tell") {
		t.Errorf("%d: %s", w.Code, w.Body)
	}
}
