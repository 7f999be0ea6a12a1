// Package route chooses the replica that a request goes to: where its prompt is
// cached, unless that replica is busier by more than the hit saves. It is pure:
// whoever dispatches tells it what is outstanding where and what was sent before.
package route

import (
	"cmp"
	"math"
	"slices"

	"manta/head/state"
)

// Load is what one replica has in hand for this head.
type Load struct {
	Epoch       uint64 // of the driver that granted Credit
	Outstanding int    // choices
	Credit      int
	// Pending are prompt tokens sent that have not given a first token yet.
	Pending int
	// Work are the tokens that were sent to be computed, old ones fading away.
	Work float64
}

// Admits reports whether so many further choices may be sent, with so much credit
// left over. A request with more choices than the whole credit goes alone rather
// than never.
func (l Load) Admits(choices, spare int) bool {
	if l.Credit <= 0 {
		return false
	}
	return l.Outstanding+choices <= l.Credit-spare || l.Outstanding == 0
}

// Request is what a choice depends on.
type Request struct {
	Deployment string
	Choices    int
	Prompt     int            // tokens
	Hits       map[string]int // by replica: how many of them it has, as far as is known
	// Session: requests of one belong together, where nothing is known of their prompts; "": none.
	Session string
	// Spare leaves to others what a driver does not run at once, and this part of each
	// replica's credit; 0: none.
	Spare float64
}

// runs is how much of a credit a driver runs at once: it grants an eighth and one more,
// which wait there.
func (l Load) runs() int { return max(1, (l.Credit-1)*8/9) }

const (
	// sequenceTokens is what one more sequence in progress costs a new one, in prompt
	// tokens: about a block's worth of longer steps over its life.
	sequenceTokens = 16
	// evenly is how far a replica's work may lie above the mean for nothing.
	evenly = 1.2
)

// serving gives the load of a replica of a deployment that is ready and has granted.
func serving(replica state.Replica, loads map[string]Load, deployment string) (Load, bool) {
	load, granted := loads[replica.ID]
	return load, granted && replica.Deployment == deployment && replica.Phase == state.Ready && load.Epoch == replica.Epoch
}

// Runs is how many choices of this head a deployment runs at once.
func Runs(view *state.View, loads map[string]Load, deployment string) int {
	n := 0
	for _, replica := range view.Replicas {
		if load, ok := serving(replica, loads, deployment); ok {
			n += load.runs()
		}
	}
	return n
}

// Choose gives the ready replica of a deployment that serves a request soonest, of
// those that may take it, or false: the tokens still to compute, what is before
// them, and what the replica had beyond its part. Equal ones are told apart by
// their part of the credit, fewest outstanding, least work, then id, so that a
// choice can be repeated.
func Choose(view *state.View, loads map[string]Load, request Request) (state.Replica, bool) {
	var candidates, ready []state.Replica
	work := 0.0
	for _, replica := range view.Replicas {
		load, ok := serving(replica, loads, request.Deployment)
		if !ok {
			continue
		}
		ready = append(ready, replica)
		work += load.Work
		spare := 0
		if request.Spare > 0 {
			spare = min(load.Credit-1, load.Credit-load.runs()+int(math.Ceil(request.Spare*float64(load.runs()))))
		}
		if load.Admits(request.Choices, spare) {
			candidates = append(candidates, replica)
		}
	}
	if len(candidates) == 0 {
		return state.Replica{}, false
	}
	home := ""
	if request.Session != "" && !request.standsOut(ready) {
		home = atHome(request.Session, ready)
	}
	cost := func(r state.Replica) float64 {
		load, hit := loads[r.ID], request.Hits[r.ID]
		if r.ID == home {
			hit = request.Prompt
		}
		beyond := max(0, load.Work-evenly*work/float64(len(ready)))
		return float64(request.Prompt-hit+load.Pending+sequenceTokens*load.Outstanding) + beyond
	}
	return slices.MinFunc(candidates, func(a, b state.Replica) int {
		x, y := loads[a.ID], loads[b.ID]
		return cmp.Or(
			cmp.Compare(cost(a), cost(b)),
			// x.Outstanding/x.Credit against y's, without division.
			cmp.Compare(x.Outstanding*y.Credit, y.Outstanding*x.Credit),
			cmp.Compare(x.Outstanding, y.Outstanding),
			cmp.Compare(x.Work, y.Work),
			cmp.Compare(a.ID, b.ID),
		)
	}), true
}

// standsOut reports whether some replica is known to have more of the prompt than others.
func (r Request) standsOut(replicas []state.Replica) bool {
	return slices.ContainsFunc(replicas, func(one state.Replica) bool { return r.Hits[one.ID] != r.Hits[replicas[0].ID] })
}

// atHome gives the replica of a session by rendezvous hashing (Thaler and
// Ravishankar, 1998): every head finds the same one, and few move when a replica
// comes or goes.
func atHome(session string, replicas []state.Replica) string {
	weight := func(r state.Replica) uint64 {
		const offset, prime = 14695981039346656037, 1099511628211 // FNV-1a
		h := uint64(offset)
		for _, text := range []string{session, "\x00", r.ID} {
			for _, c := range []byte(text) {
				h = (h ^ uint64(c)) * prime
			}
		}
		h ^= h >> 33 // FNV's last bytes hardly reach its high bits
		return h * 0xff51afd7ed558ccd
	}
	return slices.MaxFunc(replicas, func(a, b state.Replica) int {
		return cmp.Or(cmp.Compare(weight(a), weight(b)), cmp.Compare(b.ID, a.ID))
	}).ID
}

// Driver gives the node of a replica's rank (0,0).
func Driver(replica state.Replica) (node string, ok bool) {
	for _, shard := range replica.Shards {
		if shard.Stage == 0 && shard.Rank == 0 {
			return shard.Node, true
		}
	}
	return "", false
}
