package serve

import (
	"context"
	"errors"
	"fmt"
	"time"

	"manta/node/wire"
	"manta/parallel/comm"
	"manta/parallel/group"
)

// Peers reaches the ranks of a replica on other nodes. Send keeps the order of
// messages to a node within a lane, of which bulk has its own; it may block while
// the peer reads.
type Peers interface {
	Send(ctx context.Context, node, replica string, bulk bool, kind string, data []byte) error
	Call(ctx context.Context, node, replica, kind string, data []byte) ([]byte, error)
}

const (
	// peerTimeout bounds one message to another node.
	peerTimeout = 5 * time.Second
	// joinPause is between two questions whether a node's ranks stand ready.
	joinPause = 100 * time.Millisecond
)

// places gives where every rank of an assignment runs, and on which device.
func (s *Server) places(a wire.Assignment) (nodes, devices [][]string, err error) {
	for range a.Layout.Pipeline {
		nodes = append(nodes, make([]string, a.Layout.Tensor))
		devices = append(devices, make([]string, a.Layout.Tensor))
	}
	if len(a.Shards) != a.Layout.Ranks() {
		return nil, nil, fmt.Errorf("serve: %d shards for a layout of %d ranks", len(a.Shards), a.Layout.Ranks())
	}
	for _, shard := range a.Shards {
		if shard.Stage < 0 || shard.Stage >= len(nodes) || shard.Rank < 0 || shard.Rank >= a.Layout.Tensor || nodes[shard.Stage][shard.Rank] != "" {
			return nil, nil, fmt.Errorf("serve: rank (%d, %d) has no place in the layout, or two", shard.Stage, shard.Rank)
		}
		nodes[shard.Stage][shard.Rank], devices[shard.Stage][shard.Rank] = shard.Node, shard.Device
	}
	return nodes, devices, nil
}

// others counts the ranks of an assignment on every other node.
func (s *Server) others(a wire.Assignment) map[string]int {
	ranks := make(map[string]int)
	for _, shard := range a.Shards {
		if shard.Node != s.cfg.Node {
			ranks[shard.Node]++
		}
	}
	return ranks
}

// driver is the node of rank (0, 0).
func driver(a wire.Assignment) string {
	for _, shard := range a.Shards {
		if shard.Stage == 0 && shard.Rank == 0 {
			return shard.Node
		}
	}
	return ""
}

// tell sends a message about an epoch to another node.
func (s *Server) tell(ctx context.Context, a wire.Assignment, node string, bulk bool, kind string, payload []byte, failure string) error {
	data, err := wire.Marshal(wire.Ranks{Version: wire.Version, Replica: a.Replica, Epoch: a.Epoch, Payload: payload, Err: failure})
	if err != nil {
		return err
	}
	ctx, stop := context.WithTimeout(ctx, peerTimeout)
	defer stop()
	return s.cfg.Peers.Send(ctx, node, a.Replica, bulk, kind, data)
}

// carrier takes the mesh's messages to other nodes.
func (s *Server) carrier(ctx context.Context, a wire.Assignment) comm.Carrier {
	return func(node string, bulk bool, message []byte) error {
		return s.tell(ctx, a, node, bulk, wire.KindMesh, message, "")
	}
}

// remotes are the other nodes of a group.
func (s *Server) remotes(a wire.Assignment) []group.Remote {
	var remotes []group.Remote
	for node, ranks := range s.others(a) {
		remotes = append(remotes, group.Remote{Node: node, Ranks: ranks, Send: func(ctx context.Context, payload []byte) error {
			return s.tell(ctx, a, node, false, wire.KindStep, payload, "")
		}})
	}
	return remotes
}

// answer tells the driver's node what a rank here says.
func (s *Server) answer(ctx context.Context, a wire.Assignment, answer group.Answer) error {
	failure := ""
	if answer.Err != nil {
		failure = answer.Err.Error()
	}
	return s.tell(ctx, a, driver(a), false, wire.KindAnswer, answer.Payload, failure)
}

// join waits until the ranks on every other node stand ready in this epoch.
func (s *Server) join(ctx context.Context, a wire.Assignment) error {
	data, err := wire.Marshal(wire.Ranks{Version: wire.Version, Replica: a.Replica, Epoch: a.Epoch})
	if err != nil {
		return err
	}
	for node := range s.others(a) {
		for {
			asked, stop := context.WithTimeout(ctx, peerTimeout)
			_, err := s.cfg.Peers.Call(asked, node, a.Replica, wire.KindJoin, data)
			stop()
			if err == nil {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("serve: node %s did not join: %w", node, errors.Join(err, ctx.Err()))
			case <-time.After(joinPause):
			}
		}
	}
	return nil
}

// errNotHere answers messages about an epoch that does not run on this node.
var errNotHere = errors.New("serve: no such epoch on this node")

// Join answers another node's call: it returns once the ranks here stand ready.
func (s *Server) Join(ctx context.Context, m wire.Ranks) error {
	r := s.replicaOf(m)
	if r == nil {
		return errNotHere
	}
	for {
		r.mu.Lock()
		live, entered, wanted := r.live, r.entered, r.assignment.Epoch
		r.mu.Unlock()
		switch {
		case live != nil && live.number == m.Epoch:
			return nil
		case wanted > m.Epoch:
			return errNotHere
		}
		select {
		case <-entered:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Peer takes a message of KindStep, KindAnswer or KindMesh. It never blocks; a
// message that the epoch can't take ends it, a stale one is dropped.
func (s *Server) Peer(kind string, m wire.Ranks) {
	r := s.replicaOf(m)
	if r == nil {
		return
	}
	r.mu.Lock()
	live := r.live
	r.mu.Unlock()
	if live == nil || live.number != m.Epoch {
		return
	}
	var err error
	switch {
	case kind == wire.KindStep:
		err = live.epoch.Group.Send(m.Payload)
	case kind == wire.KindMesh:
		err = live.epoch.Mesh.Deliver(m.Payload)
	case kind == wire.KindAnswer && live.spread != nil:
		answer := group.Answer{Payload: m.Payload}
		if m.Err != "" {
			answer.Err = errors.New(m.Err)
		}
		err = live.spread.Deliver(answer)
	}
	if err != nil && !errors.Is(err, comm.ErrClosed) {
		live.end(fmt.Errorf("serve: %s: %w", kind, err))
	}
}

func (s *Server) replicaOf(m wire.Ranks) *replica {
	if m.Version > wire.Version {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r, _ := s.replicas[m.Replica].(*replica) // else it has a process of its own
	return r
}
