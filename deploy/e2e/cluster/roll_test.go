//go:build e2e && unix

package cluster

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"manta/head/api"
)

// load is streams that follow each other without end, spread over the heads.
type load struct {
	pieces  atomic.Int64
	streams atomic.Int64
}

// rate waits until so many further streams have ended and gives the pieces that
// came a second meanwhile.
func (l *load) rate(b *bench, streams int64) float64 {
	b.t.Helper()
	since, pieces, until := time.Now(), l.pieces.Load(), l.streams.Load()+streams
	b.until("streams", func(*api.ClusterState) bool { return l.streams.Load() >= until })
	return float64(l.pieces.Load()-pieces) / time.Since(since).Seconds()
}

// under does something while load runs. Every stream must end with the text of the
// undisturbed run; it gives how many there were, and the longest pause.
func (b *bench) under(undisturbed []story, do func(l *load)) (int64, time.Duration) {
	b.t.Helper()
	var l load
	var stop atomic.Bool
	var running sync.WaitGroup
	longest := make([]time.Duration, len(undisturbed))
	for i := range undisturbed {
		running.Go(func() {
			for n := 0; !stop.Load(); n++ {
				s := b.tell((i+n)%headCount, i, func() { l.pieces.Add(1) })
				longest[i] = max(longest[i], s.pause)
				if s.err != nil {
					b.t.Errorf("stream %d of seed %d: %v", n, i, s.err)
				} else if s.text != undisturbed[i].text {
					b.t.Errorf("stream %d of seed %d: %q, undisturbed %q", n, i, s.text, undisturbed[i].text)
				}
				l.streams.Add(1)
			}
		})
	}
	defer func() {
		stop.Store(true)
		running.Wait()
	}()
	l.rate(b, 1)
	do(&l)
	stop.Store(true)
	running.Wait()
	var pause time.Duration
	for _, p := range longest {
		pause = max(pause, p)
	}
	return l.streams.Load(), pause
}

// All heads and all nodes are restarted one after the other under load, as a
// StatefulSet's rollout does: no stream fails, each has its own tokens.
func TestRollingRestart(t *testing.T) {
	b := newBench(t)
	b.serve(2, 2)
	undisturbed := b.all(func() {})
	for range *rounds {
		n, pause := b.under(undisturbed, func(*load) {
			for i := range nodeCount {
				name := fmt.Sprint("node", i)
				b.stop(name)
				b.Start(name)
				b.until(name+" back", func(s *api.ClusterState) bool {
					n, ok := node(s, name)
					return ok && n.Status == "Ready" && len(s.Deployments) == 1 && s.Deployments[0].Ready >= 2
				})
			}
			for i := range headCount {
				name := fmt.Sprint("head", i)
				b.stop(name)
				b.Start(name)
				b.untilReady(i)
			}
		})
		t.Logf("%d streams while %d nodes and %d heads restarted, longest pause %v", n, nodeCount, headCount, pause.Round(10*time.Millisecond))
	}
}

// A deployment is changed under load: its replicas are made anew one after the
// other, and at no time is none ready.
func TestRollingUpdateUnderLoad(t *testing.T) {
	b := newBench(t)
	b.serve(2, 2)
	undisturbed := b.all(func() {})
	for round := range *rounds {
		n, pause := b.under(undisturbed, func(*load) {
			b.manta("serve", "smollm2", "--replicas", "2", "--max-model-len", fmt.Sprint(400-round), "--max-num-seqs", "16",
				"--max-num-batched-tokens", "64", "--url", "http://"+b.API[round%headCount], "--timeout", patience.String())
			s := b.readyReplicas(2)
			if d := s.Deployments[0]; d.MaxModelLen != 400-round || !d.Current() {
				t.Errorf("after the update: %+v", d)
			}
		})
		t.Logf("%d streams while 2 replicas were updated, longest pause %v", n, pause.Round(10*time.Millisecond))
	}
}

// A deployment with as many replicas as fit follows its nodes from 2 to 6 and back
// under load. On processors all nodes share two cores: the replicas follow. On
// simulated devices, which take the time of a step without computing, the rate does.
func TestScaleUnderLoad(t *testing.T) {
	for _, c := range []struct {
		devices string
		streams int // more than the replicas run at once
		atOnce  int // sequences of a replica
		follows bool
	}{{"cpu", *streams, 16, false}, {"sim:1@0.01", 24, 4, true}} {
		t.Run(c.devices, func(t *testing.T) {
			defer func(before int) { *streams = before }(*streams)
			*streams = c.streams
			b := newBenchOn(t, nil, c.devices)
			for _, name := range []string{"node2", "node3"} {
				b.until(name, func(s *api.ClusterState) bool { _, ok := node(s, name); return ok })
				b.leave(name)
			}
			b.until("two nodes", func(s *api.ClusterState) bool { return len(s.Nodes) == 2 })
			client := b.client(0)
			defer client.Close()
			body := map[string]any{
				"model": "smollm2", "replicas": "auto", "max_model_len": 512, "max_num_seqs": c.atOnce, "max_num_batched_tokens": 64,
			}
			if err := client.Post(t.Context(), "/api/cluster/deployments", body, nil); err != nil {
				t.Fatal(err)
			}
			b.readyReplicas(2)
			undisturbed := b.all(func() {})
			for range *rounds {
				n, pause := b.under(undisturbed, func(l *load) {
					two, six, again := b.twoSixTwo(l)
					t.Logf("pieces a second: %.0f on 2 nodes, %.0f on 6, %.0f on 2 again", two, six, again)
					if *strict && c.follows && (six < 2*two || again > six/2) {
						t.Errorf("the rate does not follow")
					}
				})
				t.Logf("%d streams while 2 nodes became 6 and 2 again, longest pause %v", n, pause.Round(10*time.Millisecond))
			}
		})
	}
}

// twoSixTwo makes two nodes six and two again, and gives the rates.
func (b *bench) twoSixTwo(l *load) (two, six, again float64) {
	b.t.Helper()
	enough := int64(*streams)
	two = l.rate(b, enough)
	for i := 2; i < 6; i++ {
		name := fmt.Sprint("node", i)
		if b.Member(name) != nil {
			b.Start(name)
		} else {
			b.node(name)
		}
	}
	b.readyReplicas(6)
	six = l.rate(b, enough)
	var leaving sync.WaitGroup
	for i := 2; i < 6; i++ {
		leaving.Go(func() { b.leave(fmt.Sprint("node", i)) })
	}
	leaving.Wait()
	b.until("two nodes", func(s *api.ClusterState) bool { return len(s.Nodes) == 2 })
	b.readyReplicas(2)
	return two, six, l.rate(b, enough)
}
