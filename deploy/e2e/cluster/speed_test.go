//go:build e2e && unix

package cluster

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"manta/head/api"
	"manta/internal/processtest"
)

// Of two stages on unlike nodes the one on the faster node has more layers, and the
// tokens are those of one stage. That a node may count on a tenth of its machine is told
// to it: measurements of one machine differ by less, whatever else runs there.
func TestLayersFollowSpeed(t *testing.T) {
	b := &bench{Cluster: processtest.NewCluster(t, 1), t: t, binary: binary(t)}
	b.Command = func(_ string, args ...string) *exec.Cmd { return processtest.Command(b.binary, args...) }
	b.Head(0)
	b.Node("fast", "--devices", "cpu:1")
	b.Node("slow", "--devices", "cpu:1@0.1")
	b.until("nodes with speeds", func(s *api.ClusterState) bool {
		known := 0
		for _, n := range s.Nodes {
			for _, d := range n.Devices {
				if d.Bandwidth > 0 && d.Operations > 0 {
					known++
				}
			}
		}
		return known == 2
	})
	c := b.client(0)
	defer c.Close()
	answer := map[string]string{}
	var replica api.Replica
	for _, d := range []struct {
		name   string
		stages int
	}{{"whole", 1}, {"cut", 2}} {
		body := map[string]any{
			"name": d.name, "model": "smollm2", "max_model_len": 256, "max_num_seqs": 8, "dtype": "float32",
			"pipeline_parallel_size": d.stages, "strategy": "spread",
		}
		if err := c.Post(t.Context(), "/api/cluster/deployments", body, nil); err != nil {
			t.Fatal(err)
		}
		b.until("a ready replica of "+d.name, func(s *api.ClusterState) bool {
			for _, of := range s.Deployments {
				if of.Name == d.name && of.Ready == 1 {
					replica = of.Replicas[0]
					return true
				}
			}
			return false
		})
		var got struct{ Choices []struct{ Text string } }
		request := fmt.Appendf(nil, `{"model":%q,"prompt":"The tallest mountain is","max_tokens":48,"temperature":0,"ignore_eos":true}`, d.name)
		b.ask("POST", "/v1/completions", "application/json", request, &got)
		if len(got.Choices) != 1 || got.Choices[0].Text == "" {
			t.Fatalf("%s: %+v", d.name, got)
		}
		answer[d.name] = got.Choices[0].Text
	}
	if answer["cut"] != answer["whole"] {
		t.Errorf("cut: %q, whole: %q", answer["cut"], answer["whole"])
	}
	layers := map[string]int{}
	for _, shard := range replica.Shards {
		var rank, node, device string
		var first, last int
		if _, err := fmt.Sscanf(shard, "%s on %s %s layers %d-%d", &rank, &node, &device, &first, &last); err != nil {
			t.Fatalf("%q: %v", shard, err)
		}
		name, _, _ := strings.Cut(node, "-")
		layers[name] = last - first + 1
	}
	t.Logf("%v", replica.Shards)
	if layers["fast"]+layers["slow"] != 30 || layers["fast"] < 2*layers["slow"] {
		t.Errorf("layers: %v", layers)
	}
	if text, err := b.run("explain", "cut", "--url", "http://"+b.API[0]); err != nil || !strings.Contains(text, "a full step") {
		t.Errorf("explain: %v: %s", err, text)
	}
}
