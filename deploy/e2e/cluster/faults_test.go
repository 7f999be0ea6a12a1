//go:build e2e && unix

package cluster

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"manta/head/api"
	"manta/head/client"
)

var (
	apart   = flag.String("device-processes", "auto", "of the nodes: where ranks run")
	rounds  = flag.Int("rounds", 1, "how often each fault is made")
	streams = flag.Int("streams", 6, "streams that run meanwhile")
	tokens  = flag.Int("tokens", 60, "tokens of each stream")
	logs    = flag.String("logs", "", "folder for the members' logs")
	strict  = flag.Bool("strict", false, "bounds on times hold, on a calm machine; else they are told")
)

// story is the text of one stream and its longest pause.
type story struct {
	text  string
	pause time.Duration
	err   error
}

// tell streams one request through a head, and through the others if that dies.
// each is called at every piece.
func (b *bench) tell(head, seed int, each func()) story {
	c := b.client(head)
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	var s story
	var text strings.Builder
	last := time.Now()
	temperature, n, fixed := 0.8, *tokens, int64(seed)
	_, s.err = c.Complete(ctx, "smollm2", fmt.Sprintf("Story number %d. Once upon a time", seed),
		client.Options{Temperature: &temperature, Seed: &fixed, MaxTokens: &n, IgnoreEOS: true},
		func(p client.Piece) error {
			if text.Len() > 0 {
				s.pause = max(s.pause, time.Since(last))
			}
			each()
			last = time.Now()
			text.WriteString(p.Text)
			return nil
		})
	s.text = text.String()
	return s
}

// all runs the streams together, spread over the heads; broken is called once all
// of them have begun.
func (b *bench) all(broken func()) []story { return b.play(broken, func() {}) }

// play also calls mended: once every stream has given something since, or has ended.
func (b *bench) play(broken, mended func()) []story {
	stories := make([]story, *streams)
	var begun, again, ended sync.WaitGroup
	var done atomic.Bool // what is broken is broken
	begun.Add(*streams)
	again.Add(*streams)
	for i := range stories {
		ended.Go(func() {
			var first, next sync.Once
			each := func() {
				first.Do(begun.Done)
				if done.Load() {
					next.Do(again.Done)
				}
			}
			stories[i] = b.tell(i%headCount, i, each)
			first.Do(begun.Done) // also when it failed before its first piece
			next.Do(again.Done)
		})
	}
	begun.Wait()
	broken()
	done.Store(true)
	again.Wait()
	mended()
	ended.Wait()
	return stories
}

var placed = regexp.MustCompile(`^([01])\.0 on (node\d+)-`)

// rank gives the name of the node that runs a stage of the replica.
func (b *bench) rank(stage int) string {
	b.t.Helper()
	s := b.until("a ready replica", ready)
	name := b.ranks(s)[stage]
	if name == "" {
		b.t.Fatalf("no stage %d in %v", stage, s.Deployments[0].Replicas[0].Shards)
	}
	return name
}

// ranks gives the names of the nodes that run the two stages, as one state tells them.
func (b *bench) ranks(s *api.ClusterState) (names [2]string) {
	for _, shard := range s.Deployments[0].Replicas[0].Shards {
		if m := placed.FindStringSubmatch(shard); m != nil {
			names[m[1][0]-'0'] = m[2]
		}
	}
	return names
}

func ready(s *api.ClusterState) bool {
	return len(s.Deployments) == 1 && s.Deployments[0].Ready == 1
}

// other gives a head that does not lead, and leader the one that does.
func (b *bench) leader() (leader, other string) {
	b.t.Helper()
	s := b.until("a leader", func(s *api.ClusterState) bool { return s.Leader != "" })
	leader = nameOf(s.Leader)
	for i := range headCount {
		if other = fmt.Sprint("head", i); other != leader {
			return leader, other
		}
	}
	return leader, ""
}

// nameOf is the stable name in an id.
func nameOf(id string) string { return id[:max(0, strings.LastIndexByte(id, '-'))] }

