//go:build e2e && unix

package cluster

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"manta/head/api"
	"manta/head/client"
)

const (
	headCount = 3
	nodeCount = 4
	// patience bounds every wait for the cluster to come to a state.
	patience = 90 * time.Second
)

// member is one process; it can be started again on what it left on disk.
type member struct {
	name    string
	args    []string
	command *exec.Cmd
	ended   chan struct{}
}

// bench is the cluster under test.
type bench struct {
	t       *testing.T
	binary  string
	dir     string
	gossip  []string
	apis    []string
	members map[string]*member
	network *network // nil: all members are on loopback
	devices string   // of each node

	mu  sync.Mutex // guards log
	log map[string]*bytes.Buffer
}

func binary(t *testing.T) string {
	t.Helper()
	name := os.Getenv("MANTA_BINARY")
	if name == "" {
		name = "../../../bin/manta"
	}
	path, err := filepath.Abs(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: make build first", err)
	}
	return path
}

// ports gives loopback addresses that were free a moment ago and that no system
// hands out by itself: who is started again must find its own free.
func ports(t *testing.T, n int) []string {
	t.Helper()
	var addresses []string
	for range 1000 {
		l, err := net.Listen("tcp", fmt.Sprint("127.0.0.1:", 20000+rand.IntN(12000)))
		if err != nil {
			continue
		}
		defer l.Close()
		if addresses = append(addresses, l.Addr().String()); len(addresses) == n {
			return addresses
		}
	}
	t.Fatal("no free ports")
	return nil
}

func port(address string) string {
	_, p, _ := net.SplitHostPort(address)
	return p
}

func newBench(t *testing.T) *bench { return newBenchOn(t, nil, "cpu") }

