package link

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"manta/internal/trust"
)

const (
	// A peer that does not answer for 1.2 to 1.6 s is given up. Only pings find a cut
	// behind something that acknowledges for it (a proxy, a tunnel); a peer that gets no
	// processor for that long is no use to a step either.
	pingInterval = 400 * time.Millisecond
	maxPings     = 3
	// unacknowledged is how long the kernel waits for a peer's to acknowledge.
	unacknowledged = 2 * time.Second
	byeTimeout     = 500 * time.Millisecond
	// recordBytes is what one TLS record takes. A chunk fills one with all that NATS
	// and this package write around it: the peer's server then finds a whole message
	// in what it reads at once, and need not put it together in memory of its own.
	recordBytes = 16 << 10
)

// buffers hold what a chunk is put together in; Write does not keep it.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

type laneKey struct {
	peer  trust.Identity
	which Lane
}

// A lane is one connection to a peer's server.
type lane struct {
	link *Link
	key  laneKey
	turn chan struct{} // holds a token while nobody sends
	gone chan struct{} // closed when the connection's goroutines have ended

	mu      sync.Mutex // guards what follows
	conn    *nats.Conn // nil for Tokens
	direct  net.Conn   // under conn
	socket  *gatherer  // under direct
	session uint64
	seq     uint64
	sent    uint64 // payload bytes
	granted uint64
	last    time.Time
	asked   time.Time     // of Tokens: when a chunk asked whether anybody hears it
	heard   bool          // of Tokens: the peer follows
	watched bool          // nothing pings it: a feed from the peer's home breaks if that is gone
	err     error         // why it ended
	changed chan struct{} // closed and renewed at each grant and at the end
}

// Send sends a message of a kind to a peer. A nil error means that it is on its
// way, not that it arrived; see Config.Lost. The message is all parts, one after the
// other; they are not used after the return.
func (l *Link) Send(ctx context.Context, to trust.Identity, which Lane, kind string, parts ...[]byte) error {
	return l.send(ctx, to, which, kind, header{form: formMessage}, parts...)
}

func (l *Link) send(ctx context.Context, to trust.Identity, which Lane, kind string, h header, parts ...[]byte) error {
	size := 0
	for _, p := range parts {
		size += len(p)
	}
	if size > l.cfg.MaxMessage {
		return fmt.Errorf("%w: %s of %d bytes to %s, at most %d", ErrTooLarge, kind, size, to, l.cfg.MaxMessage)
	}
	h.total = uint64(size)
	if which == Tokens {
		err := l.publish(ctx, to, kind, h, parts)
		if !errors.Is(err, ErrUnheard) {
			return err
		}
		which = Control
	}
	return l.sendOn(ctx, to, which, kind, h, parts)
}

// sendOn sends on one lane.
func (l *Link) sendOn(ctx context.Context, to trust.Identity, which Lane, kind string, h header, parts [][]byte) error {
	// A lane that had ended before it took anything of this is replaced once.
	for try := 0; ; try++ {
		lane, err := l.lane(to, which)
		if err != nil {
			return fmt.Errorf("%s to %s: %w", kind, to, err)
		}
		ended, err := lane.send(ctx, kind, h, parts)
		if err == nil {
			return nil
		}
		if !ended || try > 0 {
			return fmt.Errorf("%s to %s: %w", kind, to, err)
		}
	}
}

// lane gives the open lane to a peer, or a new one that is not yet connected.
func (l *Link) lane(to trust.Identity, which Lane) (*lane, error) {
	key := laneKey{to, which}
	l.out.Lock()
	defer l.out.Unlock()
	if l.out.closed {
		return nil, ErrClosed
	}
	if open := l.out.lanes[key]; open != nil {
		return open, nil
	}
	fresh := &lane{
		link: l, key: key, turn: make(chan struct{}, 1), gone: make(chan struct{}),
		changed: make(chan struct{}), last: time.Now(),
	}
	fresh.turn <- struct{}{}
	l.out.lanes[key] = fresh
	return fresh, nil
}

// send reports whether the lane had ended before this message's turn came.
func (n *lane) send(ctx context.Context, kind string, h header, parts [][]byte) (ended bool, err error) {
	select {
	case <-n.turn:
		defer func() { n.turn <- struct{}{} }()
	case <-ctx.Done():
		return false, ctx.Err()
	}
	n.mu.Lock()
	err = n.err
	n.mu.Unlock()
	if err != nil {
		return true, err
	}
	if err := n.connect(ctx); err != nil {
		return false, err
	}
	return false, n.chunks(ctx, kind, h, parts)
}

// An encryptedDialer speaks TLS itself and keeps the connection: chunks are written
// to it at once, whole publications between those of the client library, which would
// copy each and leave the writing to another goroutine.
type encryptedDialer struct {
	net.Dialer
	config *tls.Config
	conn   *tls.Conn
	socket *gatherer
}

