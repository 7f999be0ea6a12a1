package link

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"manta/internal/trust"
)

const (
	// askAgain is between two chunks that ask whether anybody hears them, and how long
	// who did not is left alone.
	askAgain = time.Second
	// greeting bounds how long a peer that follows may take to say so.
	greeting = time.Second
	// creditBuffer holds what the server says to who publishes.
	creditBuffer = 8 << 10
)

// unheard is what NATS answers to what nobody has subscribed to, if it may be answered.
var unheard = []byte("NATS/1.0 503")

// publish sends to a peer that follows us. It gives ErrUnheard, and has sent nothing that
// counts, if that one does not.
func (l *Link) publish(ctx context.Context, to trust.Identity, kind string, h header, parts [][]byte) error {
	l.out.Lock()
	deaf := time.Now().Before(l.out.deaf[to])
	l.out.Unlock()
	if deaf {
		return ErrUnheard
	}
	err := l.sendOn(ctx, to, Tokens, kind, h, parts)
	if errors.Is(err, ErrUnheard) {
		l.out.Lock()
		l.out.deaf[to] = time.Now().Add(askAgain)
		l.out.Unlock()
	}
	return err
}

// greet connects a lane of tokens, and asks whether the peer follows.
func (n *lane) greet(ctx context.Context) error {
	way, err := n.link.homeward()
	if err == nil {
		err = n.begin(nil, way.socket, way.socket)
		if err != nil {
			way.socket.Close()
		}
	}
	if err == nil {
		way.lane.Store(n)
		n.mu.Lock()
		n.asked = time.Now()
		n.mu.Unlock()
		err = n.put(way.socket, "hello", header{flags: flagHello, session: n.session}, creditSubject(n.link.self, Tokens))
	}
	if err == nil {
		err = n.answered(ctx)
	}
	if err != nil {
		n.close(err)
	}
	return err
}

// A homeward is a connection to our own server, or our home's, by which one lane of tokens
// publishes: a peer that does not read in time holds up what the server takes from it.
type homeward struct {
	socket *gatherer
	lane   atomic.Pointer[lane] // nil: a spare
}

// spares are connected before a node needs them: the server waits 50 ms before it takes
// one from within the process for a connection without TLS.
const spares = 4

// dialHome makes a connection, which is read until it ends.
func (l *Link) dialHome() (*homeward, error) {
	raw, err := l.inboxConn()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBroken, err)
	}
	h := &homeward{socket: &gatherer{Conn: raw}}
	options := connectOptions{TLS: l.server == nil, Token: l.password, Name: l.self.String(), Headers: true, NoResponders: true}
	s, err := newSubscriber(h.socket, creditBuffer, options, creditSubject(l.self, Tokens))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBroken, err)
	}
	l.out.Lock()
	defer l.out.Unlock()
	if l.out.closed {
		raw.Close()
		return nil, ErrClosed
	}
	l.wg.Go(func() {
		err := s.run(func(_, data []byte) {
			if n := h.lane.Load(); n != nil {
				n.hear(data)
			}
		})
		raw.Close()
		if n := h.lane.Load(); n != nil {
			n.close(lost(err))
		}
	})
	return h, nil
}

// spare keeps some connections at hand.
func (l *Link) spare() error {
	if l.self.Role != trust.Node {
		return nil
	}
	for len(l.homes) < cap(l.homes) {
		h, err := l.dialHome()
		if err != nil {
			return err
		}
		select {
		case l.homes <- h:
		default:
			h.socket.Close()
		}
	}
	return nil
}

// closeSpares is called when no more are made, but for one under way: the server's end is its.
func (l *Link) closeSpares() {
	for {
		select {
		case h := <-l.homes:
			h.socket.Close()
		default:
			return
		}
	}
}

// homeward gives a connection, and sees to it that the next finds one at hand.
func (l *Link) homeward() (*homeward, error) {
	select {
	case h := <-l.homes:
		l.out.Lock()
		defer l.out.Unlock()
		if !l.out.closed {
			l.wg.Go(func() {
				if err := l.spare(); err != nil && l.ctx.Err() == nil {
					l.log.Warn("link spare", "error", err)
				}
			})
		}
		return h, nil
	default:
		return l.dialHome()
	}
}

// hear takes what comes back: grants, and that nobody heard.
func (n *lane) hear(data []byte) {
	if bytes.HasPrefix(data, unheard) {
		n.close(ErrUnheard)
		return
	}
	n.grant(data)
}

// answered waits until the peer has said that it hears us.
func (n *lane) answered(ctx context.Context) error {
	late := time.NewTimer(greeting)
	defer late.Stop()
	for {
		n.mu.Lock()
		heard, ended, changed := n.heard, n.err, n.changed
		n.mu.Unlock()
		if heard || ended != nil {
			return ended
		}
		select {
		case <-changed:
		case <-late.C:
			return ErrUnheard
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// put publishes a chunk without bytes, past what counts as sent.
func (n *lane) put(direct net.Conn, kind string, h header, reply string) error {
	text := fmt.Appendf(nil, "PUB %s %s %d\r\n", subject(n.key.peer, n.key.which, n.link.self, kind), reply, headerBytes)
	if _, err := direct.Write(append(h.append(text), "\r\n"...)); err != nil {
		return fmt.Errorf("%w: %w", ErrBroken, err)
	}
	return nil
}