// newBenchOn starts the cluster on a network of namespaces, or on loopback, with
// nodes that offer certain devices.
func newBenchOn(t *testing.T, n *network, devices string) *bench {
	t.Helper()
	b := &bench{
		t: t, binary: binary(t), dir: t.TempDir(), network: n, devices: devices,
		members: make(map[string]*member), log: make(map[string]*bytes.Buffer),
	}
	if n == nil {
		free := ports(t, 2*headCount)
		b.gossip, b.apis = free[:headCount], free[headCount:]
	} else {
		for i := range headCount {
			name := fmt.Sprint("head", i)
			n.add(name)
			b.gossip, b.apis = append(b.gossip, n.address(name)+":7946"), append(b.apis, n.address(name)+":8000")
		}
		for i := range nodeCount {
			n.add(fmt.Sprint("node", i))
		}
	}
	if err := os.WriteFile(filepath.Join(b.dir, "secret"), []byte("the secret of the kill matrix\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.meet()
	for i := range headCount {
		b.head(i)
	}
	for i := range nodeCount {
		b.node(fmt.Sprint("node", i))
	}
	t.Cleanup(b.close)
	return b
}

// meet writes the file that all members find each other by.
func (b *bench) meet() {
	b.t.Helper()
	if err := os.WriteFile(b.joins(), []byte(strings.Join(b.gossip, "\n")), 0o600); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) joins() string { return filepath.Join(b.dir, "members") }

// head starts a head at its addresses.
func (b *bench) head(i int) {
	b.t.Helper()
	b.add(fmt.Sprint("head", i), "head", "--gossip-port", port(b.gossip[i]), "--raft-port", "0", "--metrics-port", "0",
		"--host", b.host(fmt.Sprint("head", i)), "--port", port(b.apis[i]), "--api-key", "none", "--bootstrap-expect", fmt.Sprint(headCount))
}

func (b *bench) node(name string) {
	b.t.Helper()
	b.add(name, "node", "--gossip-port", "0", "--devices", b.devices, "--device-processes", *apart)
}

// host is the address that a member listens on.
func (b *bench) host(name string) string {
	if b.network != nil {
		return b.network.address(name)
	}
	return "127.0.0.1"
}

func (b *bench) add(name string, args ...string) {
	args = append(args, "--name", name, "--bind", b.host(name), "--link-port", "0", "--data-dir", filepath.Join(b.dir, name),
		"--secret-file", filepath.Join(b.dir, "secret"), "--join", strings.Join(b.gossip, ",")+",@"+b.joins())
	b.members[name] = &member{name: name, args: args}
	if b.log[name] == nil {
		b.log[name] = &bytes.Buffer{}
	}
	b.start(name)
}

// logWriter keeps a member's output for the case that the test fails.
type logWriter struct {
	b    *bench
	name string
}

func (w logWriter) Write(p []byte) (int, error) {
	w.b.mu.Lock()
	defer w.b.mu.Unlock()
	return w.b.log[w.name].Write(p)
}

func (b *bench) start(name string) {
	b.t.Helper()
	m := b.members[name]
	if b.network != nil {
		m.command = b.network.command(name, b.binary, m.args...)
	} else {
		m.command = exec.Command(b.binary, m.args...)
	}
	m.command.Stdout, m.command.Stderr = logWriter{b, name}, logWriter{b, name}
	if err := m.command.Start(); err != nil {
		b.t.Fatal(err)
	}
	m.ended = make(chan struct{})
	go func() {
		defer close(m.ended)
		_ = m.command.Wait() // it is killed, mostly
	}()
}

// signal sends a signal; for SIGKILL it waits until the process is gone, for
// SIGSTOP until the kernel says that it is stopped.
func (b *bench) signal(name string, s syscall.Signal) {
	b.t.Helper()
	m := b.members[name]
	if err := m.command.Process.Signal(s); err != nil {
		b.t.Fatalf("%v to %s: %v", s, name, err)
	}
	switch s {
	case syscall.SIGKILL:
		<-m.ended
	case syscall.SIGSTOP:
		if err := stopped(m.command.Process.Pid); err != nil {
			b.t.Fatalf("%s: %v", name, err)
		}
	}
}

func (b *bench) close() {
	for _, m := range b.members {
		_ = m.command.Process.Kill()
		<-m.ended
	}
	for name, log := range b.log {
		if *logs != "" {
			if err := os.WriteFile(filepath.Join(*logs, name+".log"), log.Bytes(), 0o600); err != nil {
				b.t.Error(err)
			}
		}
	}
	if !b.t.Failed() {
		return
	}
	for name, log := range b.log {
		lines := strings.SplitAfter(log.String(), "\n")
		b.t.Logf("%s:\n%s", name, strings.Join(lines[max(0, len(lines)-25):], ""))
	}
}

// run runs a command of the program to its end.
func (b *bench) run(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	command := exec.CommandContext(ctx, b.binary, args...)
	command.Env = append(os.Environ(), "MANTA_API_KEY=")
	out, err := command.CombinedOutput()
	return string(out), err
}

// data is a member's data directory.
func (b *bench) data(name string) string { return filepath.Join(b.dir, name) }

// untilReady waits for a head to be able to queue.
func (b *bench) untilReady(head int) {
	b.t.Helper()
	b.until("a ready head", func(*api.ClusterState) bool {
		c := client.New("", "http://"+b.apis[head])
		defer c.Close()
		return c.Get(context.Background(), "/readyz", nil) == nil
	})
}

// client talks to all heads, that of the given index first.
func (b *bench) client(first int) *client.Client {
	var bases []string
	for i := range b.apis {
		bases = append(bases, "http://"+b.apis[(first+i)%len(b.apis)])
	}
	return client.New("", bases...)
}

// state asks the heads for the cluster's state until one knows it: some may be
// dead, stopped or cut off.
func (b *bench) state() (s *api.ClusterState, err error) {
	for i := range b.apis {
		if s, err = b.stateOf(i, 2*time.Second); err == nil && !s.Stale {
			return s, nil
		}
	}
	return s, err
}

// stateOf asks one head.
func (b *bench) stateOf(head int, limit time.Duration) (*api.ClusterState, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	c := client.New("", "http://"+b.apis[head])
	defer c.Close()
	return c.Cluster(ctx)
}

// until waits for the cluster to come to a state.
func (b *bench) until(what string, ok func(*api.ClusterState) bool) *api.ClusterState {
	b.t.Helper()
	return b.await(what, b.state, ok)
}

// untilOf waits for one head to know of a state.
func (b *bench) untilOf(head int, what string, ok func(*api.ClusterState) bool) *api.ClusterState {
	b.t.Helper()
	return b.await(what, func() (*api.ClusterState, error) { return b.stateOf(head, 2*time.Second) }, ok)
}

func (b *bench) await(what string, ask func() (*api.ClusterState, error), ok func(*api.ClusterState) bool) *api.ClusterState {
	b.t.Helper()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	limit := time.After(patience)
	for {
		s, err := ask()
		if err == nil && ok(s) {
			return s
		}
		select {
		case <-ticker.C:
		case <-limit:
			b.t.Fatalf("%s: not within %v: %+v, %v", what, patience, s, err)
		}
	}
}

// settle waits until every head answers, of whatever version it is.
func (b *bench) settle() {
	b.t.Helper()
	for i := range headCount {
		b.await("an answer", func() (*api.ClusterState, error) { return b.stateOf(i, 2*time.Second) },
			func(s *api.ClusterState) bool {
				return !s.Stale && len(s.Heads) == headCount && len(s.Nodes) >= nodeCount
			})
	}
}
