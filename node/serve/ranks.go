package serve

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"manta/node/wire"
	"manta/parallel/comm"
	"manta/parallel/group"
	"manta/parallel/link"
	"manta/runtime/engine"
)

// Peers reaches the ranks of a replica on other nodes. Send keeps the order of
// messages to a node within a lane, of which bulk has its own; it may block while
// the peer reads. A message is all its parts.
type Peers interface {
	Send(ctx context.Context, node, replica string, bulk bool, kind string, parts ...[]byte) error
	// Without a replica it is the node itself that is called.
	Call(ctx context.Context, node, replica, kind string, data []byte) ([]byte, error)
}

const (
	// peerTimeout bounds one message to another node.
	peerTimeout = 5 * time.Second
	// joinPause is between two questions whether a node's ranks stand ready, and
	// joinWait how long a node lets such a question wait for its answer: no answer
	// for peerTimeout means that the node is out of reach.
	joinPause = 100 * time.Millisecond
	joinWait  = 2 * time.Second
	// pingTimeout is how long a node may take to say that it lives.
	pingTimeout = time.Second
)

// ErrRefused: a peer was reached, and answers with an error.
var ErrRefused = errors.New("serve: the peer refuses")

// A lostNode ends an epoch: messages to or from another node may be lost.
type lostNode struct {
	node string
	err  error
}

func (l *lostNode) Error() string { return fmt.Sprintf("node %s: %v", l.node, l.err) }
func (l *lostNode) Unwrap() error { return l.err }

// blame finds the node that ended an epoch, if it was one: that messages to it
// failed, or the first of the stages that owes an answer.
func (s *Server) blame(err error, nodes [][]string) (node string, ok bool) {
	var lost *lostNode
	if errors.As(err, &lost) {
		return lost.node, true
	}
	var stuck *engine.StuckError
	if !errors.As(err, &stuck) {
		return "", false
	}
	ranks := map[string]uint64{}
	for _, stage := range nodes {
		for _, node := range stage {
			ranks[node]++
		}
	}
	for _, stage := range nodes {
		for _, node := range stage {
			answers := stuck.Answers[node]
			if node == s.cfg.Node {
				answers = stuck.Answers[""]
			}
			if answers < ranks[node]*(stuck.Steps+1) {
				return node, true
			}
		}
	}
	return "", false
}

// reachable asks another node whether it lives.
func (s *Server) reachable(ctx context.Context, node string) bool {
	if node == s.cfg.Node {
		return true
	}
	ctx, stop := context.WithTimeout(ctx, pingTimeout)
	defer stop()
	_, err := s.cfg.Peers.Call(ctx, node, "", wire.KindPing, nil)
	return err == nil || errors.Is(err, ErrRefused)
}

// Lost tells that messages to or from another node may be lost: the epochs that
// have ranks there end. One whose driver still asks whether all are there has lost
// nothing but questions.
func (s *Server) Lost(node string, err error) {
	s.mu.Lock()
	replicas := slices.Collect(maps.Values(s.replicas))
	s.mu.Unlock()
	for _, hosted := range replicas {
		r, here := hosted.(*replica)
		if !here {
			continue // its own process hears of it
		}
		r.mu.Lock()
		live, ranks := r.live, s.others(r.assignment)[node]
		r.mu.Unlock()
		if live != nil && ranks > 0 && live.joined.Load() {
			live.end(&lostNode{node, err})
		}
	}
}

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

// tell sends a message about an epoch to another node; its payload is all parts.
func (s *Server) tell(ctx context.Context, a wire.Assignment, node string, bulk bool, kind, failure string, payload ...[]byte) error {
	size := 0
	for _, p := range payload {
		size += len(p)
	}
	head, err := wire.Marshal(wire.Ranks{Version: wire.Version, Replica: a.Replica, Epoch: a.Epoch, Err: failure})
	if err != nil {
		return err
	}
	if size > 0 {
		head = link.Field(head, 4, size)
	}
	ctx, stop := context.WithTimeout(ctx, peerTimeout)
	defer stop()
	if err := s.cfg.Peers.Send(ctx, node, a.Replica, bulk, kind, append([][]byte{head}, payload...)...); err != nil {
		return &lostNode{node, err}
	}
	return nil
}

