// Package node is the composition root of a worker: it builds a node's parts,
// hands them to each other, and stops them in reverse.
//
//	secrets → identity → link → serve → gossip
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"manta/internal/trust"
	"manta/internal/version"
	"manta/node/member"
	"manta/node/serve"
	"manta/node/wire"
	"manta/parallel/link"
	"manta/runtime/weights"
)

const (
	// reportEvery is the heartbeat that heads see.
	reportEvery = 500 * time.Millisecond
	rejoinEvery = 2 * time.Second
	sendTimeout = 5 * time.Second
	maxResolves = 4
	maxJoins    = 64
)

// Config says how a node is made. Addresses are host:port; port 0 takes a free one.
type Config struct {
	Name    string // stable over restarts
	Dir     string // of this node alone
	Secrets trust.Secrets
	Gossip  string
	Link    string
	Join    []string // gossip addresses of other members
	// Advertise is the address that others reach this node at; empty: that of Gossip.
	Advertise string
	Devices   []serve.Kind
	Library   func(downloadDir string) *weights.Library
	Grace     time.Duration // for requests in progress when the node stops
	Logger    *slog.Logger
}

// Node is a running node.
type Node struct {
	cfg     Config
	id      trust.Identity
	log     *slog.Logger
	link    *link.Link
	courier *link.Courier
	members atomic.Pointer[member.List] // nil until New has joined
	server  *serve.Server
	changed chan struct{} // holds one: there is something to report
}

// New builds a node: its ports are open and it is a member when New returns. Run
// makes it work; Close is needed in any case.
func New(cfg Config) (_ *Node, err error) {
	n := &Node{cfg: cfg, log: cfg.Logger, changed: make(chan struct{}, 1)}
	defer func() {
		if err != nil {
			n.Close()
		}
	}()
	id, err := trust.StableID(filepath.Clean(cfg.Dir), cfg.Name)
	if err != nil {
		return nil, err
	}
	n.id = trust.Identity{Role: trust.Node, ID: id}
	authority, err := trust.NewAuthority(cfg.Secrets, n.id)
	if err != nil {
		return nil, err
	}
	n.link, err = link.Start(link.Config{Authority: authority, Listen: cfg.Link, Resolve: n.address, Logger: cfg.Logger})
	if err != nil {
		return nil, err
	}
	n.courier = link.NewCourier(n.link)
	n.server = serve.New(serve.Config{
		Node: id, Devices: cfg.Devices, Library: cfg.Library, Send: heads{n.link}, Peers: peers{n.link}, Logger: cfg.Logger, Changed: n.wake,
	})
	n.listen()
	keys, err := cfg.Secrets.GossipKeys()
	if err != nil {
		return nil, err
	}
	members, err := member.Start(member.Config{
		Self: n.id, Keys: keys, Listen: cfg.Gossip, Advertise: cfg.Advertise, Logger: cfg.Logger,
		Info: member.Info{Link: uint16(n.link.Port()), Version: version.String()},
	})
	if err != nil {
		return nil, err
	}
	n.members.Store(members)
	return n, nil
}

// ID is the node's id.
func (n *Node) ID() string { return n.id.ID }

// Gossip is the address at which others join this node.
func (n *Node) Gossip() string { return n.members.Load().Address() }

// Run works until ctx ends. Then the node takes no more requests, gives those in
// progress their grace, and unloads.
func (n *Node) Run(ctx context.Context) error {
	rest, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	group, rest := errgroup.WithContext(rest)
	group.Go(func() error {
		defer stop()
		select {
		case <-rest.Done():
			return nil
		case <-ctx.Done():
		}
		grace, end := context.WithTimeout(rest, n.cfg.Grace)
		defer end()
		if err := n.server.Drain(grace); err != nil {
			n.log.Warn("requests cut off at shutdown", "error", err)
		}
		return nil
	})
	group.Go(func() error { return over(rest, n.server.Run(rest)) })
	group.Go(func() error { return over(rest, n.report(rest)) })
	group.Go(func() error { return over(rest, n.join(rest)) })
	return group.Wait()
}

// over drops the error of something that ended because it was told to.
func over(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil
	}
	return err
}

// Close stops what New started, in reverse.
func (n *Node) Close() error {
	var err error
	if members := n.members.Load(); members != nil {
		err = members.Leave(time.Second)
	}
	if n.courier != nil {
		n.courier.Close()
	}
	if n.link != nil {
		n.link.Close()
	}
	return err
}

