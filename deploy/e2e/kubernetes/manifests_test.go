//go:build kubernetes && linux

package kubernetes

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"manta/deploy/e2e/kubernetes/lab"
)

// operator is where the Prometheus operator's own definitions are from.
const operator = "github.com/prometheus-operator/prometheus-operator@v0.85.0"

// defineMonitors gives the cluster the kinds that the monitoring values make, if the
// module that holds their definitions can be had here.
func defineMonitors(t *testing.T) bool {
	t.Helper()
	command := exec.CommandContext(t.Context(), "go", "mod", "download", "-json", operator)
	command.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GOWORK=off")
	out, err := command.Output()
	var module struct{ Dir, Error string }
	if json.Unmarshal(out, &module) != nil || err != nil || module.Dir == "" {
		t.Logf("SKIPPED, what the Prometheus operator reads: %s is not to be had: %v %s", operator, err, module.Error)
		return false
	}
	args := []string{"create"}
	for _, kind := range []string{"servicemonitors", "podmonitors", "prometheusrules"} {
		args = append(args, "-f", filepath.Join(module.Dir, "example/prometheus-operator-crd/monitoring.coreos.com_"+kind+".yaml"))
	}
	kubectl(t, args...)
	kubectl(t, "wait", "--for=condition=Established", "--timeout=150s", "crd", "--all")
	return true
}

// dryRun has the API server check objects strictly, and keep none.
func dryRun(ctx context.Context, yaml string) (string, error) {
	command := cluster.Command(ctx, "kubectl", "apply", "--dry-run=server", "--validate=strict", "-f", "-")
	command.Stdin = strings.NewReader(yaml)
	out, err := command.CombinedOutput()
	return string(out), err
}

// What the chart makes from each set of values, and every example as it is printed,
// is taken by a real API server's strict check.
func TestStrictDryRun(t *testing.T) {
	monitors := defineMonitors(t)
	kubectl(t, "create", "namespace", "dry")
	kubectl(t, "create", "namespace", "vllm")
	t.Cleanup(func() {
		if _, err := cluster.Kubectl(context.Background(), "delete", "namespace", "dry", "vllm"); err != nil {
			t.Error(err)
		}
	})
	sets := map[string][]string{
		"defaults":       nil,
		"metrics, scale": {"--set", "metricsAPI.enabled=true,scaleToZero.enabled=true,autoscaling.enabled=true,autoscaling.targetRequests=4"},
		"monitoring":     {"--set", "serviceMonitor.enabled=true,prometheusRule.enabled=true,dashboards.enabled=true"},
		"pod monitor":    {"--set", "podMonitor.enabled=true"},
		"traces":         {"--set", "tracing.endpoint=https://collector.observability/v1/traces"},
		"shared cache":   {"--set", "node.modelCache.type=shared,node.modelCache.subPath=a/b,head.persistence.enabled=false"},
		"llama2-7b":      {"-f", "../../examples/llama2-7b/values.yaml"},
		"llama2-70b-tp4": {"-f", "../../examples/llama2-70b-tp4/values.yaml"},
		"hpa":            {"-f", "../../examples/llama2-7b/values.yaml", "-f", "../../examples/hpa/values.yaml"},
		"test":           {"-f", "testdata/values.yaml", "-f", "testdata/autoscaler.yaml", "--set", "api.service.nodePort=30081,autoscaling.targetRequests=4"}, // the installed one has 30080
	}
	for name, values := range sets {
		if !monitors && slices.Contains([]string{"monitoring", "pod monitor", "hpa"}, name) {
			continue
		}
		t.Run(name, func(t *testing.T) {
			command := cluster.Command(t.Context(), "helm", append([]string{"template", "manta", "../../chart", "--namespace", "dry", "--kube-version", lab.Version}, values...)...)
			yaml, err := command.Output()
			if err != nil {
				t.Fatal(err)
			}
			if out, err := dryRun(t.Context(), string(yaml)); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	for _, name := range []string{"llama2-7b", "llama2-70b-tp4", "hpa"} {
		t.Run(name+" as plain manifests", func(t *testing.T) {
			yaml, err := os.ReadFile(filepath.Join("../../examples", name, "manifests.yaml"))
			if err != nil {
				t.Fatal(err)
			}
			if out, err := dryRun(t.Context(), string(yaml)); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	t.Run("a misspelled field", func(t *testing.T) {
		yaml := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x, namespace: dry}\ndate: {}\n"
		if out, err := dryRun(t.Context(), yaml); err == nil || !strings.Contains(out, `unknown field "date"`) {
			t.Errorf("%v: %s", err, out)
		}
	})
}

// Values that can't work are refused before anything reaches the cluster.
func TestValuesRefused(t *testing.T) {
	for values, want := range map[string]string{
		"head.replicas=2":                                       "value must be one of 1, 3, 5, 7",
		"model.name=smollm2":                                    "Short names and wheel: references need pip",
		"tracing.endpoint=grpc://collector:4317":                "A URL in full that takes OTLP over HTTP",
		"autoscaling.enabled=true,autoscaling.targetRequests=4": "set metricsAPI.enabled=true",
		"head.maxUnavailable=2":                                 "give at most 1",
	} {
		_, err := helm(t, "install", "refused", "../../chart", "--namespace", "default", "--set", values)
		if err == nil || !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%s: %v", values, err)
		}
	}
	if out := kubectl(t, "-n", "default", "get", "all,secrets", "-l", "app.kubernetes.io/instance=refused", "-o", "name"); out != "" {
		t.Errorf("there is %s", out)
	}
}