// carrier takes the mesh's messages to other nodes.
func (s *Server) carrier(ctx context.Context, a wire.Assignment) comm.Carrier {
	return func(node string, bulk bool, head, rows []byte) error {
		return s.tell(ctx, a, node, bulk, wire.KindMesh, "", head, rows)
	}
}

// remotes are the other nodes of a group.
func (s *Server) remotes(a wire.Assignment) []group.Remote {
	var remotes []group.Remote
	for node, ranks := range s.others(a) {
		remotes = append(remotes, group.Remote{Node: node, Ranks: ranks, Send: func(ctx context.Context, payload []byte) error {
			return s.tell(ctx, a, node, false, wire.KindStep, "", payload)
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
	return s.tell(ctx, a, driver(a), false, wire.KindAnswer, failure, answer.Payload)
}

// join waits until the ranks on every other node stand ready in this epoch.
func (s *Server) join(ctx context.Context, a wire.Assignment) error {
	data, err := wire.Marshal(wire.Ranks{Version: wire.Version, Replica: a.Replica, Epoch: a.Epoch})
	if err != nil {
		return err
	}
	for node := range s.others(a) {
		heard := time.Now()
		for {
			asked, stop := context.WithTimeout(ctx, joinWait+pingTimeout)
			_, err := s.cfg.Peers.Call(asked, node, a.Replica, wire.KindJoin, data)
			stop()
			switch {
			case err == nil:
			case errors.Is(err, ErrRefused):
				heard = time.Now()
			case time.Since(heard) > peerTimeout:
				return fmt.Errorf("serve: did not join: %w", &lostNode{node, err})
			}
			if err == nil {
				break
			}
			s.cfg.Logger.Info("replica waits for ranks", "replica", a.Replica, "epoch", a.Epoch, "node", node, "err", err)
			select {
			case <-ctx.Done():
				return fmt.Errorf("serve: node %s did not join: %w", node, errors.Join(err, ctx.Err()))
			case <-time.After(joinPause):
			}
		}
	}
	return nil
}

var (
	// errNotHere answers messages about an epoch that does not run on this node.
	errNotHere = errors.New("serve: no such epoch on this node")
	// errNotYet answers who waits for ranks that are still being loaded.
	errNotYet = errors.New("serve: the ranks here are not ready yet")
)

// Join answers another node's call: it returns once the ranks here stand ready.
func (s *Server) Join(ctx context.Context, m wire.Ranks) error {
	r := s.replicaOf(m)
	if r == nil {
		return errNotHere
	}
	late := time.After(joinWait)
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
		case <-late:
			return errNotYet
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Peer takes a message of KindStep, KindAnswer or KindMesh from another node. It
// never blocks; a message that the epoch can't take ends it, a stale one and one
// of a node without a rank in the group is dropped.
func (s *Server) Peer(from, kind string, m wire.Ranks) {
	r := s.replicaOf(m)
	if r == nil {
		return
	}
	r.mu.Lock()
	live, ranks := r.live, s.others(r.assignment)[from]
	r.mu.Unlock()
	if live == nil || live.number != m.Epoch || ranks == 0 {
		return
	}
	var err error
	switch {
	case kind == wire.KindStep:
		err = live.epoch.Group.Send(bytes.Clone(m.Payload))
	case kind == wire.KindMesh:
		err = live.epoch.Mesh.Deliver(m.Payload)
	case kind == wire.KindAnswer && live.spread != nil:
		answer := group.Answer{Node: from, Payload: bytes.Clone(m.Payload)}
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
