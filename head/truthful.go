package head

import (
	"maps"
	"sync/atomic"
	"time"

	"manta/head/api"
	"manta/head/state"
)

// truthFor is how long a truthful View is given out before it is made anew.
const truthFor = 200 * time.Millisecond

// truthful gives the API the View with the heartbeats taken into account: a
// replica is ready only while every rank says so. Raft alone would call a group
// ready that ended with the whole process, until its node is back.
type truthful struct {
	control *control
	last    atomic.Pointer[truth]
}

type truth struct {
	of   *state.View
	at   time.Time
	view *state.View
}

var _ api.Views = (*truthful)(nil)

func (t *truthful) View() *state.View {
	of := t.control.head.raft.View()
	if last := t.last.Load(); last != nil && last.of == of && time.Since(last.at) < truthFor {
		return last.view
	}
	now := &truth{of: of, at: time.Now(), view: t.made(of)}
	t.last.Store(now)
	return now.view
}

func (t *truthful) made(of *state.View) *state.View {
	view := of
	for id, r := range of.Replicas {
		if r.Phase != state.Ready || t.control.ready(r) {
			continue
		}
		if view == of {
			copied := *of
			copied.Replicas = maps.Clone(of.Replicas)
			view = &copied
		}
		r.Phase, r.Reason = state.Loading, "a node has not been heard of"
		view.Replicas[id] = r
	}
	return view
}
