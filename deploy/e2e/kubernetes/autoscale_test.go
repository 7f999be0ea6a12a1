//go:build kubernetes && linux

package kubernetes

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"manta/head/client"
)

// A HorizontalPodAutoscaler goes by what the heads themselves serve, without an
// adapter, and by the processor: up under load, down when it ends; no stream fails.
func TestAutoscaler(t *testing.T) {
	t.Cleanup(func() { report(t, namespace) })
	c := installed(t)
	if err := cluster.MetricsServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	by := func(values ...string) { upgrade(t, append([]string{"-f", "testdata/autoscaler.yaml"}, values...)...) }
	by("--set", "autoscaling.targetRequests=4")
	kubectl(t, "wait", "--for=condition=Available", "--timeout=150s", "apiservice/v1beta1.metrics.k8s.io",
		"apiservice/v1beta1.external.metrics.k8s.io", "apiservice/v1beta2.custom.metrics.k8s.io")
	for _, path := range []string{
		"/apis/external.metrics.k8s.io/v1beta1/namespaces/llm/vllm_requests_per_second?labelSelector=model_name%3Dsmollm2",
		"/apis/custom.metrics.k8s.io/v1beta2/namespaces/llm/services/manta-metrics/vllm_num_requests_waiting",
		"/apis/custom.metrics.k8s.io/v1beta2/namespaces/llm/pods/*/manta_requests",
	} {
		if out := kubectl(t, "get", "--raw", path); !strings.Contains(out, `"value":"`) {
			t.Errorf("%s: %s", path, out)
		}
	}
	for _, test := range []struct{ name, values string }{
		{"requests in hand", "autoscaling.targetRequests=4"},
		{"processor", "autoscaling.targetCPUUtilizationPercentage=70"},
		{"vllm_requests_per_second", "autoscaling.targetRequestsPerSecond=0.2"},
	} {
		t.Run(test.name, func(t *testing.T) {
			by("--set", test.values)
			scaled(t, 1)
			replicasReady(t, c, 1)
			start := time.Now() // the streams that run alone first are load too
			l := startLoad(t, 12)
			defer l.end()
			scaled(t, 3)
			up := time.Since(start)
			replicasReady(t, c, 3)
			l.end()
			down := scaled(t, 1)
			for _, err := range l.failures {
				t.Error(err)
			}
			measured.note("an autoscaler by %s: 1 to 3 nodes after %.1f s of load, back to 1 after %.1f s without; %d streams, %d failed, longest pause %.2f s",
				test.name, up.Seconds(), down.Seconds(), l.ended, len(l.failures), l.longest.Seconds())
		})
	}
	t.Run("from zero", func(t *testing.T) { // the chart's autoscaler goes, the heads' metrics stay
		upgrade(t, "--set", "metricsAPI.enabled=true")
		if err := cluster.Apply(t.Context(), fromZero); err != nil {
			t.Fatal(err)
		}
		defer kubectl(t, "-n", namespace, "delete", "hpa", "from-zero")
		down := scaled(t, 0)
		measured.note("an autoscaler from 0 (feature gate HPAScaleToZero): no node after %.1f s, the first token of a waiting request after %.1f s",
			down.Seconds(), first(t, c).Seconds())
	})
}

// With no node left a request waits at the head until one has started: the heads
// scale by themselves.
func TestScaleFromZero(t *testing.T) {
	t.Cleanup(func() { report(t, namespace) })
	c := installed(t)
	upgrade(t, "--set", "scaleToZero.enabled=true,scaleToZero.idleSeconds=10")
	down := scaled(t, 0)
	measured.note("scaled by the head: no node %.1f s after the upgrade, the first token of a waiting request after %.1f s",
		down.Seconds(), first(t, c).Seconds())
}

// fromZero goes by an external metric: there is no pod to have one.
const fromZero = `apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: from-zero, namespace: llm}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: StatefulSet, name: manta-node}
  minReplicas: 0
  maxReplicas: 3
  behavior: {scaleDown: {stabilizationWindowSeconds: 5}}
  metrics:
  - type: External
    external:
      metric: {name: manta_requests, selector: {matchLabels: {model_name: smollm2}}}
      target: {type: AverageValue, averageValue: "4"}
`

// scaled waits until the node StatefulSet has so many pods, all of them ready.
func scaled(t *testing.T, nodes int) time.Duration {
	t.Helper()
	start := time.Now()
	podsReady(t, namespace, nodePods, nodes)
	until(t, fmt.Sprintf("%d replicas wanted", nodes), patience, func(ctx context.Context) error {
		out, err := cluster.Kubectl(ctx, "-n", namespace, "get", "statefulset", "manta-node", "-o", "jsonpath={.spec.replicas}")
		if err == nil && out != fmt.Sprint(nodes) {
			err = fmt.Errorf("%s replicas", out)
		}
		return err
	})
	return time.Since(start)
}

// first asks something and gives the time to the first token.
func first(t *testing.T, c *client.Client) time.Duration {
	t.Helper()
	start := time.Now()
	var first time.Duration
	_, err := c.Complete(t.Context(), "smollm2", "Once upon a time", client.Options{}, func(p client.Piece) error {
		if first == 0 && p.Text != "" {
			first = time.Since(start)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return first
}