// SkipTLSHandshake tells the client library that there is nothing left to do.
func (*encryptedDialer) SkipTLSHandshake() bool { return true }

func (d *encryptedDialer) Dial(network, address string) (net.Conn, error) {
	raw, err := d.Dialer.Dial(network, address)
	if err != nil {
		return nil, err
	}
	d.socket = &gatherer{Conn: raw}
	d.conn = tls.Client(d.socket, d.config)
	ctx, cancel := context.WithTimeout(context.Background(), d.Timeout)
	defer cancel()
	if err := d.conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return d.conn, nil
}

// chunks publishes a message. The caller holds the turn.
func (n *lane) chunks(ctx context.Context, kind string, h header, parts [][]byte) error {
	target := subject(n.key.peer, n.key.which, n.link.self, kind)
	reply := ""
	if n.key.which == Tokens {
		reply = creditSubject(n.link.self, Tokens) + " "
	}
	room := recordBytes - len("PUB  16384\r\n\r\n") - len(target) - len(reply) - headerBytes
	left, part := int(h.total), []byte(nil)
	h.flags = flagFirst
	buffer := *buffers.Get().(*[]byte)
	defer func() { buffers.Put(&buffer) }()
	for {
		size := min(left, room)
		if left -= size; left == 0 {
			h.flags |= flagLast
		}
		if err := n.await(ctx, size); err != nil {
			if h.flags&flagFirst == 0 { // nothing may follow half a message
				n.close(err)
			}
			return err
		}
		n.mu.Lock()
		if n.err != nil {
			defer n.mu.Unlock()
			return n.err
		}
		conn := n.direct
		h.session, h.seq = n.session, n.seq
		if n.key.which == Tokens {
			h.call = n.sent
		}
		n.seq++
		n.sent += uint64(size)
		now := time.Now()
		n.last = now
		ask := n.key.which == Tokens && now.Sub(n.asked) > askAgain
		if ask {
			n.asked = now
		}
		n.mu.Unlock()
		buffer = append(append(append(buffer[:0], "PUB "...), target...), ' ')
		if ask {
			buffer = append(buffer, reply...)
		}
		buffer = append(strconv.AppendInt(buffer, int64(headerBytes+size), 10), "\r\n"...)
		buffer = h.append(buffer)
		for size > 0 {
			if len(part) == 0 {
				part, parts = parts[0], parts[1:]
				continue
			}
			taken := part[:min(size, len(part))]
			buffer = append(buffer, taken...)
			part, size = part[len(taken):], size-len(taken)
		}
		buffer = append(buffer, "\r\n"...)
		n.socket.hold(left > 0)
		if _, err := conn.Write(buffer); err != nil {
			return n.broken(err)
		}
		if left == 0 {
			return nil
		}
		h.flags = 0
	}
}

// connect dials when the lane is new. The caller holds the turn.
func (n *lane) connect(ctx context.Context) error {
	n.mu.Lock()
	ended, connected := n.err, n.direct != nil
	n.mu.Unlock()
	if ended != nil || connected {
		return ended
	}
	if n.key.which == Tokens {
		return n.greet(ctx)
	}
	home := n.key.peer.Home()
	address, err := n.link.cfg.Resolve(home)
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrUnknown, err)
		n.close(err)
		return err
	}
	timeout := dialTimeout
	if deadline, ok := ctx.Deadline(); ok {
		timeout = min(timeout, time.Until(deadline))
	}
	dialer := &encryptedDialer{Dialer: net.Dialer{Timeout: timeout, Control: control}, config: n.link.cfg.Authority.Client(home)}
	watched := n.link.feeds.follows(home)
	n.mu.Lock()
	n.watched = watched
	n.mu.Unlock()
	ping := pingInterval
	if watched {
		ping = time.Hour
	}
	conn, err := nats.Connect("tls://"+address,
		nats.Name(laneName(n.link.self, n.key.peer)), nats.SetCustomDialer(dialer),
		nats.Secure(), nats.TLSHandshakeFirst(), nats.NoReconnect(), nats.Timeout(timeout), nats.FlusherTimeout(writeDeadline),
		nats.PingInterval(ping), nats.MaxPingsOutstanding(maxPings), nats.NoCallbacksAfterClientClose(),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { n.close(fmt.Errorf("%w: %w", ErrBroken, err)) }),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { n.close(lost(err)) }))
	if err != nil {
		err = fmt.Errorf("%w: dial %s: %w", ErrBroken, address, err)
		n.close(err)
		return err
	}
	if ended = n.begin(conn, dialer.conn, dialer.socket); ended == nil {
		_, err = conn.Subscribe(creditSubject(n.link.self, n.key.which), n.credit)
		if err == nil { // chunks are written past the client library: credit for them may come before it asks for it
			err = conn.FlushTimeout(timeout)
		}
		if err == nil {
			return nil
		}
		ended = fmt.Errorf("%w: %w", ErrBroken, err)
	}
	conn.Close()
	n.close(ended)
	return ended
}

