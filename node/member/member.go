// Package member is the cluster's membership: who is there, at which ports. It
// adapts hashicorp/memberlist (SWIM: Das, Gupta & Motivala 2002; Lifeguard:
// Dadgar et al. 2017). Gossip is encrypted with the keys of the cluster secrets.
//
// A member's name is <role>/<id>/<boot>: a process that was killed and comes
// back is a new member at once, whatever its old self is thought to be, and the
// greatest boot of an id is the one that counts. memberlist's callbacks copy what
// they are told and return. The package decides nothing.
package member

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/hashicorp/memberlist"

	"manta/internal/trust"
)

// ErrJoin says that none of the given addresses answered.
var ErrJoin = errors.New("member: no member reached")

// Info is what a member tells about itself; at most memberlist.MetaMaxSize bytes
// when encoded. Ports are on the member's gossip address.
type Info struct {
	Link    uint16 `cbor:"1,keyasint"`           // of its NATS server
	Raft    uint16 `cbor:"2,keyasint,omitempty"` // heads
	API     string `cbor:"3,keyasint,omitempty"` // heads: address of the HTTP API
	Version string `cbor:"4,keyasint,omitempty"`
	Fresh   bool   `cbor:"5,keyasint,omitempty"`  // heads: belongs to no cluster yet
	Reads   int    `cbor:"10,keyasint,omitempty"` // heads: the newest version of commands
	// Processes: this node runs each replica's ranks in a process of its own, with
	// an inbox of its own.
	Processes bool `cbor:"6,keyasint,omitempty"`
	Leaving   bool `cbor:"7,keyasint,omitempty"` // heads: is no voter any more, and ends
}

// A Member is one living process.
type Member struct {
	trust.Identity
	Boot uint64 // when it started, Unix nanoseconds: greater is newer
	IP   netip.Addr
	Info Info
}

// Link is the address of the member's NATS server.
func (m Member) Link() string { return netip.AddrPortFrom(m.IP, m.Info.Link).String() }

// Raft is the address of the member's raft port.
func (m Member) Raft() string { return netip.AddrPortFrom(m.IP, m.Info.Raft).String() }

// Config says how to join.
type Config struct {
	Self   trust.Identity
	Keys   [][]byte // of trust.Secrets.GossipKeys
	Listen string   // host:port, for UDP and TCP; port 0 takes a free one
	// Advertise is the address that others reach this process at; empty: that of
	// Listen, or, when that is unspecified, one of this machine's private ones.
	Advertise string
	Info      Info
	Logger    *slog.Logger
}

// List is this process's view of who is there. It is safe for concurrent use.
type List struct {
	self Member
	meta atomic.Pointer[[]byte]
	list *memberlist.Memberlist

	leaving atomic.Bool // what memberlist has to say about its end is of no interest

	mu      sync.Mutex // guards what follows
	members map[string]Member
	dead    map[trust.Identity]death
	changed chan struct{}
}

// death is a member that gossip gave up, rightly or not.
type death struct {
	Member
	at time.Time
}

// deadFor is how long the address of a dead member is kept: one that merely got no
// processor is back soon.
const deadFor = time.Minute

