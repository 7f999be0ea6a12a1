//go:build kubernetes && linux

package kubernetes

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"manta/head/api"
	"manta/head/client"
)

// namespace is where the chart under test is installed.
const namespace = "llm"

// bases are the API on every Kubernetes node, each of which asks any ready head.
func bases(first int) (urls []string) {
	ips := cluster.NodeIPs()
	for i := range ips {
		urls = append(urls, fmt.Sprintf("http://%s:30080", ips[(first+i)%len(ips)]))
	}
	return urls
}

// key reads the API key that the chart drew.
func key(t *testing.T) string {
	t.Helper()
	encoded := kubectl(t, "-n", namespace, "get", "secret", "manta-api-keys", "-o", "jsonpath={.data.keys}")
	keys, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(keys), "\n")
	return first
}

var once sync.Once

// installed gives a client of the release that all tests share. The first to ask
// installs it and waits until its model answers.
func installed(t *testing.T) *client.Client {
	t.Helper()
	once.Do(func() { install(t) })
	c := client.New(key(t), bases(0)...)
	t.Cleanup(c.Close)
	return c
}

func install(t *testing.T) {
	t.Helper()
	t.Cleanup(func() { report(t, namespace) })
	start := time.Now()
	out, err := helm(t, "install", "manta", "../../chart", "--namespace", namespace, "--create-namespace", "-f", "testdata/values.yaml",
		"--wait", "--wait-for-jobs", "--timeout", "240s")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out, "A first answer:") {
		t.Errorf("the notes do not say how to ask:\n%s", out)
	}
	returned := time.Since(start)
	c := client.New(key(t), bases(0)...)
	defer c.Close()
	var first time.Duration
	var answer strings.Builder
	greedy := 0.0
	_, err = c.Chat(t.Context(), "smollm2", []client.Message{{Role: "user", Content: "What is the capital of France?"}}, client.Options{Temperature: &greedy},
		func(p client.Piece) error {
			if first == 0 && p.Text != "" {
				first = time.Since(start)
			}
			answer.WriteString(p.Text)
			return nil
		})
	if err != nil {
		t.Fatal(err)
	}
	if answer.String() != "The capital of France is Paris." { // as Manta answers everywhere in float32
		t.Errorf("the answer is %q", answer.String())
	}
	measured.note("helm install returned after %.1f s, first token of a chat %.1f s after its start", returned.Seconds(), first.Seconds())
}

// upgrade changes values of the release and waits until that is done.
func upgrade(t *testing.T, values ...string) {
	t.Helper()
	args := append([]string{"upgrade", "manta", "../../chart", "--namespace", namespace, "-f", "testdata/values.yaml", "--wait", "--timeout", "240s"}, values...)
	if _, err := helm(t, args...); err != nil {
		t.Fatal(err)
	}
}

// state asks a head for the cluster's state.
func state(ctx context.Context, c *client.Client) (*api.ClusterState, error) {
	ctx, stop := context.WithTimeout(ctx, 5*time.Second)
	defer stop()
	return c.Cluster(ctx)
}

// replicasReady waits until the model has so many ready replicas.
func replicasReady(t *testing.T, c *client.Client, count int) time.Duration {
	t.Helper()
	return until(t, fmt.Sprintf("%d replicas", count), patience, func(ctx context.Context) error {
		return has(ctx, c, func(s *api.ClusterState) bool { return s.Deployments[0].Ready == count })
	})
}

// get reads a page.
func get(ctx context.Context, url string) (string, error) {
	ctx, stop := context.WithTimeout(ctx, 5*time.Second)
	defer stop()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answers %d: %s", url, response.StatusCode, body)
	}
	return string(body), err
}
