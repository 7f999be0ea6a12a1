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
	"net"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"manta/internal/tail"
	"manta/internal/trace"
	"manta/internal/trust"
	"manta/internal/version"
	"manta/node/device"
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
	sayAgain    = time.Minute
	maxResolves = 4
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
	// Processes says how to run a replica's ranks in a process of their own; nil: in this one.
	Processes *Processes
	Labels    map[string]string // told to the heads: zone, rack
	Library   func(downloadDir string) *weights.Library
	Health    net.Listener  // of /livez, /readyz and /metrics; nil: none. The node closes it
	Grace     time.Duration // for shards to move and requests to end when the node stops
	Alone     bool          // no other node could take its shards
	Tracer    *trace.Tracer // nil: requests are not traced
	Logger    *slog.Logger
	Tail      *tail.Lines // of Logger; nil: none is kept
}

// Processes says what device processes are made with.
type Processes struct {
	Argv      []string // empty: this program
	Devices   string   // as --devices has it
	Downloads string   // where models are kept by default
	Traces    string   // as --otlp-traces-endpoint has it
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
	device  *device.Launcher // nil: ranks run in this process
	changed chan struct{}    // holds one: there is something to report
	left    chan struct{}    // closed when Leave has succeeded: Run ends
	once    sync.Once        // closes left
}

// New builds a node: its ports are open and it is a member when New returns. Run
// makes it work; Close is needed in any case.
func New(cfg Config) (_ *Node, err error) {
	n := &Node{cfg: cfg, log: cfg.Logger, changed: make(chan struct{}, 1), left: make(chan struct{})}
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
	if !cfg.Alone { // else there is nothing to divide
		if cfg.Devices, err = measured(cfg.Devices); err != nil {
			return nil, err
		}
		n.cfg.Devices = cfg.Devices
	}
	n.link, err = link.Start(link.Config{Authority: authority, Listen: cfg.Link, Resolve: n.address, Lost: n.lost, Logger: cfg.Logger})
	if err != nil {
		return nil, err
	}
	n.courier = link.NewCourier(n.link, link.Tokens)
	serving := serve.Config{
		Node: id, Devices: cfg.Devices, Library: cfg.Library, Logger: cfg.Logger, Tracer: cfg.Tracer, Changed: n.wake,
		Send: device.Heads{Link: n.link}, Peers: device.Peers{Link: n.link, Ranks: func(node, replica string) trust.Identity {
			return n.members.Load().Ranks(node, replica)
		}},
	}
	if p := cfg.Processes; p != nil {
		n.device, err = device.NewLauncher(device.LauncherConfig{
			Argv: p.Argv, Node: id, Secrets: cfg.Secrets, Devices: p.Devices, Downloads: p.Downloads, Traces: p.Traces,
			Link: n.link, Members: n.others, Logger: cfg.Logger, Changed: n.wake,
		})
		if err != nil {
			return nil, err
		}
		serving.Hosts = n.device
	}
	n.server = serve.New(serving)
	n.listen()
	keys, err := cfg.Secrets.GossipKeys()
	if err != nil {
		return nil, err
	}
	members, err := member.Start(member.Config{
		Self: n.id, Keys: keys, Listen: cfg.Gossip, Advertise: cfg.Advertise, Logger: cfg.Logger,
		Info: member.Info{Link: uint16(n.link.Port()), Version: version.String(), Processes: n.device != nil},
	})
	if err != nil {
		return nil, err
	}
	n.members.Store(members)
	return n, nil
}

// Meet adds gossip addresses of other members to Join. It is called before Run.
func (n *Node) Meet(addresses ...string) { n.cfg.Join = append(n.cfg.Join, addresses...) }

// ID is the node's id.
func (n *Node) ID() string { return n.id.ID }

// Gossip is the address at which others join this node.
func (n *Node) Gossip() string { return n.members.Load().Address() }

// Run works until ctx ends or Leave has succeeded. Then the heads move the node's
// shards elsewhere, within its grace; where they can't, it takes no more requests
// and lets those in progress end. It unloads last.
func (n *Node) Run(ctx context.Context) error {
	rest, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	group, rest := errgroup.WithContext(rest)
	group.Go(func() error {
		defer stop()
		select {
		case <-rest.Done():
			return nil
		case <-n.left:
			return nil
		case <-ctx.Done():
		}
		grace, end := context.WithTimeout(rest, n.cfg.Grace)
		defer end()
		if !n.cfg.Alone {
			if err := n.server.Empty(grace, false); err != nil {
				n.log.Warn("shards not moved at shutdown", "error", err)
			}
		}
		if err := n.server.Drain(grace); err != nil {
			n.log.Warn("requests cut off at shutdown", "error", err)
		}
		return nil
	})
	group.Go(func() error { return over(rest, n.server.Run(rest)) })
	group.Go(func() error { return over(rest, n.report(rest)) })
	for _, kind := range n.cfg.Devices {
		if watched, ok := kind.(serve.Watched); ok {
			group.Go(func() error { return over(rest, watched.Watch(rest, n.log, n.wake)) })
		}
	}
	group.Go(func() error { return over(rest, n.join(rest)) })
	group.Go(func() error { return n.serveHealth(rest) })
	return group.Wait()
}

