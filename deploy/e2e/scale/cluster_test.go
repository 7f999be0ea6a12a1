//go:build e2e && linux

package scale

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"manta/head/api"
	"manta/head/client"
	"manta/internal/processtest"
	"manta/internal/trust"
	"manta/node"
	"manta/runtime/weights"
)

const (
	devices  = 8 // a node
	patience = processtest.Patience
)

// bench is heads as processes, and nodes in this one.
type bench struct {
	*processtest.Cluster
	t      *testing.T
	model  string
	urls   []string
	client *client.Client
	nodes  int
}

func start(t *testing.T) *bench {
	t.Helper()
	b := &bench{Cluster: processtest.NewCluster(t, *headCount), t: t, model: llama8B(t)}
	for i, address := range b.API {
		b.Head(i, "--stream-interval", fmt.Sprint(*every))
		b.urls = append(b.urls, "http://"+address)
	}
	b.client = client.New("", b.urls...)
	t.Cleanup(b.client.Close)
	return b
}

// add runs so many more nodes on simulated devices.
func (b *bench) add(n int, kind string, labels map[string]string) {
	b.t.Helper()
	secrets, err := trust.LoadSecrets(b.Secret)
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
			Name: name, Dir: b.Data(name), Secrets: secrets, Gossip: "127.0.0.1:0", Link: "127.0.0.1:0", Join: b.Gossip,
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
	sleeps    int64 // of threads: how often one waited for something
}

func (c cost) minus(before cost) cost {
	return cost{c.processor - before.processor, c.resident - before.resident, c.sleeps - before.sleeps}
}

// heads' cost so far.
func (b *bench) cost() cost {
	b.t.Helper()
	var sum cost
	for i := range *headCount {
		pid := b.Member(processtest.HeadName(i)).Pid()
		var used unix.Timespec // clock_getcpuclockid(3): /proc tells but hundredths of a second
		if err := unix.ClockGettime(int32(^pid<<3|2), &used); err != nil {
			b.t.Fatal(err)
		}
		sum.processor += time.Duration(used.Nano())
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
		if err != nil {
			b.t.Fatal(err)
		}
		pages, err := strconv.ParseInt(strings.Fields(string(data))[1], 10, 64)
		if err != nil {
			b.t.Fatal(err)
		}
		sum.resident += pages * int64(os.Getpagesize())
		sum.sleeps += b.sleeps(i)
	}
	return sum
}

// sleeps of a head's threads so far.
func (b *bench) sleeps(head int) (sum int64) {
	b.t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", b.Member(processtest.HeadName(head)).Pid()))
	if err != nil {
		b.t.Fatal(err)
	}
	for _, name := range threads {
		data, err := os.ReadFile(name)
		if err != nil {
			continue // the thread has ended
		}
		_, rest, _ := strings.Cut(string(data), "\nvoluntary_ctxt_switches:")
		text, _, _ := strings.Cut(rest, "\n")
		n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
		if err != nil {
			b.t.Fatalf("%s: %v", name, err)
		}
		sum += n
	}
	return sum
}
