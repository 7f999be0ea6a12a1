package route

import (
	"container/heap"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"manta/head/state"
	"manta/runtime/kv"
)

// happening is something at a time.
type happening struct {
	at float64 // seconds
	do func()
}

type agenda []happening

func (a agenda) Len() int           { return len(a) }
func (a agenda) Less(i, j int) bool { return a[i].at < a[j].at }
func (a agenda) Swap(i, j int)      { a[i], a[j] = a[j], a[i] }
func (a *agenda) Push(x any)        { *a = append(*a, x.(happening)) }
func (a *agenda) Pop() any {
	old := *a
	last := old[len(old)-1]
	*a = old[:len(old)-1]
	return last
}

// chats are users who come to any of three heads with turns of their sessions. It gives
// the part of their prompts that is found cached, and how much the busiest replica does
// of the mean.
func chats(seed uint64, replicas int) (rate, busiest float64) {
	const (
		heads, users, turns = 3, 64, 8
		told                = 0.1 // seconds until the other heads know where a prompt went
	)
	v := &state.View{Replicas: map[string]state.Replica{}}
	holds := map[string]*Cached{}
	for i := range replicas {
		id := fmt.Sprint("r", i)
		v.Replicas[id] = state.Replica{ID: id, Deployment: "m", Epoch: 1, Phase: state.Ready}
		holds[id] = NewCached(1, 1<<20)
	}
	loads, known := make([]map[string]Load, heads), make([]map[string]*Cached, heads)
	for h := range heads {
		loads[h], known[h] = map[string]Load{}, map[string]*Cached{}
		for id := range v.Replicas {
			loads[h][id], known[h][id] = Load{Epoch: 1, Credit: 13 * 4 / replicas}, NewCached(1, 1<<20)
		}
	}
	var todo agenda
	prompts, hits, faded := 0, 0, 0.0
	work := map[string]float64{}
	after := func(at float64, do func()) { heap.Push(&todo, happening{at, do}) }
	system := rand.New(rand.NewPCG(seed, 1))
	opening := make([]int32, 87)
	for i := range opening {
		opening[i] = system.Int32N(256)
	}
	now := 0.0
	for user := range users {
		draw := rand.New(rand.NewPCG(seed, uint64(user)+2))
		prompt, turn := opening, 0
		var ask func()
		ask = func() {
			for range 40 + draw.IntN(80) {
				prompt = append(prompt, draw.Int32N(256))
			}
			n, tokens, h := len(prompt), 10+draw.IntN(20), (user+turn)%heads
			r := Request{Deployment: "m", Choices: 1, Prompt: n, Hits: map[string]int{}, Session: fmt.Sprint("user ", user)}
			if now-faded > 1 {
				for i := range loads {
					for id, l := range loads[i] {
						l.Work *= math.Exp2((faded - now) / 30)
						loads[i][id] = l
					}
				}
				faded = now
			}
			chain := kv.Extend(nil, kv.Hash{}, prompt)
			for id, c := range known[h] {
				r.Hits[id] = c.Hit(chain, n)
			}
			at, _ := Choose(v, loads[h], r)
			hit := holds[at.ID].Hit(chain, n)
			holds[at.ID].Sent(chain)
			known[h][at.ID].Sent(chain)
			after(now+told, func() {
				for i := range known {
					known[i][at.ID].Sent(chain)
				}
			})
			prompts, hits = prompts+n, hits+hit
			work[at.ID] += float64(n - hit + tokens)
			pending := n - r.Hits[at.ID]
			change := func(outstanding, pending, work int) {
				l := loads[h][at.ID]
				l.Outstanding, l.Pending, l.Work = l.Outstanding+outstanding, l.Pending+pending, l.Work+float64(work)
				loads[h][at.ID] = l
			}
			change(1, pending, pending+tokens)
			after(now+0.01, func() {
				change(0, -pending, 0)
			})
			after(now+0.01+0.005*float64(tokens), func() {
				change(-1, 0, 0)
				if turn++; turn < turns {
					after(now+0.4*draw.Float64(), ask)
				}
			})
		}
		after(0.4*draw.Float64(), ask)
	}
	for len(todo) > 0 {
		next := heap.Pop(&todo).(happening)
		now = next.at
		next.do()
	}
	total, most := 0.0, 0.0
	for _, w := range work {
		total, most = total+w, max(most, w)
	}
	return float64(hits) / float64(prompts), most / (total / float64(replicas))
}

// Whatever head a turn of a chat comes to, it finds its prefix: the hit rate is within
// 5% of one replica's, and no replica does more than 1.3 times the mean.
func TestSessionsOverAnyHead(t *testing.T) {
	for seed := range uint64(8) {
		one, _ := chats(seed, 1)
		four, busiest := chats(seed, 4)
		if four < 0.95*one || busiest > 1.3 {
			t.Errorf("seed %d: hit rate %.3f on one replica, %.3f on four; the busiest does %.2f of the mean", seed, one, four, busiest)
		}
	}
}
