package link

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"manta/internal/trust"
)

// resubscribePause is between two attempts to read our inbox again.
const resubscribePause = 10 * time.Millisecond

// A receiver assembles what arrives on one lane.
type receiver struct {
	which Lane
	// tell lets the sender of a session go on, or begin anew.
	tell func(which Lane, to trust.Identity, g grant)

	mu       sync.Mutex // guards sessions
	sessions map[trust.Identity]*session

	// Of the goroutine that reads: the last subject and what it means.
	subject string
	sender  trust.Identity
	kind    string
}

// begin makes it ready, before anything arrives.
func (r *receiver) begin(which Lane, tell func(Lane, trust.Identity, grant)) {
	r.which, r.tell, r.sessions = which, tell, map[trust.Identity]*session{}
}

// origin gives who sends under a subject, and the kind.
func (r *receiver) origin(subject []byte) (trust.Identity, string, error) {
	if string(subject) != r.subject {
		sender, kind, err := parseSubject(string(subject))
		if err != nil {
			return sender, kind, err
		}
		r.subject, r.sender, r.kind = string(subject), sender, kind
	}
	return r.sender, r.kind, nil
}

type session struct {
	assembly
	last time.Time
}

// forget drops the sessions of peers that were silent since before.
func (r *receiver) forget(before time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for peer, s := range r.sessions {
		if s.last.Before(before) {
			delete(r.sessions, peer)
		}
	}
}

// connectLocal connects to our own server, without a socket, once a lane: grants go
// out this way.
func (l *Link) connectLocal() (err error) {
	for which := range lanes {
		l.local[which], err = nats.Connect("", nats.InProcessServer(l.server), nats.Token(l.password),
			nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond), nats.ReconnectBufSize(-1),
			nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
				l.log.Error("link grant", "lane", which.String(), "error", err)
			}))
		if err != nil {
			return fmt.Errorf("link: connect to own server: %w", err)
		}
	}
	return nil
}

// receiveAll begins to read a lane's inbox. A connection to our own server that ends
// is renewed: what was missed shows as a gap. A device process whose home's ends can
// not be reached any more.
func (l *Link) receiveAll(which Lane, s *subscriber) {
	handle := func(subject, data []byte) { l.receive(&l.in[which], subject, data) }
	l.wg.Go(func() {
		for {
			stop := context.AfterFunc(l.ctx, func() { s.conn.Close() })
			err := s.run(handle)
			stop()
			s.conn.Close()
			if l.ctx.Err() != nil {
				return
			}
			l.log.Error("link receive", "lane", which.String(), "error", err)
			if l.server == nil {
				l.cfg.Lost(l.self, lost(err))
				return
			}
			for {
				if s, err = l.subscribe(which); err == nil {
					break
				}
				select {
				case <-l.ctx.Done():
					return
				case <-time.After(resubscribePause):
				}
			}
		}
	})
}

// receive takes a chunk, on the goroutine that reads the lane.
func (l *Link) receive(in *receiver, subject, chunk []byte) {
	which := in.which
	sender, kind, err := in.origin(subject)
	if err != nil {
		l.log.Warn("link receive", "error", err)
		return
	}
	h, payload, err := parseHeader(chunk)
	if err != nil {
		l.log.Warn("link receive", "peer", sender.String(), "kind", kind, "error", err)
		return
	}
	in.mu.Lock()
	s := in.sessions[sender]
	if s == nil {
		s = &session{}
		in.sessions[sender] = s
	}
	s.last = time.Now()
	in.mu.Unlock()

	// That a device process is gone its node told by Disconnect, when that was so.
	if s.replaces(h) && (sender.Role != trust.Device || sameProcess(s.session, h.session)) {
		l.log.Info("link lost", "peer", sender.String(), "lane", which.String(), "error", "the peer began another session")
		l.cfg.Lost(sender, ErrReplaced)
	}
	if which == Tokens {
		if h.flags&flagHello != 0 {
			s.assembly = assembly{session: h.session}
			in.tell(which, sender, grant{session: h.session})
			return
		}
		s.join(h)
	}
	whole, data, err := s.add(h, payload, l.cfg.MaxMessage)
	if err != nil {
		l.log.Warn("link receive", "peer", sender.String(), "kind", kind, "error", err)
		in.tell(which, sender, grant{session: h.session, consumed: s.consumed, broken: true})
		return
	}
	if whole != nil {
		l.deliver(sender, kind, whole, data)
	}
	if !s.broken && s.consumed-s.granted >= uint64(l.cfg.Window)/4 {
		s.granted = s.consumed
		in.tell(which, sender, grant{session: h.session, consumed: s.consumed})
	}
}

func (l *Link) grant(which Lane, to trust.Identity, g grant) {
	err := l.local[which].Publish(creditSubject(to, which), g.append(nil))
	if err != nil && l.ctx.Err() == nil {
		l.log.Warn("link credit", "peer", to.String(), "error", err)
	}
}

func (l *Link) deliver(from trust.Identity, kind string, h *header, data []byte) {
	switch h.form {
	case formCall:
		l.answer(from, kind, h.call, bytes.Clone(data))
	case formReply, formFault:
		l.calls.complete(from, h.call, h.form, bytes.Clone(data))
	default:
		l.handlers.RLock()
		handler := l.handlers.messages[kind]
		l.handlers.RUnlock()
		if handler == nil {
			l.log.Warn("link receive", "peer", from.String(), "kind", kind, "error", "nobody handles this kind")
			return
		}
		handler(Message{From: from, Kind: kind, Data: data})
	}
}
