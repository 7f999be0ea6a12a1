// Package shard cuts a model into the slices that ranks hold: layer ranges for
// stages, heads and columns for tensor ranks. It is pure.
package shard

// Layout is how a replica is cut: Pipeline stages of Tensor ranks each.
type Layout struct {
	Tensor   int
	Pipeline int
}

// Ranks is the number of shards of one replica.
func (l Layout) Ranks() int { return l.Tensor * l.Pipeline }
