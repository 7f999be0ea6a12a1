// Package route chooses the replica that a request goes to. It is pure: whoever
// dispatches tells it what is outstanding where.
package route

import (
	"cmp"
	"slices"

	"manta/head/state"
)

// Load is what one replica has in hand for this head, in choices.
type Load struct {
	Epoch       uint64 // of the driver that granted Credit
	Outstanding int
	Credit      int
}

// Admits reports whether so many further choices may be sent. A request with
// more choices than the whole credit goes alone rather than never.
func (l Load) Admits(choices int) bool {
	if l.Credit <= 0 {
		return false
	}
	return l.Outstanding+choices <= l.Credit || l.Outstanding == 0
}

// Choose gives the least loaded ready replica of a deployment that may take a
// request of so many choices, or false. Equal loads are broken by fewest
// outstanding, then by id, so that a choice can be repeated.
func Choose(view *state.View, deployment string, loads map[string]Load, choices int) (state.Replica, bool) {
	var candidates []state.Replica
	for _, replica := range view.Replicas {
		load, granted := loads[replica.ID]
		if replica.Deployment != deployment || replica.Phase != state.Ready ||
			!granted || load.Epoch != replica.Epoch || !load.Admits(choices) {
			continue
		}
		candidates = append(candidates, replica)
	}
	if len(candidates) == 0 {
		return state.Replica{}, false
	}
	return slices.MinFunc(candidates, func(a, b state.Replica) int {
		x, y := loads[a.ID], loads[b.ID]
		return cmp.Or(
			// x.Outstanding/x.Credit against y's, without division.
			cmp.Compare(x.Outstanding*y.Credit, y.Outstanding*x.Credit),
			cmp.Compare(x.Outstanding, y.Outstanding),
			cmp.Compare(a.ID, b.ID),
		)
	}), true
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
