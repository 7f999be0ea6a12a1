package dispatch

import (
	"cmp"
	"container/heap"
	"math"
	"slices"
	"time"
)

// queue holds the requests of one deployment that wait for credit. A flow is what
// one API key has waiting or running. The next request is of the most urgent
// priority (lower runs first); among the flows that have one, of the flow with the
// least virtual time: start-time fair queuing (Goyal et al., SIGCOMM 1996, §2), with
// tokens over weight as a request's length. Within a flow it is the order of
// arrival. A request that lost its replica was paid for, so it comes first.
type queue struct {
	flows   map[string]*flow
	waiting int
	clock   float64 // virtual time: the start of the request granted last
	runs    float64 // choices that run at once, as was last known
	// peak is what modest flows had waiting and running at once, lately; reached at.
	peak    int
	reached time.Time
}

// flow is one key's part of a queue. It is kept while it has requests here or
// running, and a minute longer.
type flow struct {
	items   []*Stream
	time    float64 // virtual: where its next request starts
	weight  float64
	running int       // choices granted and not ended
	seen    time.Time // when its newest request came
	demand  float64   // what it had waiting and running at once, a moving mean
	counted time.Time // until when that is in demand
}

const (
	notQueued = -1
	// maxFlows full flows fill a queue.
	maxFlows = 8
	// remember is how long a key that has come counts as one that may come again.
	remember = time.Minute
	// settled is how fast a flow's demand follows what it has.
	settled = 10 * time.Second
)

func newQueue() *queue { return &queue{flows: map[string]*flow{}} }

func (q *queue) Len() int { return q.waiting }

// of gives the flow of a key, a new one at the clock.
func (q *queue) of(key string) *flow {
	f, ok := q.flows[key]
	if !ok {
		f = &flow{weight: 1, time: q.clock}
		q.flows[key] = f
	}
	return f
}

func (q *queue) add(s *Stream, now time.Time) {
	f := q.of(s.request.Key)
	f.seen = now
	before := q.stand(now)
	if s.request.Weight > 0 {
		f.weight = s.request.Weight
	}
	if len(f.items) == 0 && f.running == 0 {
		f.time = max(f.time, q.clock) // what was not used is not saved up
	}
	heap.Push(f, s)
	q.waiting++
	// One that keeps to its share no longer has made the peak what it was.
	after := q.stand(now)
	if after.had() >= q.peak || after.flows < before.flows || now.Sub(q.reached) > settled {
		q.peak, q.reached = after.had(), now
	}
}

// turns gives the flows that have requests, those first whose turn it is.
func (q *queue) turns() []*flow {
	var all []*flow
	for _, f := range q.flows {
		if len(f.items) > 0 {
			all = append(all, f)
		}
	}
	slices.SortFunc(all, func(a, b *flow) int {
		x, y := a.items[0], b.items[0]
		return cmp.Or(
			cmp.Compare(x.request.Priority, y.request.Priority), cmp.Compare(again(y), again(x)),
			cmp.Compare(a.time, b.time), cmp.Compare(x.arrival, y.arrival),
		)
	})
	return all
}

// again is 1 for a request that was granted before.
func again(s *Stream) int {
	if s.cost > 0 {
		return 1
	}
	return 0
}

func (q *queue) remove(s *Stream, now time.Time) {
	f := q.flows[s.request.Key]
	f.count(now)
	heap.Remove(f, s.place)
	q.waiting--
}

// granted charges a request to its flow: what it is thought to cost, once.
func (q *queue) granted(s *Stream, choices int) {
	f := q.of(s.request.Key)
	f.running += choices
	if s.cost == 0 {
		q.clock = max(q.clock, f.time)
		s.cost = s.request.cost()
		f.time += s.cost / f.weight
	}
}

// released takes choices off what a flow has running.
func (q *queue) released(key string, choices int, now time.Time) {
	if f, ok := q.flows[key]; ok {
		f.count(now)
		f.running = max(0, f.running-choices)
	}
}

