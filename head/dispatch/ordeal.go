package dispatch

import "manta/head/state"

const (
	// suspectAfter is how many epochs must end at the same place of a request before
	// it runs alone, and guiltyAfter how many of them when it was alone before it is
	// failed: once may be chance, a machine that dies in that very moment.
	suspectAfter = 2
	guiltyAfter  = 2
	// clearedBy is how many tokens beyond the place of a death clear a request. Its
	// tokens are the same each time, so one that kills does so at the same place:
	// it gets beyond where it seemed to be only by what was on its way before, and
	// that a few times at most.
	clearedBy = 2
)

// An ordeal tells a request that kills replicas from one that happened to be
// there. It is pure.
type ordeal struct {
	place  int // output tokens when the first of deaths happened
	deaths int // epochs that ended under the request since it last got past place
	lone   int // of these, when it was alone

	// An epoch that the request lost and that may have ended.
	doubt  *target
	alone  bool // it ran alone there
	tokens int  // it had so many
}

// lost notes that an epoch does not run the request any more.
func (o *ordeal) lost(on target, alone bool, tokens int) {
	o.doubt, o.alone, o.tokens = &on, alone, tokens
}

// settle counts the epoch in doubt, if it has ended. next is where the request
// goes now: that an epoch takes it again proves that it has not.
func (o *ordeal) settle(view *state.View, next target) {
	if o.doubt == nil {
		return
	}
	if *o.doubt == next {
		o.doubt = nil
		return
	}
	replica, ok := view.Replicas[o.doubt.replica]
	if ok && replica.Epoch == o.doubt.epoch && replica.Phase != state.Failed {
		return // the View may be late
	}
	o.doubt = nil
	if o.deaths == 0 || o.tokens > o.place+clearedBy {
		o.place, o.deaths, o.lone = o.tokens, 0, 0
	}
	o.deaths++
	if o.alone {
		o.lone++
	}
}

// suspect reports whether the request must run alone.
func (o *ordeal) suspect() bool { return o.deaths >= suspectAfter }

// guilty reports whether the request kills what runs it.
func (o *ordeal) guilty() bool { return o.lone >= guiltyAfter }
