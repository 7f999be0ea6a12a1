//go:build kubernetes && linux

package kubernetes

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// exampleImage is what the examples name, as a node's containerd knows it.
const exampleImage = "docker.io/library/manta:0.1.0"

// The seed guide's lines run as they are printed on the example's names: only model
// and sizes are those of a small machine. The GPU and its label are made up.
func TestGuide(t *testing.T) {
	for _, node := range cluster.Nodes() {
		kubectl(t, "label", "node", node, "nvidia.com/gpu.product=NVIDIA-A100-SXM4-80GB")
		kubectl(t, "patch", "node", node, "--subresource=status", "--type=json", "-p",
			`[{"op": "add", "path": "/status/capacity/nvidia.com~1gpu", "value": "1"}]`)
	}
	run := func(line string) string { return kubectl(t, strings.Fields(line)...) }
	run("create namespace vllm")
	run("-n vllm create secret generic hf-token --from-literal=token=hf_none")
	_, err := helm(t, "install", "vllm-llama2-7b", "../../chart", "-n", "vllm", "-f", "../../examples/llama2-7b/values.yaml",
		"--set", "model.name=/models/smollm2.gguf,model.maxModelLen=512,head.antiAffinity=preferred,node.modelCache.size=1Gi",
		"--set", "node.resources.requests.cpu=100m,node.resources.requests.memory=256Mi,node.resources.limits.cpu=1,node.resources.limits.memory=1Gi",
		"--set", "head.resources.requests.cpu=50m,head.resources.requests.memory=64Mi,node.shutdownSeconds=5,head.shutdownSeconds=5")
	t.Cleanup(func() {
		ctx, stop := context.WithTimeout(context.Background(), patience)
		defer stop()
		report(t, "vllm")
		if said, err := cluster.Command(ctx, "helm", "uninstall", "vllm-llama2-7b", "-n", "vllm", "--wait").CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, said)
		}
		if _, err := cluster.Kubectl(ctx, "delete", "namespace", "vllm"); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	until(t, "pods", patience, func(ctx context.Context) error { // kubectl wait is for what is there
		all, err := pods(ctx, "vllm", "app=vllm")
		if err == nil && len(all) < 4 {
			err = fmt.Errorf("%d pods", len(all))
		}
		return err
	})
	run("-n vllm wait --for=condition=ready pod -l app=vllm --timeout=150s")
	run("-n vllm wait --for=condition=complete job -l app=vllm --timeout=150s")
	for _, line := range []string{"-n vllm get pods -l app=vllm,model=llama2-7b -o name", "-n vllm get statefulset vllm-llama2-7b-node -o name",
		"-n vllm get service vllm-llama2-7b -o name", "-n vllm logs -l app=vllm", "-n vllm logs statefulset/vllm-llama2-7b-head"} {
		if run(line) == "" {
			t.Errorf("kubectl %s prints nothing", line)
		}
	}
	gpu := run("-n vllm get pod vllm-llama2-7b-node-0 -o jsonpath={.spec.containers[0].resources.limits.nvidia\\.com/gpu}{.spec.nodeName}")
	if !strings.HasPrefix(gpu, "1n") {
		t.Errorf("the node's GPU: %s", gpu)
	}

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	forward := cluster.Command(ctx, "kubectl", "-n", "vllm", "port-forward", "service/vllm-llama2-7b", "8000:8000", "9090:9090")
	if err := forward.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		stop()
		_ = forward.Wait() // it is killed
	}()
	until(t, "port-forward", patience, func(ctx context.Context) error {
		_, err := get(ctx, "http://127.0.0.1:8000/health")
		return err
	})
	for path, body := range map[string]string{
		"/generate":       `{"prompt": "Once upon a time", "max_tokens": 8}`,
		"/batch-generate": `{"requests": [{"prompt": "Once upon a time", "max_tokens": 8}, {"prompt": "The sea", "max_tokens": 8}]}`,
	} {
		answer, err := http.Post("http://127.0.0.1:8000"+path, "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if err != nil || answer.StatusCode != http.StatusOK {
			t.Errorf("%s: %d %s %v", path, answer.StatusCode, text, err)
		}
	}
	for _, url := range []string{"http://127.0.0.1:9090/metrics", "http://127.0.0.1:8000/metrics"} {
		page, err := get(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"vllm_requests_total{", "vllm_request_latency_seconds_bucket{", "vllm_tokens_generated_total{"} {
			if !strings.Contains(page, "\n"+name) {
				t.Errorf("%s lacks %s", url, name)
			}
		}
	}
}
