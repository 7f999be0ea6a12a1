package link

import (
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"manta/internal/trust"
)

const (
	maxPendingMessages = 1 << 18
	maxPendingBytes    = 512 << 20
)

// A receiver assembles what arrives on one lane.
type receiver struct {
	mu       sync.Mutex // guards sessions
	sessions map[trust.Identity]*session
	done     sync.WaitGroup // the subscription's goroutine
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

// connectLocal connects to our own server, without a socket, once a lane.
func (l *Link) connectLocal(password string) (err error) {
	for which := range lanes {
		l.local[which], err = nats.Connect("", nats.InProcessServer(l.server), nats.Token(password),
			nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond), nats.ReconnectBufSize(-1),
			nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
				l.log.Error("link receive", "lane", which.String(), "error", err)
			}))
		if err != nil {
			l.Close()
			return fmt.Errorf("link: connect to own server: %w", err)
		}
	}
	return nil
}

func (l *Link) subscribe(which Lane) error {
	in := &l.in[which]
	in.sessions = map[trust.Identity]*session{}
	conn := l.local[which]
	sub, err := conn.Subscribe(inbox(l.self)+"."+which.String()+".>", func(m *nats.Msg) { l.receive(which, m) })
	if err != nil {
		return err
	}
	in.done.Add(1)
	sub.SetClosedHandler(func(string) { in.done.Done() })
	if err := sub.SetPendingLimits(maxPendingMessages, maxPendingBytes); err != nil {
		return err
	}
	return conn.Flush()
}

// receive runs on the lane's goroutine for each chunk.
func (l *Link) receive(which Lane, m *nats.Msg) {
	sender, kind, err := parseSubject(m.Subject)
	if err != nil {
		l.log.Warn("link receive", "error", err)
		return
	}
	h, payload, err := parseHeader(m.Data)
	if err != nil {
		l.log.Warn("link receive", "peer", sender.String(), "kind", kind, "error", err)
		return
	}
	in := &l.in[which]
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
	whole, data, err := s.add(h, payload, l.cfg.MaxMessage)
	if err != nil {
		l.log.Warn("link receive", "peer", sender.String(), "kind", kind, "error", err)
		l.grant(which, sender, grant{session: h.session, consumed: s.consumed, broken: true})
		return
	}
	if whole != nil {
		l.deliver(sender, kind, whole, data)
	}
	if !s.broken && s.consumed-s.granted >= uint64(l.cfg.Window)/4 {
		s.granted = s.consumed
		l.grant(which, sender, grant{session: h.session, consumed: s.consumed})
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
		l.answer(from, kind, h.call, data)
	case formReply, formFault:
		l.calls.complete(from, h.call, h.form, data)
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
