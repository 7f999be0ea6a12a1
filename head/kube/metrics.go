package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"manta/internal/telemetry"
)

// Groups and versions of the two APIs.
const (
	external = "external.metrics.k8s.io/v1beta1"
	custom   = "custom.metrics.k8s.io/v1beta2"
)

// metrics are what autoscalers may ask for. A sum over models, or of the one that a
// selector model_name=… names.
var metrics = map[string]func(telemetry.Load) float64{
	"vllm_requests_per_second":  func(l telemetry.Load) float64 { return l.PerSecond },
	"vllm_num_requests_waiting": func(l telemetry.Load) float64 { return float64(l.Waiting) },
	"vllm_num_requests_running": func(l telemetry.Load) float64 { return float64(l.Running) },
	"manta_requests":            func(l telemetry.Load) float64 { return float64(l.Waiting + l.Running) },
}

// modelLabel is the label that selectors of external metrics may name.
const modelLabel = "model_name"

type object = map[string]any

// Metrics answers the two APIs. Who may ask is checked before (see frontProxy): the
// Kubernetes API server has authorized the user, and passes the question on.
type Metrics struct{ cluster Cluster }

// NewMetrics makes the handler.
func NewMetrics(cluster Cluster) *Metrics { return &Metrics{cluster} }

// ServeHTTP implements http.Handler.
func (m *Metrics) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		refuse(w, http.StatusMethodNotAllowed, "MethodNotAllowed", "metrics are only read: "+r.Method)
		return
	}
	path := strings.Trim(r.URL.Path, "/")
	answer, err := m.answer(r, path)
	var known *unknown
	switch {
	case errors.As(err, &known):
		refuse(w, http.StatusNotFound, "NotFound", err.Error())
	case err != nil:
		refuse(w, http.StatusServiceUnavailable, "ServiceUnavailable", err.Error())
	default:
		reply(w, http.StatusOK, answer)
	}
}

// unknown says that there is nothing of this name.
type unknown struct{ what string }

func (u *unknown) Error() string { return u.what }

func (m *Metrics) answer(r *http.Request, path string) (object, error) {
	rest, isExternal := strings.CutPrefix(path, "apis/"+external)
	if !isExternal {
		var isCustom bool
		if rest, isCustom = strings.CutPrefix(path, "apis/"+custom); !isCustom {
			return nil, &unknown{"there is nothing at /" + path}
		}
	}
	if rest == "" {
		return resources(isExternal), nil
	}
	// namespaces/NS/METRIC, or namespaces/NS/RESOURCE/NAME/METRIC.
	parts := strings.Split(strings.Trim(rest, "/"), "/")
	wanted := 5
	if isExternal {
		wanted = 3
	}
	if len(parts) != wanted || parts[0] != "namespaces" {
		return nil, &unknown{"there is nothing at /" + path}
	}
	measure, ok := metrics[parts[len(parts)-1]]
	if !ok {
		return nil, &unknown{fmt.Sprintf("no metric %q: there are %s", parts[len(parts)-1], strings.Join(names(), ", "))}
	}
	selector := r.URL.Query().Get("labelSelector")
	if !isExternal {
		selector = r.URL.Query().Get("metricLabelSelector")
	}
	model, err := selected(selector)
	if err != nil {
		return nil, err
	}
	loads, err := m.cluster.Loads(r.Context())
	if err != nil {
		return nil, err
	}
	var sum telemetry.Load
	for name, load := range loads {
		if model == "" || name == model {
			sum = sum.Add(load)
		}
	}
	if isExternal {
		return externalList(parts[2], model, measure(sum)), nil
	}
	return m.customList(parts[1], parts[2], parts[3], parts[4], measure(sum))
}

// selected reads a selector, of which model_name=NAME is understood.
func selected(selector string) (model string, err error) {
	if selector == "" {
		return "", nil
	}
	label, model, ok := strings.Cut(selector, "=")
	if model = strings.TrimPrefix(model, "="); !ok || label != modelLabel || strings.ContainsAny(model, ",!=") {
		return "", &unknown{fmt.Sprintf("selector %q: only %s=NAME selects something", selector, modelLabel)}
	}
	return model, nil
}

func externalList(metric, model string, value float64) object {
	labels := object{}
	if model != "" {
		labels[modelLabel] = model
	}
	return object{"kind": "ExternalMetricValueList", "apiVersion": external, "metadata": object{}, "items": []object{{
		"metricName": metric, "metricLabels": labels, "timestamp": now(), "value": quantity(value),
	}}}
}

// customList gives the sum as a Service's, or each node's share of it as its pod's.
func (m *Metrics) customList(namespace, resource, name, metric string, value float64) (object, error) {
	pods := []string{name}
	kind := "Service"
	switch resource {
	case "services":
	case "pods":
		kind = "Pod"
		all := m.cluster.Nodes()
		if name == "*" {
			pods = all
		} else if !slices.Contains(all, name) {
			return nil, &unknown{fmt.Sprintf("pod %s is no node", name)}
		}
		value /= float64(max(1, len(all)))
	default:
		return nil, &unknown{fmt.Sprintf("%s have no metrics: services and pods do", resource)}
	}
	items := []object{}
	for _, pod := range pods {
		items = append(items, object{
			"describedObject": object{"kind": kind, "namespace": namespace, "name": pod, "apiVersion": "v1"},
			"metric":          object{"name": metric}, "timestamp": now(), "value": quantity(value),
		})
	}
	return object{"kind": "MetricValueList", "apiVersion": custom, "metadata": object{}, "items": items}, nil
}

// resources is what discovery finds.
func resources(isExternal bool) object {
	list := []object{}
	for _, name := range names() {
		if isExternal {
			list = append(list, object{"name": name, "singularName": "", "namespaced": true, "kind": "ExternalMetricValueList", "verbs": []string{"get"}})
			continue
		}
		for _, of := range []string{"pods/", "services/"} {
			list = append(list, object{"name": of + name, "singularName": "", "namespaced": true, "kind": "MetricValueList", "verbs": []string{"get"}})
		}
	}
	version := custom
	if isExternal {
		version = external
	}
	return object{"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": list}
}

func names() (all []string) {
	for name := range metrics {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}

func now() string { return time.Now().UTC().Format(time.RFC3339) }

// quantity writes a number as Kubernetes does, in thousandths.
func quantity(v float64) string { return strconv.FormatInt(int64(v*1000+0.5), 10) + "m" }

func refuse(w http.ResponseWriter, code int, reason, message string) {
	reply(w, code, object{
		"kind": "Status", "apiVersion": "v1", "metadata": object{}, "status": "Failure", "reason": reason, "message": message, "code": code,
	})
}

func reply(w http.ResponseWriter, code int, answer object) {
	data, err := json.Marshal(answer)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(data) // the asker may be gone
}
