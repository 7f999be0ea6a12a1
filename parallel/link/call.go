package link

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"manta/internal/trust"
)

const maxWaitingCalls = 1 << 14

// replyPause is between two tries to send a reply.
const replyPause = 100 * time.Millisecond

// A callHandler answers calls of a kind.
type callHandler struct {
	run  func(context.Context, Message) ([]byte, error)
	room chan struct{} // one token for each call that may run at once
}

type pendingCall struct {
	peer trust.Identity
	done chan struct{}
	form form
	data []byte
	err  error // the way to the peer broke: no answer will come
}

type pendingCalls struct {
	sync.Mutex // guards waiting
	waiting    map[uint64]*pendingCall
}

// complete hands a reply to whoever waits for it; a late one is dropped.
func (p *pendingCalls) complete(from trust.Identity, id uint64, f form, data []byte) {
	p.Lock()
	defer p.Unlock()
	call := p.waiting[id]
	if call == nil || call.peer != from {
		return
	}
	delete(p.waiting, id)
	call.form, call.data = f, data
	close(call.done)
}

// broken ends the calls of a peer that may not have come to it.
func (p *pendingCalls) broken(peer trust.Identity, err error) {
	p.Lock()
	defer p.Unlock()
	for id, call := range p.waiting {
		if call.peer == peer {
			delete(p.waiting, id)
			call.err = err
			close(call.done)
		}
	}
}

// HandleCall sets who answers calls of a kind; at most limit run at once, more
// are refused as busy. The handler's context ends with the Link.
func (l *Link) HandleCall(kind string, limit int, handler func(context.Context, Message) ([]byte, error)) {
	l.handlers.Lock()
	defer l.handlers.Unlock()
	l.handlers.calls[kind] = callHandler{run: handler, room: make(chan struct{}, limit)}
}

// Call asks a peer and waits for its answer, for the end of the connection that the
// question went by, or for that of ctx, which bounds the wait. An error that the peer's handler gave is wrapped in ErrRemote.
func (l *Link) Call(ctx context.Context, to trust.Identity, kind string, data []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil { // else an answer could come first
		return nil, fmt.Errorf("%s to %s: %w", kind, to, err)
	}
	var random [8]byte
	rand.Read(random[:])
	id := binary.LittleEndian.Uint64(random[:]) | 1
	call := &pendingCall{peer: to, done: make(chan struct{})}
	l.calls.Lock()
	if len(l.calls.waiting) >= maxWaitingCalls {
		l.calls.Unlock()
		return nil, fmt.Errorf("%s to %s: %w", kind, to, ErrBusy)
	}
	l.calls.waiting[id] = call
	l.calls.Unlock()
	defer func() {
		l.calls.Lock()
		delete(l.calls.waiting, id)
		l.calls.Unlock()
	}()
	if err := l.send(ctx, to, Control, kind, header{form: formCall, call: id}, data); err != nil {
		return nil, err
	}
	select {
	case <-call.done:
	case <-ctx.Done():
		return nil, fmt.Errorf("%s to %s: no answer: %w", kind, to, ctx.Err())
	case <-l.ctx.Done():
		return nil, fmt.Errorf("%s to %s: %w", kind, to, ErrClosed)
	}
	if call.err != nil {
		return nil, fmt.Errorf("%s to %s: no answer: %w", kind, to, call.err)
	}
	if call.form == formFault {
		return nil, fmt.Errorf("%w: %s", ErrRemote, call.data)
	}
	return call.data, nil
}

// answer starts the handler of a call, or refuses it.
func (l *Link) answer(from trust.Identity, kind string, id uint64, data []byte) {
	l.handlers.RLock()
	handler, known := l.handlers.calls[kind]
	l.handlers.RUnlock()
	work := func() ([]byte, error) {
		return nil, fmt.Errorf("%s does not answer %q", l.self, kind)
	}
	release := func() {}
	if known {
		select {
		case handler.room <- struct{}{}:
			release = func() { <-handler.room }
			work = func() ([]byte, error) {
				return handler.run(l.ctx, Message{From: from, Kind: kind, Data: data})
			}
		default:
			work = func() ([]byte, error) { return nil, ErrBusy }
		}
	}
	if l.ctx.Err() != nil {
		release()
		return
	}
	l.wg.Go(func() {
		defer release()
		reply, err := work()
		h := header{form: formReply, call: id}
		if err != nil {
			h.form, reply = formFault, []byte(err.Error())
		}
		ctx, cancel := context.WithTimeout(l.ctx, 2*l.cfg.Stall)
		defer cancel()
		// Who asks may have come back so lately that it is not known here again.
		for {
			err := l.send(ctx, from, Control, kind, h, reply)
			if err == nil {
				return
			}
			select {
			case <-time.After(replyPause):
			case <-ctx.Done():
				if l.ctx.Err() == nil {
					l.log.Warn("link reply", "error", err)
				}
				return
			}
		}
	})
}