// Start begins to gossip, alone; Join meets the others.
func Start(cfg Config) (*List, error) {
	host, portText, err := net.SplitHostPort(cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("member: listen address %q: %w", cfg.Listen, err)
	}
	port, err := strconv.Atoi(portText)
	if err != nil {
		return nil, fmt.Errorf("member: listen address %q: %w", cfg.Listen, err)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	l := &List{members: map[string]Member{}, dead: map[trust.Identity]death{}, changed: make(chan struct{})}
	l.self = Member{Identity: cfg.Self, Boot: uint64(time.Now().UnixNano()), Info: cfg.Info}
	if err := l.describe(cfg.Info); err != nil {
		return nil, err
	}
	keyring, err := memberlist.NewKeyring(cfg.Keys, cfg.Keys[0])
	if err != nil {
		return nil, fmt.Errorf("member: keys: %w", err)
	}
	config := memberlist.DefaultLANConfig()
	config.Name = l.self.name()
	config.Label = "manta"
	config.BindAddr, config.BindPort, config.AdvertisePort = host, port, port
	config.AdvertiseAddr = cfg.Advertise
	config.Keyring = keyring
	config.GossipVerifyIncoming, config.GossipVerifyOutgoing = true, true
	// A dead member is noticed within about two seconds.
	config.ProbeInterval, config.ProbeTimeout = 500*time.Millisecond, 250*time.Millisecond
	config.SuspicionMult = 2
	config.GossipToTheDeadTime = 10 * time.Second
	// What a member missed while it was cut off, or others were, it learns soon: until
	// then it can't answer a member that it takes for dead.
	config.PushPullInterval = 2 * time.Second
	config.DeadNodeReclaimTime = time.Second
	config.Delegate, config.Events = delegate{l}, events{l}
	config.Logger = log.New(logWriter{cfg.Logger, &l.leaving}, "", 0)
	if l.list, err = memberlist.Create(config); err != nil {
		return nil, fmt.Errorf("member: gossip on %s: %w", cfg.Listen, err)
	}
	return l, nil
}

// describe sets what others are told.
func (l *List) describe(info Info) error {
	meta, err := cbor.Marshal(info)
	if err != nil {
		return fmt.Errorf("member: %w", err)
	}
	if len(meta) > memberlist.MetaMaxSize {
		return fmt.Errorf("member: metadata of %d bytes, at most %d", len(meta), memberlist.MetaMaxSize)
	}
	l.meta.Store(&meta)
	return nil
}

// Update tells the others something new about this process.
func (l *List) Update(info Info) error {
	if err := l.describe(info); err != nil {
		return err
	}
	if err := l.list.UpdateNode(time.Second); err != nil {
		return fmt.Errorf("member: %w", err)
	}
	return nil
}

func (m Member) name() string {
	return string(m.Role) + "/" + m.ID + "/" + strconv.FormatUint(m.Boot, 10)
}

// Join meets the cluster at any of the addresses: host:port, where a host may be
// a DNS name that stands for many, or @FILE with an address a line.
func (l *List) Join(addresses ...string) error {
	addresses, err := expand(addresses)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrJoin, err)
	}
	if len(addresses) == 0 {
		return nil
	}
	if reached, err := l.list.Join(addresses); reached == 0 {
		text := ""
		if err != nil { // of every address, a line each after the first
			_, each, _ := strings.Cut(err.Error(), "* ")
			text = strings.TrimSpace(strings.ReplaceAll(each, "\n\t* ", "; "))
		}
		if strings.Contains(text, "no installed keys") {
			text = "another secret is used there: " + text
		}
		return fmt.Errorf("%w: %s", ErrJoin, text)
	}
	return nil
}

const (
	maxJoinFile = 1 << 20
	maxJoins    = 4096
)

// expand reads the files among join addresses, anew each time: who keeps one may
// change it. Empty lines and lines that begin with # are skipped.
func expand(addresses []string) ([]string, error) {
	var all []string
	for _, address := range addresses {
		name, isFile := strings.CutPrefix(address, "@")
		if !isFile {
			all = append(all, address)
			continue
		}
		file, err := os.Open(name)
		if err != nil {
			return nil, fmt.Errorf("--join %s: %w", address, err)
		}
		text, err := io.ReadAll(io.LimitReader(file, maxJoinFile))
		if err = errors.Join(err, file.Close()); err != nil {
			return nil, fmt.Errorf("--join %s: %w", address, err)
		}
		for line := range strings.Lines(string(text)) {
			if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
				all = append(all, line)
			}
		}
	}
	if len(all) > maxJoins {
		return nil, fmt.Errorf("--join: %d addresses, at most %d", len(all), maxJoins)
	}
	return all, nil
}

// Address is where others may join.
func (l *List) Address() string { return l.list.LocalNode().Address() }

// Leave tells the others that this process ends, and stops.
func (l *List) Leave(timeout time.Duration) error {
	l.leaving.Store(true)
	_ = l.list.Leave(timeout) // who does not hear of it in time finds out
	return l.list.Shutdown()
}

// Close stops without a word, as a process that is killed.
func (l *List) Close() error {
	l.leaving.Store(true)
	return l.list.Shutdown()
}

// Members gives who is there now, this process included, in the order of their
// identities; of several boots of one id the newest.
func (l *List) Members() []Member {
	l.mu.Lock()
	newest := map[trust.Identity]Member{}
	for _, m := range l.members {
		if old, ok := newest[m.Identity]; !ok || m.Boot > old.Boot {
			newest[m.Identity] = m
		}
	}
	l.mu.Unlock()
	all := make([]Member, 0, len(newest))
	for _, m := range newest {
		all = append(all, m)
	}
	slices.SortFunc(all, func(a, b Member) int { return cmp.Or(cmp.Compare(a.Role, b.Role), cmp.Compare(a.ID, b.ID)) })
	return all
}

