package dispatch_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"manta/head/dispatch"
	"manta/head/dispatch/dispatchtest"
	"manta/head/route"
	"manta/head/state"
	"manta/node/wire"
	"manta/runtime/kv"
)

// numbered gives a request an id of its own beyond 255.
func (b *bench) numbered(n, tokens int) dispatch.Request {
	var id wire.RequestID
	binary.BigEndian.PutUint32(id[:], uint32(n))
	return requested(id, tokens)
}

// firstToken reads a stream to its end and gives the time to its first event.
func firstToken(t *testing.T, s *dispatchtest.Reader) time.Duration {
	start, first := time.Now(), time.Duration(-1)
	defer s.Close()
	for {
		if _, err := s.Next(t.Context()); err != nil {
			return first
		}
		if first < 0 {
			first = time.Since(start)
		}
	}
}

func p99(times []time.Duration) time.Duration {
	slices.Sort(times)
	return times[len(times)*99/100-1]
}

// steady sends a key's requests at an even rate and gives their times to first token.
func steady(t *testing.T, b *bench, from, n int, every time.Duration) []time.Duration {
	var all sync.WaitGroup
	times := make([]time.Duration, n)
	for i := range n {
		r := b.numbered(from+i, 10)
		r.Key = "steady"
		s := submit(t, b, r)
		all.Go(func() { times[i] = firstToken(t, s) })
		<-time.After(every)
	}
	all.Wait()
	return times
}

// A key that floods the queue with a hundred times its share takes nothing from
// another: that one's time to first token at p99 stays within 1.2 times what it is
// alone at the same load, little of its share or nearly all. What the flood leaves free
// for that is not more than that one's bursts: four fifths of the places are in use.
func TestFloodOfAnotherKey(t *testing.T) {
	const length = 100 * time.Millisecond // of an answer to the steady key
	for _, every := range []time.Duration{50 * time.Millisecond, 19 * time.Millisecond} {
		within(t, dispatch.Config{}, func(t *testing.T, b *bench) {
			b.cluster.Step = 10 * time.Millisecond
			b.cluster.AddReplica("m", "r1", "n1", 1, 16) // 13 places and 3 to wait at; a share is 6.5
			alone := p99(steady(t, b, 1_000_000, 300, every))
			flooding := make(chan struct{})
			var all sync.WaitGroup
			var served atomic.Int64
			all.Go(func() {
				for n := 1; ; n++ {
					select {
					case <-flooding:
						return
					case <-time.After(200 * time.Microsecond):
					}
					r := b.numbered(n, 50)
					r.Key, r.Priority = "flood", 0
					if s, err := b.Submit(r); err == nil {
						all.Go(func() { firstToken(t, s); served.Add(1) })
					}
				}
			})
			<-time.After(time.Second)
			before, from := served.Load(), time.Now()
			together := p99(steady(t, b, 2_000_000, 300, every))
			places := float64(served.Load()-before)*5*length.Seconds()/time.Since(from).Seconds() + length.Seconds()/every.Seconds()
			close(flooding)
			all.Wait()
			t.Logf("a request each %v: p99 %v beside a flood, %v alone; %.1f places in use", every, together, alone, places)
			if together > alone*12/10 || places < 0.8*13 {
				t.Error("out of bounds")
			}
		})
	}
}

// Keys that all want more than there is get parts as their weights are, in tokens,
// whatever the size of their requests.
func TestPartsFollowWeights(t *testing.T) {
	within(t, dispatch.Config{}, func(t *testing.T, b *bench) {
		b.cluster.Step = time.Millisecond
		b.cluster.AddReplica("m", "r1", "n1", 1, 8)
		got := map[string]int{}
		var mu sync.Mutex
		var all sync.WaitGroup
		end := time.Now().Add(30 * time.Second)
		for i, k := range []struct {
			name   string
			weight float64
			tokens int
		}{{"a", 1, 20}, {"b", 1, 100}, {"c", 2, 50}} {
			for w := range 16 {
				all.Go(func() {
					for n := 0; time.Now().Before(end); n++ {
						r := b.numbered(i<<20|w<<12|n, k.tokens)
						r.Key, r.Weight = k.name, k.weight
						firstToken(t, submit(t, b, r))
						mu.Lock()
						got[k.name] += k.tokens + 3
						mu.Unlock()
					}
				})
			}
		}
		all.Wait()
		sum := float64(got["a"] + got["b"] + got["c"])
		for name, want := range map[string]float64{"a": 0.25, "b": 0.25, "c": 0.5} {
			if part := float64(got[name]) / sum; part < want*0.85 || part > want*1.15 {
				t.Errorf("key %s got %.2f of all tokens, want %.2f", name, part, want)
			}
		}
	})
}

// One key can't fill the queue for the others.
func TestQueueKeepsRoomForOthers(t *testing.T) {
	within(t, dispatch.Config{MaxQueue: 4}, func(t *testing.T, b *bench) {
		b.cluster.Update(func(v *state.View) { v.Deployments["m"] = state.Deployment{Name: "m"} })
		var open []*dispatchtest.Reader
		for key, want := range []int{4, 4, 4, 4, 4, 4, 4} {
			taken := 0
			for n := range 10 {
				r := b.numbered(key*100+n, 1)
				r.Key = fmt.Sprint(key)
				if s, err := b.Submit(r); err == nil {
					open, taken = append(open, s), taken+1
				}
			}
			if taken != want {
				t.Errorf("key %d has %d waiting, want %d", key, taken, want)
			}
		}
		r := b.numbered(5000, 1)
		r.Key = "late"
		s, err := b.Submit(r)
		if err != nil {
			t.Fatalf("a key that comes late finds no room: %v", err)
		}
		for _, s := range append(open, s) {
			s.Close()
		}
	})
}

