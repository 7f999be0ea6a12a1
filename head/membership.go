package head

import (
	"context"
	"errors"
	"slices"
	"time"

	"manta/head/state"
	"manta/internal/trust"
	"manta/node/member"
	"manta/node/wire"
)

const (
	membershipEvery = 500 * time.Millisecond
	rejoinEvery     = 2 * time.Second
	// mergeEvery is between two attempts to meet members that gossip gave up while
	// the network was cut: it does not look for them by itself.
	mergeEvery = time.Minute
	// aloneFor is how long a head may belong to no cluster before it says so.
	aloneFor = 10 * time.Second
)

// assemble makes a cluster of the first heads, keeps raft's members those that
// gossip tells of, and finds the other members again when all addresses have
// changed.
func (h *Head) assemble(ctx context.Context) error {
	ticker := time.NewTicker(membershipEvery)
	defer ticker.Stop()
	var joined time.Time
	alone := time.After(aloneFor)
	for {
		members := h.members.Load()
		due := mergeEvery
		if len(members.Members()) < 2 || h.cfg.Expect > 1 && len(h.heads()) < 2 {
			due = rejoinEvery
		}
		if len(h.cfg.Join) > 0 && time.Since(joined) > due {
			joined = time.Now()
			if err := members.Join(h.cfg.Join...); err != nil {
				h.log.Info("join", "error", err)
			}
		}
		h.found()
		h.follow()
		if h.raft.Leading() {
			h.enlarge(ctx)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-members.Changed():
		case <-alone:
			if h.raft.Fresh() {
				h.log.Warn("no cluster yet", "heads", len(h.heads()), "bootstrap-expect", h.cfg.Expect, "join", h.cfg.Join,
					"hint", "it begins when so many heads know each other; one that is there takes this head in")
			}
		case <-ticker.C:
		}
	}
}

// follow reads what nodes have for heads at their own servers, from all that are there.
func (h *Head) follow() {
	var nodes []trust.Identity
	for _, m := range h.members.Load().Members() {
		if m.Role == trust.Node {
			nodes = append(nodes, m.Identity)
		}
	}
	h.link.FollowAll(nodes)
}

// found makes a new cluster as soon as as many heads are there as are expected,
// and none of them belongs to one.
func (h *Head) found() {
	fresh := h.raft.Fresh()
	members := h.members.Load()
	if info := h.info(); info.Fresh != fresh {
		info.Fresh = fresh
		if err := members.Update(info); err != nil {
			h.log.Warn("gossip", "error", err)
		}
	}
	if !fresh || h.cfg.Expect == 0 {
		return
	}
	var ids []string
	for _, m := range h.heads() {
		if !m.Info.Fresh {
			return // there is a cluster: its leader takes this head in
		}
		ids = append(ids, m.ID)
	}
	if len(ids) != h.cfg.Expect {
		return
	}
	h.log.Info("cluster founded", "heads", ids)
	if err := h.raft.Bootstrap(ids); err != nil {
		h.log.Error("cluster not founded", "error", err)
	}
}

func (h *Head) heads() []member.Member {
	var heads []member.Member
	for _, m := range h.members.Load().Members() {
		if m.Role == trust.Head {
			heads = append(heads, m)
		}
	}
	return heads
}

// enlarge makes the next change of raft's members, if one is due.
func (h *Head) enlarge(ctx context.Context) {
	ctx, stop := context.WithTimeout(ctx, commandTimeout)
	defer stop()
	seats, err := h.raft.Seats()
	if err != nil {
		h.log.Warn("membership", "error", err)
		return
	}
	living := h.staying()
	progress := map[string]uint64{}
	for _, seat := range seats {
		if seat.Voter {
			continue
		}
		if index, err := h.progress(ctx, seat.ID); err == nil {
			progress[seat.ID] = index
		}
	}
	change, due := state.NextMembership(seats, living, progress, h.raft.View().Index)
	if due {
		h.log.Info("membership", "change", change)
		if err := h.raft.Change(ctx, change); err != nil {
			h.log.Warn("membership", "error", err)
		}
		return
	}
	// The View lists the heads that were removed until now.
	for id := range h.raft.View().Heads {
		if slices.Contains(living, id) || slices.ContainsFunc(seats, func(seat state.Seat) bool { return seat.ID == id }) {
			continue
		}
		if err := h.apply(ctx, state.Change{DeleteHead: id}); err != nil && !errors.Is(err, state.ErrUnknown) {
			h.log.Warn("membership", "error", err)
		}
	}
}

// progress asks a head how far it has applied the log.
func (h *Head) progress(ctx context.Context, id string) (uint64, error) {
	ctx, stop := context.WithTimeout(ctx, time.Second)
	defer stop()
	reply, err := h.link.Call(ctx, trust.Identity{Role: trust.Head, ID: id}, kindProgress, nil)
	if err != nil {
		return 0, err
	}
	var a applied
	err = wire.Unmarshal(reply, &a)
	return a.Index, err
}