// Find gives the newest boot of an identity.
func (l *List) Find(id trust.Identity) (Member, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var found Member
	for _, m := range l.members {
		if m.Identity == id && m.Boot > found.Boot {
			found = m
		}
	}
	return found, found.Boot > 0
}

// Resolve gives the address of a member's NATS server; also of one that gossip
// gave up a short while ago: it may live, and if not the address answers nothing.
func (l *List) Resolve(id trust.Identity) (string, error) {
	if m, ok := l.Find(id); ok {
		return m.Link(), nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if d, ok := l.dead[id]; ok && time.Since(d.at) < deadFor {
		return d.Link(), nil
	}
	return "", fmt.Errorf("%s is not a living member", id)
}

// Ranks is who runs a node's ranks of a replica: the node itself, or a device
// process of it.
func (l *List) Ranks(node, replica string) trust.Identity {
	id := trust.Identity{Role: trust.Node, ID: node}
	if m, ok := l.Find(id); ok && m.Info.Processes {
		return trust.DeviceOf(node, replica)
	}
	return id
}

// Changed gives a channel that is closed at the next change of the members.
func (l *List) Changed() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changed
}

// set copies what a callback was told. gone removes the member.
func (l *List) set(node *memberlist.Node, gone bool) {
	m, err := parse(node)
	if err != nil {
		return // not one of ours, or of a version that we can't read
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(l.dead, func(_ trust.Identity, d death) bool { return now.Sub(d.at) >= deadFor })
	if gone {
		delete(l.members, node.Name)
		if node.State == memberlist.StateDead {
			l.dead[m.Identity] = death{m, now}
		}
	} else {
		l.members[node.Name] = m
	}
	close(l.changed)
	l.changed = make(chan struct{})
}

func parse(node *memberlist.Node) (Member, error) {
	part := strings.Split(node.Name, "/")
	if len(part) != 3 {
		return Member{}, fmt.Errorf("member: name %q", node.Name)
	}
	m := Member{Identity: trust.Identity{Role: trust.Role(part[0]), ID: part[1]}}
	if err := m.Check(); err != nil {
		return Member{}, err
	}
	var err error
	if m.Boot, err = strconv.ParseUint(part[2], 10, 64); err != nil {
		return Member{}, fmt.Errorf("member: name %q: %w", node.Name, err)
	}
	ip, ok := netip.AddrFromSlice(node.Addr)
	if !ok {
		return Member{}, fmt.Errorf("member: %s has no address", node.Name)
	}
	m.IP = ip.Unmap()
	if err := cbor.Unmarshal(node.Meta, &m.Info); err != nil {
		return Member{}, fmt.Errorf("member: metadata of %s: %w", node.Name, err)
	}
	return m, nil
}

// delegate gives memberlist this process's metadata; nothing else is gossiped.
type delegate struct{ l *List }

var _ memberlist.Delegate = delegate{}

func (d delegate) NodeMeta(int) []byte           { return *d.l.meta.Load() }
func (delegate) NotifyMsg([]byte)                {}
func (delegate) GetBroadcasts(int, int) [][]byte { return nil }
func (delegate) LocalState(bool) []byte          { return nil }
func (delegate) MergeRemoteState([]byte, bool)   {}

type events struct{ l *List }

var _ memberlist.EventDelegate = events{}

func (e events) NotifyJoin(n *memberlist.Node)   { e.l.set(n, false) }
func (e events) NotifyUpdate(n *memberlist.Node) { e.l.set(n, false) }
func (e events) NotifyLeave(n *memberlist.Node)  { e.l.set(n, true) }

// logWriter passes memberlist's lines on to slog: "[WARN] memberlist: …".
type logWriter struct {
	log     *slog.Logger
	leaving *atomic.Bool
}

func (w logWriter) Write(line []byte) (int, error) {
	text := string(bytes.TrimSpace(line))
	switch {
	case w.leaving.Load():
	case strings.Contains(text, "[ERR"):
		w.log.Warn("gossip", "message", text)
	case strings.Contains(text, "[WARN]"): // members that come and go
		w.log.Info("gossip", "message", text)
	default:
		w.log.Debug("gossip", "message", text)
	}
	return len(line), nil
}
