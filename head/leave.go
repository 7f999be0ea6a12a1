package head

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"manta/head/state"
	"manta/internal/trust"
	"manta/node/wire"
	"manta/parallel/link"
)

// ErrLastHead: the cluster is this head.
var ErrLastHead = errors.New("head: it is the only one: without it there is no cluster")

// leaving is the file that says that a head has asked to leave. What its raft log
// holds then must never be read again: it may lack the removal, and two heads
// that left could elect each other.
func leaving(dir string) string { return filepath.Join(dir, "leaving") }

// wipe makes a new head of what has left: its next start draws another id. Bytes
// of the store stay, they are named by their digest.
func wipe(dir string) error {
	if _, err := os.Stat(leaving(dir)); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, name := range []string{"raft", "id"} {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("head: %w", err)
		}
	}
	return os.Remove(leaving(dir))
}

// Leave ends Run as a stop does, and takes the head out of the cluster: it is no
// voter any more. A head that stops without it stays one.
func (h *Head) Leave(ctx context.Context) error {
	seats, err := h.raft.Seats()
	if err != nil {
		return err
	}
	if len(seats) < 2 {
		return ErrLastHead
	}
	if err := os.WriteFile(leaving(h.cfg.Dir), nil, 0o600); err != nil {
		return fmt.Errorf("head: %w", err)
	}
	h.once.Do(func() { close(h.leave) })
	select {
	case err := <-h.gone:
		return err
	case <-ctx.Done():
		return fmt.Errorf("head: it leaves once its requests have ended: %w", ctx.Err())
	}
}

// Drain lets another head lead. Requests need no move: who waits for one here is
// answered before the head stops.
func (h *Head) Drain(ctx context.Context) error { return h.raft.HandOver(ctx) }

// Undrain does nothing: a head that lives serves.
func (h *Head) Undrain() {}

// depart has the leader remove this head, once it serves no more.
func (h *Head) depart(ctx context.Context) error {
	info := h.info()
	info.Leaving = true
	if err := h.members.Load().Update(info); err != nil {
		h.log.Warn("gossip", "error", err)
	}
	ctx, stop := context.WithTimeout(ctx, 2*commandTimeout)
	defer stop()
	err := h.atLeader(ctx, wire.KindLeave, nil, func(ctx context.Context) (uint64, error) {
		return 0, errors.Join(state.ErrNotLeader, h.raft.HandOver(ctx)) // another removes it
	})
	if err != nil {
		return errors.Join(err, os.Remove(leaving(h.cfg.Dir))) // it stays a voter
	}
	h.left.Store(true)
	return nil
}

// dismiss removes a head that leaves, on the leader.
func (h *Head) dismiss(ctx context.Context, from trust.Identity) error {
	h.away.Store(from.ID, true)
	seats, err := h.raft.Seats()
	if err != nil {
		return err
	}
	for _, seat := range seats {
		if seat.ID == from.ID {
			if err := h.raft.Change(ctx, state.Membership{Remove: seat.ID}); err != nil {
				return err
			}
		}
	}
	h.log.Info("head left", "head", from.ID)
	err = h.apply(ctx, state.Change{DeleteHead: from.ID})
	if errors.Is(err, state.ErrUnknown) {
		return nil
	}
	return err
}

// staying gives the ids of the living heads that are to be in the cluster.
func (h *Head) staying() []string {
	var ids []string
	lives := map[string]bool{}
	for _, m := range h.heads() {
		lives[m.ID] = true
		if _, away := h.away.Load(m.ID); !away && !m.Info.Leaving {
			ids = append(ids, m.ID)
		}
	}
	h.away.Range(func(id, _ any) bool {
		if !lives[id.(string)] {
			h.away.Delete(id)
		}
		return true
	})
	return ids
}

// listenToLeavers answers members that will not come back.
func (h *Head) listenToLeavers() {
	h.link.HandleCall(wire.KindLeave, maxHeadCalls, func(ctx context.Context, m link.Message) ([]byte, error) {
		ctx, stop := context.WithTimeout(ctx, commandTimeout)
		defer stop()
		if m.From.Role == trust.Head {
			return answer(0, h.dismiss(ctx, m.From))
		}
		err := h.apply(ctx, state.Change{DeleteNode: m.From.ID})
		if errors.Is(err, state.ErrUnknown) {
			err = nil // a decision of the leader's was first
		}
		return nil, err
	})
}
