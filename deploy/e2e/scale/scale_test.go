//go:build e2e && linux

package scale

import (
	"context"
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"text/tabwriter"
	"time"

	"manta/head/api"
	"manta/head/client"
)

var (
	sizes   = flag.String("nodes", "1,4", "how many nodes there are, one measurement each, growing")
	streams = flag.Int("streams", 128, "streams that are open")
	speed   = flag.Float64("speed", 0.04, "of a simulated device, in H200s: a step of an 8B model takes 4.2 ms over it")
	length  = flag.Duration("length", 5*time.Second, "of each measurement")
)

// figures are what one size came to.
type figures struct {
	nodes        int
	idle         float64 // part of a processor, all heads
	perToken     time.Duration
	tokensPerSec float64
	perMB        time.Duration
	memory       int64 // bytes a stream
	first        []time.Duration
}

// What heads cost, from one node on: the table of `make bench-scale`.
func TestScale(t *testing.T) {
	b := start(t)
	b.run()
	b.until("three heads", func(s *api.ClusterState) bool { return len(s.Heads) == headCount })
	// Requests to this replica take a step that hardly takes time: what they wait is
	// the cluster's own.
	b.add(1, fmt.Sprintf("sim:%d", devices), map[string]string{"pool": "probe"})
	b.deploy("probe", 1, 16)
	var all []figures
	for _, text := range strings.Split(*sizes, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < b.nodes-1 {
			t.Fatalf("-nodes %s: give growing numbers", *sizes)
		}
		b.add(n-(b.nodes-1), fmt.Sprintf("sim:%d@%g", devices, *speed), map[string]string{"pool": "load"})
		b.deploy("load", n*devices, max(4, 2**streams/(n*devices)))
		f := b.measure(n)
		t.Logf("%d nodes: %+v first token p50 %v", n, f.perToken, at(f.first, 0.5))
		all = append(all, f)
	}
	report(all)
}

func (b *bench) deploy(name string, replicas, sequences int) {
	b.t.Helper()
	body := map[string]any{
		"name": name, "model": b.model, "load_format": "dummy", "replicas": replicas,
		"max_model_len": 4096, "max_num_seqs": sequences, "node_selector": map[string]string{"pool": name},
	}
	if err := b.client.Post(b.t.Context(), "/api/cluster/deployments", body, nil); err != nil {
		b.t.Fatal(err)
	}
	b.until(fmt.Sprintf("%d replicas of %s", replicas, name), func(s *api.ClusterState) bool {
		i := slices.IndexFunc(s.Deployments, func(d api.Deployment) bool { return d.Name == name })
		return i >= 0 && s.Deployments[i].Ready == replicas && s.Deployments[i].Wanted == replicas
	})
}

func pause(d time.Duration) { <-time.After(d) }

func (b *bench) measure(n int) figures {
	f := figures{nodes: n}
	pause(2 * time.Second)
	before := b.cost()
	pause(*length)
	f.idle = b.cost().minus(before).processor.Seconds() / length.Seconds()
	b.t.Logf("%d nodes: idle %.3f of a processor", n, f.idle)

	resident := b.cost().resident
	ctx, stop := context.WithCancel(b.t.Context())
	defer stop()
	var tokens atomic.Int64
	var begun, ended sync.WaitGroup
	begun.Add(*streams)
	for i := range *streams {
		ended.Go(func() {
			c := client.New("", b.urls[i%headCount])
			defer c.Close()
			var once sync.Once
			many := 3900
			_, err := c.Complete(ctx, "load", fmt.Sprint("stream ", i), client.Options{MaxTokens: &many, IgnoreEOS: true}, func(client.Piece) error {
				tokens.Add(1)
				once.Do(begun.Done)
				return nil
			})
			if ctx.Err() == nil {
				b.t.Errorf("stream %d: %v", i, err)
			}
			once.Do(begun.Done)
		})
	}
	begun.Wait()
	pause(time.Second)
	before, counted, from := b.cost(), tokens.Load(), time.Now()
	pause(*length)
	used, relayed, took := b.cost().minus(before), tokens.Load()-counted, time.Since(from)
	work := used.processor - time.Duration(f.idle*float64(took))
	f.tokensPerSec = float64(relayed) / took.Seconds()
	f.perToken = work / time.Duration(max(relayed, 1))
	f.memory = (b.cost().resident - resident) / int64(*streams)
	f.first = b.probe()
	stop()
	ended.Wait()
	f.perMB = b.prompts(f.idle)
	return f
}

// probe asks for single tokens while the streams run, and gives what the cluster
// adds to the device's time.
func (b *bench) probe() []time.Duration {
	var times []time.Duration
	one := 1
	for i := range 60 {
		c := client.New("", b.urls[i%headCount])
		start := time.Now()
		_, err := c.Complete(b.t.Context(), "probe", "x", client.Options{MaxTokens: &one, IgnoreEOS: true}, func(client.Piece) error { return nil })
		times = append(times, time.Since(start))
		c.Close()
		if err != nil {
			b.t.Fatalf("probe: %v", err)
		}
		pause(10 * time.Millisecond)
	}
	slices.Sort(times)
	return times
}

// prompts sends long prompts and gives the heads' processor time for a MB.
func (b *bench) prompts(idle float64) time.Duration {
	one := 1
	text := strings.Repeat("word ", 600)
	before, from, bytes := b.cost(), time.Now(), 0
	for time.Since(from) < *length {
		if _, err := b.client.Complete(b.t.Context(), "probe", text, client.Options{MaxTokens: &one, IgnoreEOS: true}, func(client.Piece) error { return nil }); err != nil {
			b.t.Fatalf("prompt: %v", err)
		}
		bytes += len(text)
	}
	used := b.cost().minus(before).processor - time.Duration(idle*float64(time.Since(from)))
	return time.Duration(float64(used) / (float64(bytes) / 1e6))
}

func at(times []time.Duration, part float64) time.Duration {
	return times[int(part*float64(len(times)-1))]
}

func report(all []figures) {
	table := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintf(table, "nodes (simulated, %d devices each)\tidle, of a processor\tprocessor a relayed token\ttokens/s\tprocessor a MB of prompt\tmemory a stream\tone token through the cluster p50\tp99\n", devices)
	for _, f := range all {
		fmt.Fprintf(table, "%d\t%.3f\t%.2f µs\t%.0f\t%.1f ms\t%.0f KiB\t%.2f ms\t%.2f ms\n", f.nodes, f.idle, float64(f.perToken.Nanoseconds())/1e3,
			f.tokensPerSec, f.perMB.Seconds()*1e3, float64(f.memory)/1024, at(f.first, 0.5).Seconds()*1e3, at(f.first, 0.99).Seconds()*1e3)
	}
	fmt.Fprintf(table, "growth\t%+.0f%%\t%+.0f%%\t\t%+.0f%%\n", growth(all, func(f figures) float64 { return f.idle }),
		growth(all, func(f figures) float64 { return float64(f.perToken) }), growth(all, func(f figures) float64 { return float64(f.perMB) }))
	table.Flush()
}

// growth is from the first size to the last, in percent.
func growth(all []figures, of func(figures) float64) float64 {
	return 100 * (of(all[len(all)-1])/of(all[0]) - 1)
}