// apart makes sure that the stages are on two nodes: after many faults, while nodes
// that were out of reach are avoided, both may have found their place on one.
func (b *bench) apart() {
	b.t.Helper()
	for {
		s := b.until("a ready replica", ready)
		names := b.ranks(s)
		if names[0] != names[1] {
			return
		}
		mend := b.kill(names[0])
		b.until("another epoch", restarted(s.Deployments[0].Replicas[0].Epoch))
		mend()
	}
}

// restarted tells that the replica is ready in a later epoch.
func restarted(epoch uint64) func(*api.ClusterState) bool {
	return func(s *api.ClusterState) bool { return ready(s) && s.Deployments[0].Replicas[0].Epoch > epoch }
}

func (b *bench) epoch() uint64 {
	b.t.Helper()
	return b.until("a ready replica", ready).Deployments[0].Replicas[0].Epoch
}

// A fault breaks something, proves that it is broken, and gives how to mend it.
type fault struct {
	name  string
	needs string // "" or "network"
	// epoch: the group starts again; leader: another head leads. Both are waited for
	// before it is mended: streams may have been over already when it was made.
	epoch, leader bool
	// unseen: while no request runs; one more is sent for it to be seen.
	unseen bool
	make   func(b *bench) (mend func())
}

func (b *bench) kill(name string) (mend func()) {
	b.signal(name, syscall.SIGKILL)
	return func() { b.Start(name) }
}

func (b *bench) freeze(name string) (mend func()) {
	b.signal(name, syscall.SIGSTOP)
	return func() { b.signal(name, syscall.SIGCONT) }
}

func both(first, second func()) func() { return func() { first(); second() } }

var faults = []fault{
	{name: "SIGKILL of the leading head", leader: true, make: func(b *bench) func() { leader, _ := b.leader(); return b.kill(leader) }},
	{name: "SIGKILL of a following head", make: func(b *bench) func() { _, other := b.leader(); return b.kill(other) }},
	{name: "SIGSTOP, later SIGCONT, of the leading head", leader: true, make: func(b *bench) func() { leader, _ := b.leader(); return b.freeze(leader) }},
	{name: "SIGSTOP, later SIGCONT, of a following head", make: func(b *bench) func() { _, other := b.leader(); return b.freeze(other) }},
	{name: "SIGKILL of the driver's node", epoch: true, make: func(b *bench) func() { return b.kill(b.rank(0)) }},
	{name: "SIGKILL of the other stage's node", epoch: true, make: func(b *bench) func() { return b.kill(b.rank(1)) }},
	{name: "SIGSTOP, later SIGCONT, of the driver's node", epoch: true, make: func(b *bench) func() { return b.freeze(b.rank(0)) }},
	{name: "SIGSTOP, later SIGCONT, of the other stage's node", epoch: true, make: func(b *bench) func() { return b.freeze(b.rank(1)) }},
	{name: "SIGKILL of the leading head and the driver's node", epoch: true, leader: true, make: func(b *bench) func() {
		leader, _ := b.leader()
		driver := b.rank(0)
		return both(b.kill(leader), b.kill(driver))
	}},
	{name: "SIGKILL of both stages' nodes", epoch: true, make: func(b *bench) func() {
		driver, other := b.rank(0), b.rank(1)
		return both(b.kill(driver), b.kill(other))
	}},
	{name: "SIGSTOP, later SIGCONT, of a following head and the other stage's node", epoch: true, make: func(b *bench) func() {
		_, head := b.leader()
		node := b.rank(1)
		return both(b.freeze(head), b.freeze(node))
	}},
	{name: "link between the stages' nodes cut", needs: "network", epoch: true, unseen: true, make: func(b *bench) func() { return b.network.cut(b.rank(0), b.rank(1)) }},
	{name: "driver's node cut off", needs: "network", epoch: true, make: func(b *bench) func() { return b.network.isolate(b.rank(0)) }},
	{name: "leading head cut off", needs: "network", leader: true, make: func(b *bench) func() { leader, _ := b.leader(); return b.network.isolate(leader) }},
}

// deploy asks for the small model in two stages on two nodes.
func (b *bench) deploy() { b.deployWith(nil) }

