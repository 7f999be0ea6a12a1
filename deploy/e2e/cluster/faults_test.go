//go:build e2e && unix

package cluster

import (
	"context"
	"flag"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"manta/head/api"
	"manta/head/client"
)

var (
	rounds  = flag.Int("rounds", 1, "how often each fault is made")
	streams = flag.Int("streams", 6, "streams that run meanwhile")
	tokens  = flag.Int("tokens", 60, "tokens of each stream")
)

// story is the text of one stream and its longest pause.
type story struct {
	text  string
	pause time.Duration
	err   error
}

// tell streams one request through a head, and through the others if that dies.
func (b *bench) tell(head, seed int, begun func()) story {
	c := b.client(head)
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	var s story
	var text strings.Builder
	last := time.Now()
	temperature, n, fixed := 0.8, *tokens, int64(seed)
	_, s.err = c.Complete(ctx, "", fmt.Sprintf("Story number %d. Once upon a time", seed),
		client.Options{Temperature: &temperature, Seed: &fixed, MaxTokens: &n, IgnoreEOS: true},
		func(p client.Piece) error {
			if text.Len() == 0 {
				begun()
			} else {
				s.pause = max(s.pause, time.Since(last))
			}
			last = time.Now()
			text.WriteString(p.Text)
			return nil
		})
	s.text = text.String()
	return s
}

// all runs the streams together, spread over the heads; broken is called once all
// of them have begun.
func (b *bench) all(broken func()) []story {
	stories := make([]story, *streams)
	var begun, ended sync.WaitGroup
	begun.Add(*streams)
	for i := range stories {
		ended.Go(func() {
			var once sync.Once
			done := func() { once.Do(begun.Done) }
			stories[i] = b.tell(i%headCount, i, done)
			done() // also when it failed before its first piece
		})
	}
	begun.Wait()
	broken()
	ended.Wait()
	return stories
}

var placed = regexp.MustCompile(`^(\d+)\.0 on (node\d+)-`)

// rank gives the name of the node that runs a stage of the replica.
func (b *bench) rank(stage int) string {
	b.t.Helper()
	s := b.until("a ready replica", ready)
	for _, shard := range s.Deployments[0].Replicas[0].Shards {
		if m := placed.FindStringSubmatch(shard); m != nil && m[1] == fmt.Sprint(stage) {
			return m[2]
		}
	}
	b.t.Fatalf("no stage %d in %v", stage, s.Deployments[0].Replicas[0].Shards)
	return ""
}

func ready(s *api.ClusterState) bool {
	return len(s.Deployments) == 1 && s.Deployments[0].Ready == 1
}

// Whatever dies, as long as a quorum of heads and a place for the lost shard
// remain: no stream fails, and each gives the tokens of the undisturbed run.
func TestKillMatrix(t *testing.T) {
	b := newBench(t)
	b.until("heads and nodes", func(s *api.ClusterState) bool { return len(s.Heads) == headCount && len(s.Nodes) == nodeCount })
	c := b.client(0)
	defer c.Close()
	body := map[string]any{
		"model": "smollm2", "pipeline_parallel_size": 2, "strategy": "spread",
		"max_model_len": 512, "max_num_seqs": 16, "max_num_batched_tokens": 64,
	}
	if err := c.Post(t.Context(), "/api/cluster/deployments", body, nil); err != nil {
		t.Fatal(err)
	}
	b.until("a ready replica", ready)
	undisturbed := b.all(func() {})
	for i, s := range undisturbed {
		if s.err != nil {
			t.Fatalf("stream %d, undisturbed: %v", i, s.err)
		}
	}
	faults := []struct {
		name   string
		signal syscall.Signal
		victim func(round int) string
	}{
		{"kill the driver's node", syscall.SIGKILL, func(int) string { return b.rank(0) }},
		{"kill the other stage's node", syscall.SIGKILL, func(int) string { return b.rank(1) }},
		{"stop the driver's node, let it go later", syscall.SIGSTOP, func(int) string { return b.rank(0) }},
		{"stop the other stage's node, let it go later", syscall.SIGSTOP, func(int) string { return b.rank(1) }},
		{"kill a head (0)", syscall.SIGKILL, func(int) string { return "head0" }},
		{"kill a head (1)", syscall.SIGKILL, func(int) string { return "head1" }},
		{"kill a head (2)", syscall.SIGKILL, func(int) string { return "head2" }},
	}
	for _, fault := range faults {
		t.Run(fault.name, func(t *testing.T) {
			var longest time.Duration
			for round := range *rounds {
				victim := fault.victim(round)
				stories := b.all(func() { b.signal(victim, fault.signal) })
				for i, s := range stories {
					longest = max(longest, s.pause)
					if s.err != nil {
						t.Errorf("round %d stream %d: %v", round, i, s.err)
					} else if s.text != undisturbed[i].text {
						t.Errorf("round %d stream %d: %q, undisturbed %q", round, i, s.text, undisturbed[i].text)
					}
				}
				if fault.signal == syscall.SIGSTOP {
					b.signal(victim, syscall.SIGCONT)
				} else {
					b.start(victim)
				}
				b.until("a ready replica", ready)
				b.until("every node", func(s *api.ClusterState) bool { return len(s.Nodes) >= nodeCount })
			}
			t.Logf("%d rounds of %d streams, longest pause %v", *rounds, *streams, longest.Round(10*time.Millisecond))
		})
	}
}
