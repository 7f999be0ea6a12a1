// Package link carries messages between the processes of a cluster. Each process
// embeds a NATS server at which it alone subscribes; whoever has something for
// it connects there and publishes: one network hop, no broker in the middle.
//
// Two lanes lead to each peer, a connection each, so that steps and results
// never wait behind activations. They are dialled when first needed and closed
// when idle. Connections are TLS, bound to ids by internal/trust; a peer may
// publish only under its own name, so the receiver knows who sent a message.
//
// A lane keeps the order of its messages. Delivery is at most once: nothing is
// sent again after a connection broke, what was in flight is lost, and Lost is
// called. Messages are cut into numbered chunks below the server's maximum; a
// sender has at most Window bytes on the way to one peer's lane and waits for
// credit beyond that; a missing chunk breaks the session aloud.
//
// What heads read of all nodes, tokens, goes the other way round (Tokens): who has it
// publishes at its own node's server, and who wants it follows that node: it connects
// there and reads. All connections that a process follows are read by one goroutine.
//
// A device process has no server: it subscribes at its node's, under an inbox of
// its own, and publishes to everyone else's as any process does.
//
// Link owns its server, connections and goroutines; Close waits for all.
package link

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"manta/internal/trust"
)

// Errors of this package; all are wrapped with the peer and the kind.
var (
	ErrProtocol = errors.New("link: malformed message")
	ErrGap      = errors.New("link: chunk missing")
	// ErrReplaced: the peer began another session, and the one before had not ended
	// in order: what was on its way then may be lost. The peer knew before.
	ErrReplaced = errors.New("link: session replaced")
	ErrTooLarge = errors.New("link: message too large")
	ErrStalled  = errors.New("link: peer does not read")
	ErrBroken   = errors.New("link: connection lost")
	ErrClosed   = errors.New("link: closed")
	ErrUnknown  = errors.New("link: no address for peer")
	ErrBusy     = errors.New("link: peer has too many calls in progress")
	ErrRemote   = errors.New("link: peer answered with an error")
	// ErrUnheard: nobody follows.
	ErrUnheard = errors.New("link: peer does not follow")
	errRefused = errors.New("link: refused")
	// errFeedLost ends the lanes to a peer when a feed from there has broken, which tells.
	errFeedLost = errors.New("link: feed lost")
)

// A Lane is one of the ways to a peer: a connection that leads to it, or, for Tokens,
// one that it follows.
type Lane uint8

const (
	Control Lane     = iota // requests, steps, results; what Tokens carry for who does not follow
	Bulk                    // activations
	Tokens                  // frames and reports, from nodes to heads
	lanes   = Tokens        // those that lead to an inbox
)

func (l Lane) String() string { return [...]string{"c", "b", "t"}[l] }

// Defaults of Config.
const (
	DefaultMaxMessage = 256 << 20
	DefaultWindow     = 16 << 20
	DefaultIdle       = 2 * time.Minute
	DefaultStall      = 5 * time.Second

	maxPayload  = 1<<20 + 4096 // a chunk of an earlier version's with its header
	dialTimeout = 3 * time.Second
)

// A Resolver finds the address of a peer's server.
type Resolver func(peer trust.Identity) (address string, err error)

// Config says how a Link is made. Authority, Resolve and, but for
// a device process, Listen are required.
type Config struct {
	Authority  *trust.Authority
	Listen     string // host:port; port 0 takes a free one
	Resolve    Resolver
	MaxMessage int           // bytes of one message
	Window     int           // bytes on the way to one peer's lane
	Idle       time.Duration // a lane unused for so long is closed
	Stall      time.Duration // a peer that grants nothing for so long is given up
	// Lost is called when a connection to or from a peer broke and messages may be
	// lost. The receiver learns it from the peer's next message. A device process that
	// its node's server has lost is told of itself. It must not block.
	Lost   func(peer trust.Identity, err error)
	Logger *slog.Logger
}

// A Message has arrived. A call's Data belongs to its handler; another message's is
// valid until the handler returns.
type Message struct {
	From trust.Identity
	Kind string
	Data []byte
}

