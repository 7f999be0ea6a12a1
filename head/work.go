package head

import (
	"context"

	"manta/head/api"
	"manta/head/jobs"
	"manta/head/state"
	"manta/head/store"
)

// work is what jobs, and the API that takes them, need of a head.
type work struct{ head *Head }

var (
	_ api.Committer  = work{}
	_ jobs.Cluster   = work{}
	_ store.Referrer = work{}
)

func (w work) View() *state.View { return w.head.raft.View() }

func (w work) Changed() <-chan struct{} { return w.head.raft.Changed() }

func (w work) Leading() bool { return w.head.raft.Leading() }

func (w work) Apply(ctx context.Context, changes ...state.Change) error {
	return w.head.apply(ctx, changes...)
}

func (w work) Deploy(ctx context.Context, d state.Deployment) (state.Deployment, error) {
	return w.head.control.Deploy(ctx, d)
}

func (w work) Referenced(use func(state.Digest)) { w.head.raft.View().Referenced(use) }
