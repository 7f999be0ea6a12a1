//go:build !windows

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"

	"manta/internal/processtest"
)

// testCluster is a cluster of this program.
type testCluster struct {
	t *testing.T
	*processtest.Cluster
}

func newCluster(t *testing.T, heads int, env ...string) *testCluster {
	t.Helper()
	c := &testCluster{t, processtest.NewCluster(t, heads)}
	c.Command = func(_ string, args ...string) *exec.Cmd {
		cmd := program(args...)
		cmd.Env = append(cmd.Env, env...)
		return cmd
	}
	for i := range heads {
		c.Head(i)
	}
	return c
}

// ask sends a request to a head; an empty body makes it a GET.
func (c *testCluster) ask(head int, path, body string) (int, string) {
	method := http.MethodGet
	if body != "" {
		method = http.MethodPost
	}
	request, err := http.NewRequest(method, "http://"+c.API[head]+path, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, err.Error()
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return 0, err.Error()
	}
	return answer.StatusCode, string(text)
}

func (c *testCluster) until(what string, head int, path string, ok func(status int, text string) bool) {
	c.t.Helper()
	var status int
	var text string
	defer func() {
		if c.t.Failed() {
			c.t.Logf("last: %d %s", status, text)
		}
	}()
	waitFor(c.t, what, func() bool {
		status, text = c.ask(head, path, "")
		return ok(status, text)
	})
}

// driver gives the name of the node that a replica's driver runs on.
func (c *testCluster) driver(head int) string {
	c.t.Helper()
	_, text := c.ask(head, "/api/cluster", "")
	found := regexp.MustCompile(`0\.0 on (node-[a-z]+)-`).FindStringSubmatch(text)
	if found == nil {
		c.t.Fatalf("no driver in %s", text)
	}
	return found[1]
}

const longAnswer = `{"model": "tiny", "prompt": "hello", "max_tokens": 400, "temperature": 0, "stream": true, "ignore_eos": true}`

// deploy makes a deployment of a model, and waits until every head answers for it.
func (c *testCluster) deploy(model string) {
	c.t.Helper()
	body, err := json.Marshal(map[string]any{"name": "tiny", "model": model, "max_num_seqs": 8, "gpu_memory_utilization": 0.05})
	if err != nil {
		c.t.Fatal(err)
	}
	if status, text := c.ask(len(c.API)/2, "/api/cluster/deployments", string(body)); status != http.StatusCreated {
		c.t.Fatalf("deploy: %d %s", status, text)
	}
	for head := range c.API {
		c.until("health", head, "/health", func(status int, _ string) bool { return status == http.StatusOK })
	}
}

// stream gives the text of an answer; begun is called after its first piece.
func (c *testCluster) stream(head int, begun func(), headers ...string) (string, error) {
	request, err := http.NewRequest(http.MethodPost, "http://"+c.API[head]+"/v1/completions", strings.NewReader(longAnswer))
	if err != nil {
		return "", err
	}
	request.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(headers); i += 2 {
		request.Header.Set(headers[i], headers[i+1])
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	var text strings.Builder
	lines := bufio.NewScanner(answer.Body)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		if data == "[DONE]" {
			return text.String(), nil
		}
		var piece struct {
			Choices []struct{ Text string }
			Error   json.RawMessage
		}
		if err := json.Unmarshal([]byte(data), &piece); err != nil || piece.Error != nil {
			return text.String(), fmt.Errorf("%s: %w", data, err)
		}
		for _, choice := range piece.Choices {
			text.WriteString(choice.Text)
		}
		if begun != nil {
			begun()
			begun = nil
		}
	}
	return text.String(), fmt.Errorf("the stream ended early: %w", lines.Err())
}