// Link is one process's end. It is safe for concurrent use.
type Link struct {
	cfg    Config
	self   trust.Identity
	server *server.Server    // nil: a device process, whose home has it
	local  [lanes]*nats.Conn // at our own server, or our home's: grants go out here
	// password opens our own server to our own connections.
	password string
	log      *slog.Logger
	// process is drawn at each start: the upper half of this process's sessions.
	process uint64
	ctx     context.Context // ends at Close
	stop    context.CancelFunc
	wg      sync.WaitGroup // the lanes' receivers, calls being answered, the sweeper

	in    [lanes]receiver
	feeds feeds
	homes chan *homeward // spares

	handlers struct {
		sync.RWMutex
		messages map[string]func(Message)
		calls    map[string]callHandler
	}
	out struct {
		sync.Mutex
		closed bool
		lanes  map[laneKey]*lane
		// deaf holds until when a peer is thought not to follow.
		deaf map[trust.Identity]time.Time
		// following are the peers that FollowAll is connecting to.
		following map[trust.Identity]bool
	}
	calls pendingCalls
}

// Start starts the server and subscribes at it. Handlers are added before peers
// are told the address.
func Start(cfg Config) (*Link, error) {
	if cfg.MaxMessage == 0 {
		cfg.MaxMessage = DefaultMaxMessage
	}
	if cfg.Window == 0 {
		cfg.Window = DefaultWindow
	}
	if cfg.Idle == 0 {
		cfg.Idle = DefaultIdle
	}
	if cfg.Stall == 0 {
		cfg.Stall = DefaultStall
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Lost == nil {
		cfg.Lost = func(trust.Identity, error) {}
	}
	l := &Link{cfg: cfg, self: cfg.Authority.Self(), log: cfg.Logger}
	var random [4]byte
	rand.Read(random[:])
	l.process = uint64(binary.LittleEndian.Uint32(random[:])) | 1 // no session is 0
	l.ctx, l.stop = context.WithCancel(context.Background())
	l.handlers.messages = map[string]func(Message){}
	l.handlers.calls = map[string]callHandler{}
	l.out.lanes, l.out.deaf, l.out.following = map[laneKey]*lane{}, map[trust.Identity]time.Time{}, map[trust.Identity]bool{}
	l.calls.waiting = map[uint64]*pendingCall{}

	l.homes = make(chan *homeward, spares)
	open := l.serve
	if l.self.Home() != l.self {
		open = l.attach
	}
	if err := open(); err != nil {
		l.Close()
		return nil, err
	}
	l.wg.Go(l.sweep)
	return l, nil
}

// Address is where peers reach this process, if it has a server.
func (l *Link) Address() string { return l.server.Addr().String() }

// Port is the port of Address.
func (l *Link) Port() int { return l.server.Addr().(*net.TCPAddr).Port }

// Close ends all connections, the server and every goroutine, and waits.
func (l *Link) Close() {
	l.stop()
	l.out.Lock()
	l.out.closed = true
	open := l.out.lanes
	l.out.lanes = nil
	l.out.Unlock()
	for _, lane := range open {
		lane.close(ErrClosed)
	}
	l.closeSpares()
	l.feeds.close()
	for which := range lanes {
		if l.local[which] != nil {
			l.local[which].Close()
		}
	}
	if l.server != nil {
		l.server.Shutdown()
		l.server.WaitForShutdown()
	}
	l.wg.Wait()
	for _, lane := range open {
		<-lane.gone
	}
}

// Handle sets what happens to messages of a kind. The handler runs on the lane's
// one receiving goroutine: it copies what it needs into a bounded queue of its
// own and returns. Bytes count as taken, and credit flows back, when it returns.
func (l *Link) Handle(kind string, handler func(Message)) {
	l.handlers.Lock()
	defer l.handlers.Unlock()
	l.handlers.messages[kind] = handler
}

// sweep closes lanes that nobody used for a while.
func (l *Link) sweep() {
	soon := max(l.cfg.Idle/4, time.Millisecond)
	ticker := time.NewTicker(soon)
	defer ticker.Stop()
	for {
		select {
		case <-l.ctx.Done():
			return
		case now := <-ticker.C:
			l.out.Lock()
			var idle []*lane
			for key, lane := range l.out.lanes {
				limit := l.cfg.Idle
				if key.which == Control && l.out.lanes[laneKey{key.peer, Tokens}] != nil {
					limit = soon // it was needed until the peer followed
				}
				if lane.idleSince(now) > limit {
					delete(l.out.lanes, key)
					idle = append(idle, lane)
				}
			}
			for peer, until := range l.out.deaf {
				if now.After(until) {
					delete(l.out.deaf, peer)
				}
			}
			l.out.Unlock()
			for _, lane := range idle {
				lane.close(nil)
			}
			l.feeds.sweep(now.Add(-l.cfg.Idle), now.Add(-3*l.cfg.Idle))
			for which := range lanes {
				l.in[which].forget(now.Add(-3 * l.cfg.Idle))
			}
		}
	}
}
