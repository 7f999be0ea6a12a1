package head

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"manta/head/api"
	"manta/head/route"
	"manta/head/state"
	"manta/head/store"
	"manta/internal/trust"
	"manta/node/wire"
	"manta/parallel/link"
)

// Calls between heads.
const (
	kindApply    = "apply"    // to the leader: an encoded command → applied
	kindBarrier  = "barrier"  // to the leader: nothing → applied
	kindProgress = "progress" // to a non-voter: nothing → applied
	kindWaiting  = "waiting"  // to the leader: nothing → []place.Waiting
	kindPut      = "put"      // bytes → nothing, once they are on disk
	kindGet      = "get"      // a digest → bytes
	kindLend     = "lend"     // to the leader: a limit.Ask → a limit.Answer

	maxHeadCalls = 256
	// lookAgain is between two looks for a leader.
	lookAgain = 25 * time.Millisecond
)

// applied answers a call that concerns the log.
type applied struct {
	Index   uint64 `cbor:"1,keyasint"`
	Refused string `cbor:"2,keyasint,omitempty"` // name in state.Refusals
	Text    string `cbor:"3,keyasint,omitempty"`
}

func answer(index uint64, err error) ([]byte, error) {
	a := applied{Index: index}
	if name, ok := state.RefusalOf(err); ok {
		a.Refused, a.Text = name, err.Error()
		return wire.Marshal(a)
	}
	if err != nil {
		return nil, err
	}
	return wire.Marshal(a)
}

// listenToHeads answers other heads.
func (h *Head) listenToHeads() {
	on := func(kind string, work func(ctx context.Context, data []byte) ([]byte, error)) {
		h.link.HandleCall(kind, maxHeadCalls, func(ctx context.Context, m link.Message) ([]byte, error) {
			if m.From.Role != trust.Head {
				return nil, fmt.Errorf("head: %s may not call %s", m.From, kind)
			}
			ctx, stop := context.WithTimeout(ctx, commandTimeout)
			defer stop()
			return work(ctx, m.Data)
		})
	}
	on(kindApply, func(ctx context.Context, data []byte) ([]byte, error) { return answer(h.raft.Apply(ctx, data)) })
	on(kindBarrier, func(ctx context.Context, _ []byte) ([]byte, error) { return answer(h.raft.Barrier(ctx)) })
	on(kindProgress, func(context.Context, []byte) ([]byte, error) { return answer(h.raft.View().Index, nil) })
	on(kindLend, h.answerLend)
	on(kindPrefixes, func(_ context.Context, data []byte) ([]byte, error) {
		var told []route.Sent
		if err := wire.Unmarshal(data, &told); err != nil {
			return nil, err
		}
		h.dispatch.Hear(told)
		return nil, nil
	})
	on(kindWaiting, func(context.Context, []byte) ([]byte, error) { return wire.Marshal(h.control.waitings()) })
	on(kindPut, func(ctx context.Context, data []byte) ([]byte, error) {
		_, err := h.disk.PutBlob(ctx, data)
		return nil, err
	})
	on(kindGet, func(ctx context.Context, data []byte) ([]byte, error) {
		if len(data) != len(state.Digest{}) {
			return nil, fmt.Errorf("%w: a digest of %d bytes", state.ErrMalformed, len(data))
		}
		return h.disk.Blob(ctx, state.Digest(data))
	})
}

// atLeader does something at whoever leads: here, or by a call. While there is
// no leader it waits, as long as ctx allows. What was done in an unknown outcome
// is done again: commands bear that.
func (h *Head) atLeader(ctx context.Context, kind string, data []byte, here func(context.Context) (uint64, error)) error {
	var full error
	for {
		err := h.tryLeader(ctx, kind, data, here)
		if err == nil || !elsewhere(err) {
			return err
		}
		if errors.Is(err, state.ErrFull) {
			full = err // it says why nobody leads then
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", api.ErrNoLeader, cmp.Or(full, err))
		case <-time.After(lookAgain):
		}
	}
}

// elsewhere reports whether another head, or the same one later, may do what failed.
func elsewhere(err error) bool {
	for _, passing := range []error{state.ErrNotLeader, state.ErrFull, link.ErrBroken, link.ErrUnknown} {
		if errors.Is(err, passing) {
			return true
		}
	}
	return false
}

func (h *Head) tryLeader(ctx context.Context, kind string, data []byte, here func(context.Context) (uint64, error)) error {
	if h.raft.Leading() {
		_, err := here(ctx)
		return err
	}
	leader := h.raft.Leader()
	if leader == "" || leader == h.id.ID {
		return state.ErrNotLeader
	}
	reply, err := h.link.Call(ctx, trust.Identity{Role: trust.Head, ID: leader}, kind, data)
	if err != nil {
		return err
	}
	var a applied
	if err := wire.Unmarshal(reply, &a); err != nil {
		return err
	}
	if a.Refused != "" {
		return &state.Refused{Name: a.Refused, Text: a.Text}
	}
	if a.Index == 0 {
		return nil
	}
	_, err = h.raft.Wait(ctx, a.Index-1)
	return err
}

// apply commits changes as one command, wherever the leader is, and returns when
// this head's View has them.
func (h *Head) apply(ctx context.Context, changes ...state.Change) error {
	ctx, stop := context.WithTimeout(ctx, commandTimeout)
	defer stop()
	data, err := state.Command{ID: h.raft.NewCommandID(), At: time.Now(), Changes: changes}.Encode()
	if err != nil {
		return err
	}
	return h.atLeader(ctx, kindApply, data, func(ctx context.Context) (uint64, error) { return h.raft.Apply(ctx, data) })
}

// Fresh returns once this head's View holds every write that returned anywhere
// before the call.
func (h *Head) Fresh(ctx context.Context) error {
	ctx, stop := context.WithTimeout(ctx, commandTimeout)
	defer stop()
	return h.atLeader(ctx, kindBarrier, nil, h.raft.Barrier)
}

// copies reaches the stores of other heads.
type copies struct{ head *Head }

var _ store.Peers = copies{}

func (c copies) Voters() (string, []string, error) {
	seats, err := c.head.raft.Seats()
	var voters []string
	for _, seat := range seats {
		if seat.Voter {
			voters = append(voters, seat.ID)
		}
	}
	return c.head.id.ID, voters, err
}

func (c copies) Put(ctx context.Context, head string, data []byte) error {
	ctx, stop := context.WithTimeout(ctx, commandTimeout)
	defer stop()
	_, err := c.head.link.Call(ctx, trust.Identity{Role: trust.Head, ID: head}, kindPut, data)
	return err
}

func (c copies) Get(ctx context.Context, head string, digest state.Digest) ([]byte, error) {
	ctx, stop := context.WithTimeout(ctx, commandTimeout)
	defer stop()
	return c.head.link.Call(ctx, trust.Identity{Role: trust.Head, ID: head}, kindGet, digest[:])
}
