//go:build e2e && unix

package cluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"manta/head/api"
	"manta/head/client"
	"manta/internal/processtest"
)

const (
	headCount = 3
	nodeCount = 4
	// patience bounds every wait for the cluster to come to a state.
	patience = processtest.Patience
)

// bench is the cluster under test.
type bench struct {
	*processtest.Cluster
	t       *testing.T
	binary  string
	network network // nil: all members are on one address
	devices string  // of each node
}

func binary(t *testing.T) string {
	t.Helper()
	path, err := processtest.Binary()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func newBench(t *testing.T) *bench { return newBenchOn(t, nil, "cpu") }

// newBenchOn starts the cluster on a network, or on loopback, with nodes that offer
// certain devices.
func newBenchOn(t *testing.T, n network, devices string) *bench {
	t.Helper()
	if n != nil { // before the cluster, which so ends first
		for i := range headCount {
			n.add(processtest.HeadName(i))
		}
		for i := range nodeCount {
			n.add(fmt.Sprint("node", i))
		}
	}
	b := &bench{Cluster: processtest.NewCluster(t, headCount), t: t, binary: binary(t), network: n, devices: devices}
	b.Command = func(_ string, args ...string) *exec.Cmd { return processtest.Command(b.binary, args...) }
	if n != nil {
		for i := range headCount {
			address := n.address(processtest.HeadName(i))
			b.Gossip[i], b.API[i] = fmt.Sprint(address, ":", gossipPort), fmt.Sprint(address, ":", apiPort)
		}
		b.Host = n.host
		b.Command = func(name string, args ...string) *exec.Cmd { return n.command(name, b.binary, args...) }
	}
	b.meet()
	for i := range headCount {
		b.Head(i)
	}
	for i := range nodeCount {
		b.node(fmt.Sprint("node", i))
	}
	t.Cleanup(func() {
		for _, name := range b.Names() {
			if *logs == "" {
				continue
			}
			if err := os.WriteFile(filepath.Join(*logs, name+".log"), []byte(b.Log(name).String()), 0o600); err != nil {
				t.Error(err)
			}
		}
	})
	return b
}

// meet writes the file that all members find each other by.
func (b *bench) meet() {
	b.t.Helper()
	file := filepath.Join(b.Dir, "members")
	if err := os.WriteFile(file, []byte(strings.Join(b.Gossip, "\n")), 0o600); err != nil {
		b.t.Fatal(err)
	}
	b.Join = strings.Join(b.Gossip, ",") + ",@" + file
}

func (b *bench) node(name string) {
	b.t.Helper()
	b.Node(name, "--devices", b.devices, "--device-processes", *apart)
}

// signal sends a signal; for SIGKILL it waits until the process is gone, for
// SIGSTOP until the kernel says that it is stopped.
func (b *bench) signal(name string, s syscall.Signal) {
	b.t.Helper()
	m := b.Member(name)
	m.Signal(b.t, s)
	switch s {
	case syscall.SIGKILL:
		<-m.Ended
	case syscall.SIGSTOP:
		if err := stopped(m.Pid()); err != nil {
			b.t.Fatalf("%s: %v", name, err)
		}
	}
}

// run runs a command of the program to its end.
func (b *bench) run(args ...string) (string, error) {
	out, errs, code := processtest.Run(b.t, processtest.Command(b.binary, args...))
	if code != 0 {
		return out + errs, fmt.Errorf("exit code %d", code)
	}
	return out + errs, nil
}

// untilReady waits for a head to be able to queue.
func (b *bench) untilReady(head int) {
	b.t.Helper()
	b.until("a ready head", func(*api.ClusterState) bool {
		c := client.New("", "http://"+b.API[head])
		defer c.Close()
		return c.Get(context.Background(), "/readyz", nil) == nil
	})
}

// client talks to all heads, that of the given index first.
func (b *bench) client(first int) *client.Client {
	var bases []string
	for i := range b.API {
		bases = append(bases, "http://"+b.API[(first+i)%len(b.API)])
	}
	return client.New("", bases...)
}

// state asks the heads for the cluster's state until one knows it: some may be
// dead, stopped or cut off.
func (b *bench) state() (s *api.ClusterState, err error) {
	for i := range b.API {
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
	c := client.New("", "http://"+b.API[head])
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