func (n *Node) address(peer trust.Identity) (string, error) {
	members := n.members.Load()
	if members == nil {
		return "", fmt.Errorf("node: %s is not known yet", peer)
	}
	return members.Resolve(peer)
}

func (n *Node) wake() {
	select {
	case n.changed <- struct{}{}:
	default:
	}
}

// join meets the cluster, and meets it again when no other member is left: all
// addresses may have changed.
func (n *Node) join(ctx context.Context) error {
	ticker := time.NewTicker(rejoinEvery)
	defer ticker.Stop()
	for {
		members := n.members.Load()
		if len(members.Members()) < 2 {
			if err := members.Join(n.cfg.Join...); err != nil {
				n.log.Warn("join", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
}

// report tells every head what this node has and runs, and how much each may
// send: again and again, and at once when something changes.
func (n *Node) report(ctx context.Context) error {
	ticker := time.NewTicker(reportEvery)
	defer ticker.Stop()
	for {
		joined := n.members.Load().Changed()
		if err := n.tell(); err != nil {
			n.log.Error("report", "error", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-joined:
		case <-n.changed:
		case <-ticker.C:
		}
	}
}

func (n *Node) tell() error {
	heads := map[trust.Identity]bool{}
	for _, m := range n.members.Load().Members() {
		if m.Role == trust.Head {
			heads[m.Identity] = true
		}
	}
	n.courier.Keep(heads)
	report, err := wire.Marshal(n.server.Report())
	if err != nil {
		return err
	}
	credits := n.server.Credits(len(heads))
	for head := range heads {
		n.courier.Tell(head, wire.KindReport, "", report)
		for _, credit := range credits {
			data, err := wire.Marshal(credit)
			if err != nil {
				return err
			}
			n.courier.Tell(head, wire.KindCredit, credit.Replica, data)
		}
	}
	return nil
}

// listen says what becomes of the messages that heads and other nodes send. Each
// handler only copies and enqueues.
func (n *Node) listen() {
	handle(n, trust.Head, wire.KindRequest, n.server.Request)
	handle(n, trust.Head, wire.KindCancel, n.server.Cancel)
	handle(n, trust.Head, wire.KindAssign, n.server.Assign)
	for _, kind := range []string{wire.KindStep, wire.KindAnswer, wire.KindMesh} {
		handle(n, trust.Node, kind, func(m wire.Ranks) { n.server.Peer(kind, m) })
	}
	n.link.HandleCall(wire.KindJoin, maxJoins, func(ctx context.Context, m link.Message) ([]byte, error) {
		var ranks wire.Ranks
		if err := decode(m, trust.Node, &ranks); err != nil {
			return nil, err
		}
		return nil, n.server.Join(ctx, ranks)
	})
	n.link.HandleCall(wire.KindResolve, maxResolves, func(ctx context.Context, m link.Message) ([]byte, error) {
		var question wire.Resolve
		if err := decode(m, trust.Head, &question); err != nil {
			return nil, err
		}
		return wire.Marshal(n.server.Resolve(ctx, question))
	})
}

func handle[M any](n *Node, from trust.Role, kind string, take func(M)) {
	n.link.Handle(kind, func(m link.Message) {
		var message M
		if err := decode(m, from, &message); err != nil {
			n.log.Warn("message refused", "kind", kind, "from", m.From.String(), "error", err)
			return
		}
		take(message)
	})
}

var errRole = errors.New("node: this role may not send such messages")

func decode(m link.Message, from trust.Role, message any) error {
	if m.From.Role != from {
		return errRole
	}
	return wire.Unmarshal(m.Data, message)
}

// heads sends what the server has for them.
type heads struct{ link *link.Link }

var _ serve.Sender = heads{}

func (h heads) Send(ctx context.Context, head, kind string, data []byte) error {
	ctx, stop := context.WithTimeout(ctx, sendTimeout)
	defer stop()
	return h.link.Send(ctx, trust.Identity{Role: trust.Head, ID: head}, link.Control, kind, data)
}

// peers reaches other nodes.
type peers struct{ link *link.Link }

var _ serve.Peers = peers{}

func (p peers) Send(ctx context.Context, node string, bulk bool, kind string, data []byte) error {
	lane := link.Control
	if bulk {
		lane = link.Bulk
	}
	return p.link.Send(ctx, trust.Identity{Role: trust.Node, ID: node}, lane, kind, data)
}

func (p peers) Call(ctx context.Context, node, kind string, data []byte) ([]byte, error) {
	return p.link.Call(ctx, trust.Identity{Role: trust.Node, ID: node}, kind, data)
}