// settle corrects a flow by what a request really cost.
func (q *queue) settle(s *Stream, tokens int) {
	if f, ok := q.flows[s.request.Key]; ok && s.cost > 0 {
		f.time += (float64(tokens) - s.cost) / f.weight
	}
}

// room is how many more requests of a key may wait. Near the bound of all, a key
// may have no more waiting than there is room left: so there is some for a key
// that comes later (Choudhury and Hahne, ToN 1998, dynamic thresholds).
func (q *queue) room(key string, most int) int {
	own := 0
	if f, ok := q.flows[key]; ok {
		own = len(f.items)
	}
	return min(most, maxFlows*most-q.waiting) - own
}

// leaves is the part of what runs at once that a flow leaves to others: so much that
// those who keep to their shares find a place as soon as they come, as many as came at
// once lately, and at least an eighth while there are others. Who keeps to its own
// share leaves nothing, and half of it is anybody's. Places can't be taken back from a
// flood once it has them, so those that others need now and then have to stay free.
func (q *queue) leaves(own *flow, all standing, now time.Time) float64 {
	share := q.runs * own.weight / all.weights
	if all.active < 2 || float64(own.running) < share/2 || own.within(share, now) {
		return 0
	}
	kept := min(float64(q.peak+1), burst*all.share) - float64(all.running)
	return min(1, max(1.0/8, kept/max(q.runs, 1)))
}

// standing is what the active flows are together, and what those of them have that keep
// to their shares.
type standing struct {
	active  int
	weights float64

	flows, waiting, running int
	share                   float64 // of what runs at once
}

func (s standing) had() int { return s.waiting + s.running }

const (
	// slack is how far above its share a flow's demand may lie that keeps to it.
	slack = 1.1
	// burst bounds what such a flow has at once, and what is kept free, in shares.
	burst = 1.5
)

// stand adds up the flows.
func (q *queue) stand(now time.Time) (all standing) {
	for _, f := range q.flows {
		if f.active(now) {
			all.active, all.weights = all.active+1, all.weights+f.weight
		}
	}
	for _, f := range q.flows {
		if share := q.runs * f.weight / all.weights; f.active(now) && f.within(share, now) {
			all.flows, all.share = all.flows+1, all.share+share
			all.waiting, all.running = all.waiting+len(f.items), all.running+f.running
		}
	}
	return all
}

// within reports whether a flow keeps to its share: on the whole, and about now.
func (f *flow) within(share float64, now time.Time) bool {
	f.count(now)
	return f.demand <= slack*share && float64(len(f.items)+f.running) <= burst*share
}

// count brings demand up to now. It comes before what a flow has changes.
func (f *flow) count(now time.Time) {
	if since := now.Sub(f.counted); !f.counted.IsZero() && since > 0 {
		f.demand += (float64(len(f.items)+f.running) - f.demand) * -math.Expm1(-since.Seconds()/settled.Seconds())
	}
	f.counted = now
}

func (f *flow) active(now time.Time) bool {
	return len(f.items)+f.running > 0 || now.Sub(f.seen) < remember
}

// empty drops the flows that nobody uses any more, and reports whether none is left.
func (q *queue) empty(now time.Time) bool {
	for key, f := range q.flows {
		if !f.active(now) {
			delete(q.flows, key)
		}
	}
	return len(q.flows) == 0
}

func (f *flow) Len() int { return len(f.items) }

func (f *flow) Less(i, j int) bool {
	a, b := f.items[i], f.items[j]
	return cmp.Or(cmp.Compare(a.request.Priority, b.request.Priority), cmp.Compare(a.arrival, b.arrival)) < 0
}

func (f *flow) Swap(i, j int) {
	f.items[i], f.items[j] = f.items[j], f.items[i]
	f.items[i].place, f.items[j].place = i, j
}

// Push and Pop are container/heap's.
func (f *flow) Push(x any) {
	s := x.(*Stream)
	s.place = len(f.items)
	f.items = append(f.items, s)
}

func (f *flow) Pop() any {
	last := len(f.items) - 1
	s := f.items[last]
	f.items[last] = nil
	f.items = f.items[:last]
	s.place = notQueued
	return s
}