// Chats of several turns over four replicas: the hit rate is within 5% of one
// replica with the same memory per user, and no replica is busier than 1.3 times
// the mean.
func TestChatsStayWhereTheirPrefixIs(t *testing.T) {
	const users, turns, blocks = 64, 8, 4096
	system := make([]int32, 64) // shared by all
	turn := func(user, n int) []int32 {
		draw := rand.New(rand.NewPCG(uint64(user), 3))
		tokens := slices.Clone(system)
		for range n + 1 {
			for range 40 + draw.IntN(80) {
				tokens = append(tokens, int32(1+draw.IntN(200)))
			}
		}
		return tokens
	}
	run := func(t *testing.T, replicas int) (rate, busiest float64) {
		within(t, dispatch.Config{}, func(t *testing.T, b *bench) {
			b.cluster.Step = 2 * time.Millisecond
			for i := range replicas {
				b.cluster.AddReplica("m", fmt.Sprint("r", i), fmt.Sprint("n", i), 1, 64/replicas)
			}
			b.cluster.Update(func(v *state.View) {
				for id, r := range v.Replicas {
					r.Blocks = []int{blocks / replicas}
					v.Replicas[id] = r
				}
			})
			var all sync.WaitGroup
			for user := range users {
				all.Go(func() {
					draw := rand.New(rand.NewPCG(uint64(user), 4))
					for n := range turns {
						<-time.After(time.Duration(draw.IntN(400)) * time.Millisecond)
						r := b.numbered(user*100+n, 10+draw.IntN(20))
						r.Prompt = turn(user, n)
						firstToken(t, submit(t, b, r))
					}
				})
			}
			all.Wait()
			// What the replicas' caches really held.
			caches, work := map[string]*route.Cached{}, map[string]float64{}
			hits, sum := 0, 0
			for _, sent := range b.cluster.Requests() {
				if caches[sent.Replica] == nil {
					caches[sent.Replica] = route.NewCached(1, blocks/replicas)
				}
				chain := kv.Extend(nil, kv.Hash{}, sent.Prompt)
				hit := caches[sent.Replica].Hit(chain, len(sent.Prompt))
				caches[sent.Replica].Sent(chain)
				hits, sum = hits+hit, sum+len(sent.Prompt)
				work[sent.Replica] += float64(len(sent.Prompt) - hit + sent.Params.MaxTokens)
			}
			total := 0.0
			for _, w := range work {
				total, busiest = total+w, max(busiest, w)
			}
			rate, busiest = float64(hits)/float64(sum), busiest/(total/float64(replicas))
		})
		return rate, busiest
	}
	one, _ := run(t, 1)
	four, busiest := run(t, 4)
	t.Logf("hit rate %.3f on one replica, %.3f on four, the busiest %.2f of the mean", one, four, busiest)
	if four < one*0.95 || busiest > 1.3 {
		t.Errorf("hit rate %.3f on one replica, %.3f on four; the busiest does %.2f of the mean", one, four, busiest)
	}
}

// A prompt goes where another head says that its prefix is, in the epoch that it was
// sent to, and what this head sends is told once.
func TestHeadsTellOfPrompts(t *testing.T) {
	within(t, dispatch.Config{}, func(t *testing.T, b *bench) {
		b.cluster.AddReplica("m", "r1", "n1", 1, 8)
		b.cluster.AddReplica("m", "r2", "n2", 2, 8)
		b.cluster.Update(func(v *state.View) {
			for id, r := range v.Replicas {
				r.Blocks = []int{1024}
				v.Replicas[id] = r
			}
		})
		sent := func(prompt []int32) string {
			r := b.request(1)
			r.Prompt = prompt
			firstToken(t, submit(t, b, r))
			all := b.cluster.Requests()
			return all[len(all)-1].Replica
		}
		prompt := func(first int32) []int32 {
			tokens := make([]int32, 200)
			tokens[0] = first
			return tokens
		}
		for i, c := range []struct {
			epoch uint64
			want  string
		}{{1, "r1"}, {2, "r2"}} {
			p := prompt(int32(i))
			chain := kv.Extend(nil, kv.Hash{}, p)
			b.Hear([]route.Sent{{Replica: "gone", Epoch: 1, Blocks: chain}, {Replica: "r2", Epoch: c.epoch, Blocks: chain}})
			if got := sent(p); got != c.want {
				t.Errorf("told of epoch %d: sent to %s, want %s", c.epoch, got, c.want)
			}
		}
		b.Tell()
		p := prompt(9)
		sent(p)
		sent(append(p, prompt(8)...))
		told := b.Tell()
		if len(told) != 2 || len(told[0].Blocks) != 12 || len(told[1].Blocks) != 13 || len(b.Tell()) != 0 {
			t.Errorf("told %+v", told)
		}
	})
}
