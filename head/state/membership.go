package state

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/raft"
)

// Fresh reports whether this head has no raft state yet: it belongs to no cluster.
func (s *Server) Fresh() bool { return s.raft.LastIndex() == 0 }

// Bootstrap makes a new cluster of these heads. Each of them may call it, with
// the same ids; a head that has state already is left as it is.
func (s *Server) Bootstrap(ids []string) error {
	if !s.Fresh() {
		return nil
	}
	var servers []raft.Server
	for _, id := range slices.Sorted(slices.Values(ids)) {
		servers = append(servers, raft.Server{Suffrage: raft.Voter, ID: raft.ServerID(id), Address: raft.ServerAddress(id)})
	}
	if err := s.raft.BootstrapCluster(raft.Configuration{Servers: servers}).Error(); err != nil && s.Fresh() {
		return fmt.Errorf("state: bootstrap: %w", err)
	}
	return nil
}

// A Seat is a head's place in raft.
type Seat struct {
	ID    string
	Voter bool
}

// Seats gives the members of raft.
func (s *Server) Seats() ([]Seat, error) {
	future := s.raft.GetConfiguration()
	if err := future.Error(); err != nil {
		return nil, fmt.Errorf("state: members: %w", err)
	}
	var seats []Seat
	for _, server := range future.Configuration().Servers {
		seats = append(seats, Seat{ID: string(server.ID), Voter: server.Suffrage == raft.Voter})
	}
	return seats, nil
}

// Membership is a change of raft's members; the leader makes one at a time.
type Membership struct {
	Remove  string // a head that lost its disk, or left
	Add     string // as a non-voter, which catches up first
	Promote string // to a voter
}

// NextMembership decides the next change: living are the ids of the heads that
// gossip, applied tells how far each has come, and commit how far the leader is.
// It is pure. A head that is away stays a voter; only one whose name is back
// under another id, so with another disk, is removed.
func NextMembership(seats []Seat, living []string, applied map[string]uint64, commit uint64) (Membership, bool) {
	seated := func(id string) (Seat, bool) {
		i := slices.IndexFunc(seats, func(s Seat) bool { return s.ID == id })
		if i < 0 {
			return Seat{}, false
		}
		return seats[i], true
	}
	for _, id := range slices.Sorted(slices.Values(living)) {
		// The old id goes also when gossip gave it up only after the new one was seated.
		for _, other := range seats {
			if other.ID != id && stableName(other.ID) == stableName(id) && !slices.Contains(living, other.ID) {
				return Membership{Remove: other.ID}, true
			}
		}
		seat, ok := seated(id)
		switch {
		case !ok:
			return Membership{Add: id}, true
		case seat.Voter:
			continue
		}
		if at, known := applied[id]; known && at+catchUp >= commit {
			return Membership{Promote: id}, true
		}
	}
	return Membership{}, false
}

// catchUp is how many entries a non-voter may lack when it becomes a voter.
const catchUp = 16

// stableName is the stable part of an id.
func stableName(id string) string {
	if i := strings.LastIndexByte(id, '-'); i >= 0 {
		return id[:i]
	}
	return id
}

// Change makes one change of membership. Only the leader can.
func (s *Server) Change(ctx context.Context, m Membership) error {
	var future raft.IndexFuture
	switch timeout := timeLeft(ctx); {
	case m.Remove != "":
		future = s.raft.RemoveServer(raft.ServerID(m.Remove), 0, timeout)
	case m.Add != "":
		future = s.raft.AddNonvoter(raft.ServerID(m.Add), raft.ServerAddress(m.Add), 0, timeout)
	case m.Promote != "":
		future = s.raft.AddVoter(raft.ServerID(m.Promote), raft.ServerAddress(m.Promote), 0, timeout)
	default:
		return nil
	}
	if err := await(ctx, future); err != nil {
		return fmt.Errorf("state: change of membership %+v: %w", m, err)
	}
	return nil
}

// HandOver gives the leadership to another voter, if there is one.
func (s *Server) HandOver(ctx context.Context) error {
	seats, err := s.Seats()
	if err != nil || !s.Leading() || len(seats) < 2 {
		return err
	}
	return await(ctx, s.raft.LeadershipTransfer())
}
