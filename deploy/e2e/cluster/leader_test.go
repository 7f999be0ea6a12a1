//go:build e2e && unix

package cluster

import (
	"context"
	"flag"
	"fmt"
	"sync"
	"testing"
	"time"

	"manta/head/api"
	"manta/head/client"
)

var kills = flag.Int("kills", 3, "how often the leading head is killed in a row")

// writer sends commands without end and remembers which were accepted.
type writer struct {
	accepted []string // names of deployments
	refused  int
}

// write asks for deployments of no replica, one after the other, until ctx ends.
func (w *writer) write(ctx context.Context, c *client.Client) {
	for i := 0; ctx.Err() == nil; i++ {
		name := fmt.Sprint("written-", i)
		asked, stop := context.WithTimeout(ctx, 10*time.Second)
		err := c.Post(asked, "/api/cluster/deployments", map[string]any{"model": "smollm2", "name": name, "replicas": 0, "max_model_len": 512}, nil)
		stop()
		if err == nil {
			w.accepted = append(w.accepted, name)
		} else {
			w.refused++ // its outcome is unknown: it may have been committed
		}
	}
}

// newLeader waits until a head knows of another leader, and tells how long after
// since it has been elected.
func (b *bench) newLeader(old string, since time.Time) time.Duration {
	b.t.Helper()
	i := 0
	b.await("another leader", func() (*api.ClusterState, error) {
		i++
		return b.stateOf(i%headCount, 200*time.Millisecond) // it answers as soon as there is one
	}, func(s *api.ClusterState) bool { return !s.Stale && s.Leader != "" && nameOf(s.Leader) != old })
	return time.Since(since)
}

// The leading head is killed again and again: no node starts its ranks anew, no
// accepted command is lost, and each time another head leads soon.
func TestLeaderKills(t *testing.T) {
	b := newBench(t)
	b.deploy()
	epoch := b.epoch()
	ctx, stop := context.WithCancel(t.Context())
	var writing sync.WaitGroup
	writers := make([]writer, 1)
	for i := range writers {
		c := b.client(i)
		defer c.Close()
		writing.Go(func() { writers[i].write(ctx, c) })
	}
	var elections []time.Duration
	for range *kills {
		b.whole()
		leader, _ := b.leader()
		since := time.Now()
		mend := b.kill(leader)
		elections = append(elections, b.newLeader(leader, since))
		mend()
	}
	b.whole()
	stop()
	writing.Wait()
	for head := range headCount {
		s := b.untilOf(head, "the newest state", func(s *api.ClusterState) bool { return !s.Stale })
		known := map[string]bool{}
		for _, d := range s.Deployments {
			known[d.Name] = true
		}
		for _, name := range writers[0].accepted {
			if !known[name] {
				t.Errorf("head %d has lost %s, which was accepted", head, name)
			}
		}
	}
	s := b.until("the replica", func(s *api.ClusterState) bool { d := ofModel(s); return d != nil && d.Ready == 1 })
	if d := ofModel(s); d.Replicas[0].Epoch != epoch {
		t.Errorf("the replica started anew: %+v, epoch %d before", d.Replicas, epoch)
	}
	for i := range nodeCount {
		name := fmt.Sprint("node", i)
		select {
		case <-b.Member(name).Ended:
			t.Errorf("%s ended", name)
		default:
		}
	}
	if len(writers[0].accepted) == 0 {
		t.Error("no command was accepted at all")
	}
	t.Logf("%d commands accepted, %d of unknown outcome", len(writers[0].accepted), writers[0].refused)
	t.Logf("| another head leads | %d | %v | %v |", *kills, percentile(elections, 50), percentile(elections, 99))
}

// ofModel is the deployment that the streams use.
func ofModel(s *api.ClusterState) *api.Deployment {
	for i := range s.Deployments {
		if d := &s.Deployments[i]; d.Wanted > 0 {
			return d
		}
	}
	return nil
}