// Three heads and two nodes: any head takes a write and answers; the death of a
// head, the leader included, costs others nothing, and that of all of them the time
// until they are back; the death of the driver's
// node costs a pause, and the stream goes on with the same tokens; both come back.
func TestCluster(t *testing.T) {
	model := tiny(t)
	c := newCluster(t, 3)
	c.Node("node-a", "--devices", "cpu")
	c.Node("node-b", "--devices", "cpu")
	for head := range c.API {
		c.until("nodes", head, "/api/cluster", func(_ int, text string) bool {
			return strings.Contains(text, `"id":"node-a-`) && strings.Contains(text, `"id":"node-b-`)
		})
	}
	c.deploy(model)
	want, err := c.stream(0, nil)
	if err != nil {
		t.Fatal(err)
	}

	t.Run("a head dies", func(t *testing.T) {
		for dead := range c.API {
			var streams sync.WaitGroup
			for head := range c.API {
				if head == dead {
					continue
				}
				begun := make(chan struct{})
				streams.Go(func() {
					if got, err := c.stream(head, func() { close(begun) }); err != nil || got != want {
						t.Errorf("head %d: %v: %q, want %q", head, err, got, want)
					}
				})
				<-begun
			}
			c.Kill(processtest.HeadName(dead))
			streams.Wait()
			other := (dead + 1) % len(c.API)
			if status, text := c.ask(other, "/generate", `{"prompt": "hello", "max_tokens": 4}`); status != http.StatusOK {
				t.Fatalf("after head %d died: %d %s", dead, status, text)
			}
			c.Start(processtest.HeadName(dead))
			c.until("the head's return", dead, "/readyz", func(status int, _ string) bool { return status == http.StatusOK })
			c.until("the head's knowledge", dead, "/health", func(status int, _ string) bool { return status == http.StatusOK })
		}
	})

	t.Run("the driver's node dies", func(t *testing.T) {
		for range 2 {
			c.until("both homes", 0, "/health", func(status int, _ string) bool { return status == http.StatusOK })
			dead := c.driver(0)
			got, err := c.stream(0, func() { c.Kill(dead) })
			if err != nil || got != want {
				t.Fatalf("%s died: %v: %q, want %q", dead, err, got, want)
			}
			// A stream that was faster than the signal ends before anything moves.
			c.until("another driver", 0, "/api/cluster", func(_ int, text string) bool {
				return strings.Contains(text, "0.0 on node-") && !strings.Contains(text, "0.0 on "+dead)
			})
			c.Start(dead)
			for head := range c.API {
				c.until("the node's return", head, "/api/cluster", func(_ int, text string) bool { return strings.Contains(text, `"id":"`+dead) })
			}
		}
	})

	// Nodes that still know each other look for heads again.
	t.Run("all heads die", func(t *testing.T) {
		var heads []string
		for head := range c.API {
			heads = append(heads, processtest.HeadName(head))
		}
		c.Kill(heads...)
		for _, head := range heads {
			c.Start(head)
		}
		for head := range c.API {
			for _, name := range []string{"node-a", "node-b"} {
				c.until("the nodes' return", head, "/api/cluster", func(_ int, text string) bool { return strings.Contains(text, `"id":"`+name) })
			}
			c.until("health", head, "/health", func(status int, _ string) bool { return status == http.StatusOK })
		}
		if got, err := c.stream(0, nil); err != nil || got != want {
			t.Errorf("%v: %q, want %q", err, got, want)
		}
	})
}

// The wrong secret joins nothing.
func TestWrongSecretFindsNoCluster(t *testing.T) {
	c := newCluster(t, 1)
	c.until("a head", 0, "/readyz", func(status int, _ string) bool { return status == http.StatusOK })
	other := filepath.Join(c.Dir, "other")
	if err := os.WriteFile(other, []byte("quite another secret than that\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out processtest.Text
	p, err := processtest.Start(program("node", "--name", "stranger", "--data-dir", c.Data("stranger"), "--secret-file", other,
		"--bind", "127.0.0.1", "--gossip-port", "0", "--link-port", "0", "--join", c.Gossip[0]), &out, &out)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	waitFor(t, "a refusal", func() bool { return strings.Contains(out.String(), "no member reached") })
	if _, text := c.ask(0, "/api/cluster", ""); strings.Contains(text, "stranger") {
		t.Fatalf("the stranger is in: %s", text)
	}
	p.Signal(t, syscall.SIGTERM)
	if code := p.Wait(t); code != 0 {
		t.Fatalf("exit code %d\n%s", code, &out)
	}
}