func (b *bench) deployWith(settings map[string]any) {
	b.t.Helper()
	b.settle()
	c := b.client(0)
	defer c.Close()
	body := map[string]any{
		"model": "smollm2", "pipeline_parallel_size": 2, "strategy": "spread",
		"max_model_len": 512, "max_num_seqs": 16, "max_num_batched_tokens": 64,
	}
	maps.Copy(body, settings)
	b.await("the deployment", func() (*api.ClusterState, error) {
		return &api.ClusterState{}, c.Post(b.t.Context(), "/api/cluster/deployments", body, nil)
	}, func(*api.ClusterState) bool { return true })
	b.until("a ready replica", ready)
}

// whole waits until every head answers and knows the leader, and the nodes are there.
func (b *bench) whole() {
	b.t.Helper()
	for i := range headCount {
		b.untilOf(i, "heads and nodes", func(s *api.ClusterState) bool {
			return !s.Stale && s.Leader != "" && len(s.Heads) == headCount && len(s.Nodes) >= nodeCount
		})
	}
}

// Whatever dies, stops or is cut off, as long as a quorum of heads and a place for
// the lost shard remain: no stream fails, and each gives the tokens of the
// undisturbed run. What was stopped or cut off comes back while streams run, and
// changes nothing any more.
func TestKillMatrix(t *testing.T) {
	n := newNetwork(t)
	b := newBenchOn(t, n, "cpu")
	b.deploy()
	undisturbed := b.all(func() {})
	for i, s := range undisturbed {
		if s.err != nil {
			t.Fatalf("stream %d, undisturbed: %v", i, s.err)
		}
	}
	for _, fault := range faults {
		if fault.needs == "network" && n == nil {
			continue
		}
		t.Run(fault.name, func(t *testing.T) {
			var pauses []time.Duration
			for round := range *rounds {
				b.whole()
				b.apart()
				epoch := b.epoch()
				leader, _ := b.leader()
				var mend func()
				stories := b.play(func() { mend = fault.make(b) }, func() {
					if fault.leader {
						b.newLeader(leader, time.Now())
					}
					if fault.unseen { // what was on its way may be all that the streams have had since
						if s := b.tell(0, 0, func() {}); s.err != nil || s.text != undisturbed[0].text {
							t.Errorf("round %d, one more stream: %q, undisturbed %q, %v", round, s.text, undisturbed[0].text, s.err)
						}
					}
					if fault.epoch {
						b.until("another epoch", func(s *api.ClusterState) bool {
							return len(s.Deployments) == 1 && len(s.Deployments[0].Replicas) == 1 && s.Deployments[0].Replicas[0].Epoch > epoch
						})
					}
					mend()
				})
				var longest time.Duration
				for i, s := range stories {
					longest = max(longest, s.pause)
					if s.err != nil {
						t.Errorf("round %d stream %d: %v", round, i, s.err)
					} else if s.text != undisturbed[i].text {
						t.Errorf("round %d stream %d: %q, undisturbed %q", round, i, s.text, undisturbed[i].text)
					}
				}
				if pauses = append(pauses, longest); longest > goal {
					t.Logf("round %d, over at %s, had a pause of %v", round, time.Now().UTC().Format(time.TimeOnly), longest)
				}
				if after := b.epoch(); fault.epoch && after <= epoch {
					t.Errorf("round %d: the group did not start again: epoch %d", round, after)
				} else if !fault.epoch && after != epoch {
					t.Errorf("round %d: epoch %d became %d without need", round, epoch, after)
				}
			}
			t.Logf("| %s | %d | %v | %v |", fault.name, *rounds, percentile(pauses, 50), percentile(pauses, 99))
		})
	}
}

// goal is how long a stream may pause where a place has the weights. A longer pause
// is told, so that the members' logs can be read at its time.
const goal = 5 * time.Second

// percentile gives the least value that so many percent are not above.
func percentile(values []time.Duration, percent int) time.Duration {
	sorted := slices.Sorted(slices.Values(values))
	if len(sorted) == 0 {
		return 0
	}
	return sorted[(len(sorted)*percent+99)/100-1].Round(10 * time.Millisecond)
}
