package head

import (
	"maps"
	"slices"

	"manta/node/wire"
)

// news reports whether a node tells anything that may call for a decision at once.
// What it counts (and that it lives) waits for the next reconciling: nodes repeat their
// reports, so each would have the leader look at all nodes and tell them all.
func news(before, now wire.Report) bool {
	return before.Draining != now.Draining || before.Leaving != now.Leaving || before.Protocol != now.Protocol || now.Sequence < before.Sequence ||
		!slices.EqualFunc(before.Devices, now.Devices, wire.Device.Equal) || !maps.Equal(before.Labels, now.Labels) ||
		!slices.EqualFunc(before.Replicas, now.Replicas, func(a, b wire.ReplicaReport) bool {
			return a.Replica == b.Replica && a.Epoch == b.Epoch && a.Phase == b.Phase && a.Reason == b.Reason && slices.Equal(a.Lost, b.Lost)
		})
}
