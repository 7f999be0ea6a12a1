package head

import (
	"context"
	"fmt"
	"slices"

	"manta/head/api"
	"manta/head/place"
	"manta/head/state"
	"manta/internal/trust"
	"manta/node/wire"
)

// waitings gives what waits and why, as the leader's newest decision has it.
func (c *control) waitings() []place.Waiting {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.waiting
}

// explain says why no node takes the replicas of a deployment, on the leader. While
// there is no node yet, nothing is clear: one that starts beside its head may be slower.
func (c *control) explain(deployment string) []string {
	var lines []string
	for _, w := range told(c.waitings()) {
		if w.Deployment == deployment && slices.ContainsFunc(w.Reasons, func(r api.Reason) bool { return r.Node != "" }) {
			lines = append(lines, w.Lines()...)
		}
	}
	return lines
}

// Waiting implements api.Cluster: only the leader knows.
func (c *control) Waiting(ctx context.Context) ([]api.Waiting, error) {
	h := c.head
	if h.raft.Leading() {
		return told(c.waitings()), nil
	}
	leader := h.raft.Leader()
	if leader == "" || leader == h.id.ID {
		return nil, fmt.Errorf("%w: %w", api.ErrNoLeader, state.ErrNotLeader)
	}
	ctx, stop := context.WithTimeout(ctx, commandTimeout)
	defer stop()
	reply, err := h.link.Call(ctx, trust.Identity{Role: trust.Head, ID: leader}, kindWaiting, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", api.ErrNoLeader, err)
	}
	var waiting []place.Waiting
	if err := wire.Unmarshal(reply, &waiting); err != nil {
		return nil, err
	}
	return told(waiting), nil
}

func told(waiting []place.Waiting) []api.Waiting {
	all := []api.Waiting{}
	for _, w := range waiting {
		entry := api.Waiting{Deployment: w.Deployment, Missing: w.Missing}
		for _, r := range w.Reasons {
			entry.Reasons = append(entry.Reasons, api.Reason(r))
		}
		all = append(all, entry)
	}
	return all
}