// Drain moves the node's shards elsewhere and returns when none is left. The node
// goes on living; Undrain makes it take shards again.
func (n *Node) Drain(ctx context.Context) error { return n.server.Empty(ctx, false) }

// Undrain takes Drain back.
func (n *Node) Undrain() { n.server.Stay() }

// Leave drains the node, makes the heads forget it, and ends Run.
func (n *Node) Leave(ctx context.Context) error {
	if err := n.server.Empty(ctx, true); err != nil {
		return err
	}
	for _, m := range n.members.Load().Members() {
		if m.Role != trust.Head {
			continue
		}
		if _, err := n.link.Call(ctx, m.Identity, wire.KindLeave, nil); err == nil {
			n.once.Do(func() { close(n.left) })
			return nil
		}
	}
	return fmt.Errorf("node: no head took its leave: %w", serve.ErrNoLeader)
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
	if n.device != nil {
		n.device.Close()
	}
	if n.link != nil {
		n.link.Close()
	}
	if n.cfg.Health != nil {
		if e := n.cfg.Health.Close(); !errors.Is(e, net.ErrClosed) {
			err = errors.Join(err, e)
		}
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

// others lists who is there, for device processes.
func (n *Node) others() []wire.Member {
	var list []wire.Member
	for _, m := range n.members.Load().Members() {
		list = append(list, wire.Member{Role: string(m.Role), ID: m.ID, Address: m.Link(), Processes: m.Info.Processes})
	}
	return list
}

func (n *Node) wake() {
	select {
	case n.changed <- struct{}{}:
	default:
	}
}

// join meets the cluster, and meets it again while no head is to be seen: all of
// them may have other addresses now.
func (n *Node) join(ctx context.Context) error {
	ticker := time.NewTicker(rejoinEvery)
	defer ticker.Stop()
	told := len(n.cfg.Join) > 0
	var said string // and when: what stays wrong is not said each time
	var at time.Time
	for {
		members := n.members.Load()
		if !slices.ContainsFunc(members.Members(), func(m member.Member) bool { return m.Role == trust.Head }) {
			if err := members.Join(n.cfg.Join...); err != nil {
				if text := err.Error(); text != said || time.Since(at) > sayAgain {
					said, at = text, time.Now()
					n.log.Warn("join", "error", err)
				}
			} else if !told {
				told = true
				n.log.Warn("no head is known", "hint", "give --join, or a head that names this node there")
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
	heads, earlier := map[trust.Identity]bool{}, map[trust.Identity]bool{}
	for _, m := range n.members.Load().Members() {
		if m.Role == trust.Head {
			heads[m.Identity] = true
			if m.Info.Reads < wire.CreditsInReports {
				earlier[m.Identity] = true
			}
		}
	}
	n.courier.Keep(heads)
	if n.device != nil {
		n.device.Tell()
	}
	inventory := n.server.Report()
	inventory.Labels, inventory.Credits = n.cfg.Labels, n.server.Credits(len(heads))
	report, err := wire.Marshal(inventory)
	if err != nil {
		return err
	}
	for head := range heads {
		n.courier.Tell(head, wire.KindReport, "", report)
	}
	for head := range earlier {
		for _, credit := range inventory.Credits {
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
	device.Receive(n.link, n.server, n.log)
	device.Handle(n.link, n.log, n.server.Assign, wire.KindAssign, trust.Head)
	n.link.HandleCall(wire.KindResolve, maxResolves, func(ctx context.Context, m link.Message) ([]byte, error) {
		var question wire.Resolve
		if err := device.Decode(m, &question, trust.Head); err != nil {
			return nil, err
		}
		return wire.Marshal(n.server.Resolve(ctx, question))
	})
	n.link.HandleCall(wire.KindLogs, maxResolves, func(_ context.Context, m link.Message) ([]byte, error) {
		var question wire.Logs
		if err := device.Decode(m, &question, trust.Head); err != nil {
			return nil, err
		}
		return wire.Marshal(question.From(n.cfg.Tail))
	})
}

// lost is told by the link that messages to or from a peer may be lost. A session
// that is replaced was of an earlier epoch: the peer that lost it has ended that.
func (n *Node) lost(peer trust.Identity, err error) {
	if peer.Role != trust.Head && !errors.Is(err, link.ErrReplaced) {
		n.server.Lost(peer.Home().ID, err)
	}
}
