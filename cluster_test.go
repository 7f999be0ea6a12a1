//go:build !windows

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// A cluster is heads and nodes as processes on loopback.
type testCluster struct {
	t      *testing.T
	dir    string
	secret string
	gossip []string // of the heads
	api    []string
	heads  []*exec.Cmd
	nodes  map[string]*exec.Cmd
	env    []string // of every member
	ended  map[*exec.Cmd]chan struct{}
}

// freePorts gives ports that were free a moment ago and that no system hands out
// by itself: a head that comes back must find its own free again.
func freePorts(t *testing.T, n int) []int {
	t.Helper()
	var ports []int
	for range 1000 {
		port := 20000 + rand.IntN(12000)
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			continue
		}
		defer l.Close()
		if ports = append(ports, port); len(ports) == n {
			return ports
		}
	}
	t.Fatal("no free ports")
	return nil
}

func newCluster(t *testing.T, heads int, env ...string) *testCluster {
	t.Helper()
	c := &testCluster{t: t, dir: t.TempDir(), env: env, nodes: map[string]*exec.Cmd{}, ended: map[*exec.Cmd]chan struct{}{}}
	c.secret = filepath.Join(c.dir, "secret")
	if err := os.WriteFile(c.secret, []byte("the secret of a cluster of tests\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ports := freePorts(t, 2*heads)
	for i := range heads {
		c.gossip = append(c.gossip, fmt.Sprintf("127.0.0.1:%d", ports[i]))
		c.api = append(c.api, fmt.Sprintf("127.0.0.1:%d", ports[heads+i]))
		c.heads = append(c.heads, nil)
	}
	for i := range heads {
		c.head(i)
	}
	return c
}

// run starts a member; its output is shown when the test fails.
func (c *testCluster) run(name string, args ...string) *exec.Cmd {
	c.t.Helper()
	self, err := os.Executable()
	if err != nil {
		c.t.Fatal(err)
	}
	args = append(args, "--name", name, "--data-dir", filepath.Join(c.dir, name), "--secret-file", c.secret, "--bind", "127.0.0.1",
		"--link-port", "0", "--join", strings.Join(c.gossip, ","), "--log-level", "info")
	cmd := exec.Command(self, args...)
	cmd.Env = append(append(os.Environ(), "MANTA_TEST_PROCESS=1", "MANTA_API_KEY="), c.env...)
	out := &syncBuffer{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		cmd.Wait()
	}()
	c.ended[cmd] = ended
	c.t.Cleanup(func() {
		c.kill(cmd)
		if c.t.Failed() {
			lines := strings.SplitAfter(out.String(), "\n")
			c.t.Logf("%s:\n%s", name, strings.Join(lines[max(0, len(lines)-40):], ""))
		}
	})
	return cmd
}

// kill ends members at once; what they held is free when it returns.
func (c *testCluster) kill(members ...*exec.Cmd) {
	for _, m := range members {
		m.Process.Kill()
	}
	for _, m := range members {
		<-c.ended[m]
	}
}

func (c *testCluster) head(i int) {
	_, port, _ := net.SplitHostPort(c.api[i])
	_, gossip, _ := net.SplitHostPort(c.gossip[i])
	c.heads[i] = c.run(fmt.Sprintf("head-%d", i), "head", "--gossip-port", gossip, "--raft-port", "0", "--host", "127.0.0.1",
		"--port", port, "--metrics-port", "0", "--bootstrap-expect", fmt.Sprint(len(c.api)))
}

func (c *testCluster) node(name string) { c.nodeOf(name, "cpu") }

// nodeOf starts a node that offers certain devices.
func (c *testCluster) nodeOf(name, devices string) {
	c.nodes[name] = c.run(name, "node", "--gossip-port", "0", "--devices", devices)
}

// ask sends a request to a head; an empty body makes it a GET.
func (c *testCluster) ask(head int, path, body string) (int, string) {
	method := http.MethodGet
	if body != "" {
		method = http.MethodPost
	}
	request, err := http.NewRequest(method, "http://"+c.api[head]+path, strings.NewReader(body))
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
	if status, text := c.ask(len(c.api)/2, "/api/cluster/deployments", string(body)); status != http.StatusCreated {
		c.t.Fatalf("deploy: %d %s", status, text)
	}
	for head := range c.api {
		c.until("health", head, "/health", func(status int, _ string) bool { return status == http.StatusOK })
	}
}

// stream gives the text of an answer; begun is called after its first piece.
func (c *testCluster) stream(head int, begun func(), headers ...string) (string, error) {
	request, err := http.NewRequest(http.MethodPost, "http://"+c.api[head]+"/v1/completions", strings.NewReader(longAnswer))
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
	model := modelFolder(t)
	c := newCluster(t, 3)
	c.node("node-a")
	c.node("node-b")
	for head := range c.api {
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
		for dead := range c.api {
			var streams sync.WaitGroup
			for head := range c.api {
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
			c.kill(c.heads[dead])
			streams.Wait()
			other := (dead + 1) % len(c.api)
			if status, text := c.ask(other, "/generate", `{"prompt": "hello", "max_tokens": 4}`); status != http.StatusOK {
				t.Fatalf("after head %d died: %d %s", dead, status, text)
			}
			c.head(dead)
			c.until("the head's return", dead, "/readyz", func(status int, _ string) bool { return status == http.StatusOK })
			c.until("the head's knowledge", dead, "/health", func(status int, _ string) bool { return status == http.StatusOK })
		}
	})

	t.Run("the driver's node dies", func(t *testing.T) {
		for range 2 {
			c.until("both homes", 0, "/health", func(status int, _ string) bool { return status == http.StatusOK })
			dead := c.driver(0)
			got, err := c.stream(0, func() { c.kill(c.nodes[dead]) })
			if err != nil || got != want {
				t.Fatalf("%s died: %v: %q, want %q", dead, err, got, want)
			}
			// A stream that was faster than the signal ends before anything moves.
			c.until("another driver", 0, "/api/cluster", func(_ int, text string) bool {
				return strings.Contains(text, "0.0 on node-") && !strings.Contains(text, "0.0 on "+dead)
			})
			c.node(dead)
			for head := range c.api {
				c.until("the node's return", head, "/api/cluster", func(_ int, text string) bool { return strings.Contains(text, `"id":"`+dead) })
			}
		}
	})

	// Nodes that still know each other look for heads again.
	t.Run("all heads die", func(t *testing.T) {
		c.kill(c.heads...)
		for head := range c.heads {
			c.head(head)
		}
		for head := range c.api {
			for name := range c.nodes {
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
	other := filepath.Join(c.dir, "other")
	if err := os.WriteFile(other, []byte("quite another secret than that\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out syncBuffer
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "node", "--name", "stranger", "--data-dir", filepath.Join(c.dir, "stranger"), "--secret-file", other,
		"--bind", "127.0.0.1", "--gossip-port", "0", "--link-port", "0", "--join", c.gossip[0])
	cmd.Env = append(os.Environ(), "MANTA_TEST_PROCESS=1")
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "a refusal", func() bool { return strings.Contains(out.String(), "no member reached") })
	if _, text := c.ask(0, "/api/cluster", ""); strings.Contains(text, "stranger") {
		t.Fatalf("the stranger is in: %s", text)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
}
