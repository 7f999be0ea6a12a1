//go:build e2e && linux

package scale

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"manta/head/api"
	"manta/head/client"
	"manta/internal/trust"
	"manta/node"
	"manta/runtime/weights"
)

const (
	headCount = 3
	devices   = 8 // a node
	patience  = 4 * time.Minute
	hertz     = 100 // of the kernel's clock in /proc/PID/stat
)

// bench is three heads as processes, and nodes in this one.
type bench struct {
	t      *testing.T
	model  string
	dir    string
	secret string
	gossip []string
	urls   []string
	heads  []*exec.Cmd
	logs   []*bytes.Buffer
	client *client.Client
	nodes  int
}

func start(t *testing.T) *bench {
	t.Helper()
	binary := os.Getenv("MANTA_BINARY")
	if binary == "" {
		binary = "../../../bin/manta"
	}
	b := &bench{t: t, dir: t.TempDir(), model: llama8B(t)}
	b.secret = filepath.Join(b.dir, "secret")
	if err := os.WriteFile(b.secret, []byte("the secret of the bench of scale\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	free := make([]string, 2*headCount)
	for i := range free {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		free[i] = l.Addr().String()
		defer l.Close()
	}
	b.gossip = free[:headCount]
	for i, address := range free[headCount:] {
		b.urls = append(b.urls, "http://"+address)
		_, gossip, _ := net.SplitHostPort(b.gossip[i])
		_, http, _ := net.SplitHostPort(address)
		command := exec.Command(binary, "head", "--name", fmt.Sprint("head", i), "--data-dir", filepath.Join(b.dir, fmt.Sprint("head", i)),
			"--secret-file", b.secret, "--bind", "127.0.0.1", "--host", "127.0.0.1", "--gossip-port", gossip, "--port", http, "--raft-port", "0",
			"--link-port", "0", "--metrics-port", "0", "--api-key", "none", "--bootstrap-expect", fmt.Sprint(headCount), "--join", strings.Join(b.gossip, ","))
		log := &bytes.Buffer{}
		command.Stdout, command.Stderr = log, log
		b.heads, b.logs = append(b.heads, command), append(b.logs, log)
	}
	return b
}

// run starts the heads; the listeners that held their ports are closed by now.
func (b *bench) run() {
	for i, command := range b.heads {
		if err := command.Start(); err != nil {
			b.t.Fatal(err)
		}
		b.t.Cleanup(func() {
			_ = command.Process.Kill()
			_ = command.Wait()
			if b.t.Failed() {
				b.t.Logf("head %d:\n%s", i, b.logs[i])
			}
		})
	}
	b.client = client.New("", b.urls...)
	b.t.Cleanup(b.client.Close)
}

// add runs so many more nodes on simulated devices.
func (b *bench) add(n int, kind string, labels map[string]string) {
	b.t.Helper()
	secrets, err := trust.LoadSecrets(b.secret)
	if err != nil {
		b.t.Fatal(err)
	}
	for range n {
		name := fmt.Sprintf("%s%d", labels["pool"], b.nodes)
		b.nodes++
		kinds, err := node.Devices(kind)
		if err != nil {
			b.t.Fatal(err)
		}
		one, err := node.New(node.Config{
			Name: name, Dir: filepath.Join(b.dir, name), Secrets: secrets, Gossip: "127.0.0.1:0", Link: "127.0.0.1:0", Join: b.gossip,
			Devices: kinds, Labels: labels, Logger: slog.New(slog.DiscardHandler),
			Library: func(dir string) *weights.Library { return weights.NewLibrary(dir) },
		})
		if err != nil {
			b.t.Fatal(err)
		}
		ctx, stop := context.WithCancel(context.Background())
		var running sync.WaitGroup
		running.Go(func() {
			if err := one.Run(ctx); err != nil && ctx.Err() == nil {
				b.t.Errorf("%s: %v", name, err)
			}
		})
		b.t.Cleanup(func() {
			stop()
			running.Wait()
			_ = one.Close() // its peers are going too
		})
	}
}

// until waits for the cluster to come to a state.
func (b *bench) until(what string, holds func(*api.ClusterState) bool) {
	b.t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(patience)
	for {
		ctx, stop := context.WithTimeout(context.Background(), 10*time.Second)
		s, err := b.client.Cluster(ctx)
		stop()
		if err == nil && holds(s) {
			return
		}
		select {
		case <-tick.C:
		case <-limit:
			b.t.Fatalf("%s: not within %v: %+v, %v", what, patience, s, err)
		}
	}
}

// cost is what the heads have used.
type cost struct {
	processor time.Duration
	resident  int64 // bytes
}

func (c cost) minus(before cost) cost {
	return cost{c.processor - before.processor, c.resident - before.resident}
}

// heads' cost so far, from /proc.
func (b *bench) cost() cost {
	b.t.Helper()
	var sum cost
	for _, command := range b.heads {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", command.Process.Pid))
		if err != nil {
			b.t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(data), ") ")
		fields := strings.Fields(rest)
		at := func(i int) int64 { // numbered as in proc(5), from 3
			n, err := strconv.ParseInt(fields[i-3], 10, 64)
			if err != nil {
				b.t.Fatal(err)
			}
			return n
		}
		sum.processor += time.Duration(at(14)+at(15)) * time.Second / hertz
		sum.resident += at(24) * int64(os.Getpagesize())
	}
	return sum
}