// begin opens a session over a connection.
func (n *lane) begin(conn *nats.Conn, direct net.Conn, socket *gatherer) (ended error) {
	var random [4]byte
	rand.Read(random[:])
	n.mu.Lock()
	defer n.mu.Unlock()
	n.conn, n.direct, n.socket = conn, direct, socket
	n.session = n.link.process<<32 | uint64(binary.LittleEndian.Uint32(random[:]))
	return n.err
}

// broken ends the lane for an error of its connection.
func (n *lane) broken(err error) error {
	err = fmt.Errorf("%w: %w", ErrBroken, err)
	n.close(err)
	return err
}

func lost(err error) error {
	if err == nil {
		return ErrBroken
	}
	return fmt.Errorf("%w: %w", ErrBroken, err)
}

// await waits until size more bytes fit the window.
func (n *lane) await(ctx context.Context, size int) error {
	var stalled *time.Timer
	for {
		n.mu.Lock()
		fits := n.sent-n.granted+uint64(size) <= uint64(n.link.cfg.Window) || n.sent == n.granted
		changed, ended := n.changed, n.err
		n.mu.Unlock()
		if ended != nil || fits {
			return ended
		}
		if stalled == nil {
			if err := n.socket.flush(); err != nil { // nobody grants what does not arrive
				return n.broken(err)
			}
			stalled = time.NewTimer(n.link.cfg.Stall)
			defer stalled.Stop()
		}
		select {
		case <-changed:
			stalled.Reset(n.link.cfg.Stall)
		case <-ctx.Done():
			return ctx.Err()
		case <-stalled.C:
			n.close(ErrStalled)
			return ErrStalled
		}
	}
}

// credit takes a grant from the peer.
func (n *lane) credit(m *nats.Msg) { n.grant(m.Data) }

func (n *lane) grant(data []byte) {
	g, err := parseGrant(data)
	if err != nil {
		n.close(err)
		return
	}
	n.mu.Lock()
	if g.session != n.session {
		n.mu.Unlock()
		return
	}
	n.heard = true
	if g.consumed > n.granted {
		n.granted = g.consumed
	}
	n.wake()
	n.mu.Unlock()
	if g.broken {
		n.close(ErrGap)
	}
}

// wake tells waiting senders that something changed. The caller holds mu.
func (n *lane) wake() {
	close(n.changed)
	n.changed = make(chan struct{})
}

// bye ends the session in order, if no message is half sent.
func (n *lane) bye(conn *nats.Conn, direct net.Conn) {
	select {
	case <-n.turn:
		defer func() { n.turn <- struct{}{} }()
	default:
		return
	}
	n.mu.Lock()
	h := header{flags: flagBye, session: n.session, seq: n.seq}
	n.mu.Unlock()
	if conn == nil {
		_ = n.put(direct, "bye", h, "") // at worst the peer counts a loss that was none
		return
	}
	if conn.Publish(subject(n.key.peer, n.key.which, n.link.self, "bye"), h.append(nil)) == nil {
		conn.FlushTimeout(byeTimeout) // at worst the peer counts a loss that was none
	}
}

func (n *lane) idleSince(now time.Time) time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	return now.Sub(n.last)
}

// close ends the lane, once. A nil reason is an orderly end: all was sent.
func (n *lane) close(reason error) {
	n.mu.Lock()
	if n.err != nil {
		n.mu.Unlock()
		return
	}
	n.err = reason
	if reason == nil {
		n.err = ErrClosed
	}
	ended, used := n.err, n.sent > 0 || n.seq > 0
	conn, direct := n.conn, n.direct
	n.wake()
	n.mu.Unlock()

	l := n.link
	l.out.Lock()
	if l.out.lanes[n.key] == n {
		delete(l.out.lanes, n.key)
	}
	l.out.Unlock()
	if direct != nil {
		if reason == nil || errors.Is(reason, ErrClosed) { // an orderly end says so
			n.bye(conn, direct)
		}
		if conn != nil {
			conn.Close()
		} else {
			direct.Close()
		}
	}
	close(n.gone)
	if n.key.which == Control && reason != nil {
		l.calls.broken(n.key.peer, ended)
	}
	if used && reason != nil && !errors.Is(reason, errFeedLost) && l.ctx.Err() == nil {
		l.log.Info("link lost", "peer", n.key.peer.String(), "lane", n.key.which.String(), "error", reason)
		l.cfg.Lost(n.key.peer, reason)
	}
}
