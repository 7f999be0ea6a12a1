package link

import (
	"context"
	"sync"
	"time"

	"manta/internal/trust"
)

// courierPause is between two attempts to reach a peer.
const courierPause = 200 * time.Millisecond

// A Courier tells peers the newest of something, a queue of one each: a slow or
// dead peer delays nobody, and what it missed meanwhile it never gets. It serves
// what is said again and again (assignments, reports, credit).
type Courier struct {
	link *Link
	lane Lane
	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu    sync.Mutex // guards peers
	peers map[trust.Identity]*courierPeer
}

type courierPeer struct {
	stop context.CancelFunc
	wake chan struct{} // holds one: letters has something

	mu      sync.Mutex // guards letters
	letters []letter
}

type letter struct {
	kind, about string
	data        []byte
}

// NewCourier makes a courier on a lane; Close ends it. It must end before the Link.
func NewCourier(l *Link, which Lane) *Courier {
	c := &Courier{link: l, lane: which, peers: map[trust.Identity]*courierPeer{}}
	c.ctx, c.stop = context.WithCancel(context.Background())
	return c
}

// Tell leaves a message of a kind, about something, for a peer, in place of an
// earlier one of that kind and matter that is not on its way yet. It never blocks.
func (c *Courier) Tell(to trust.Identity, kind, about string, data []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx.Err() != nil {
		return
	}
	p := c.peers[to]
	if p == nil {
		p = &courierPeer{wake: make(chan struct{}, 1)}
		var ctx context.Context
		ctx, p.stop = context.WithCancel(c.ctx)
		c.peers[to] = p
		c.wg.Go(func() { c.deliver(ctx, to, p) })
	}
	p.put(letter{kind, about, data})
}

// Keep forgets the peers that are not among these.
func (c *Courier) Keep(peers map[trust.Identity]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, p := range c.peers {
		if !peers[id] {
			p.stop()
			delete(c.peers, id)
		}
	}
}

// Close ends every delivery and waits.
func (c *Courier) Close() {
	c.stop()
	c.wg.Wait()
}

func (p *courierPeer) put(l letter) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.letters {
		if p.letters[i].kind == l.kind && p.letters[i].about == l.about {
			p.letters[i] = l
			return // wake is set since the earlier one came
		}
	}
	p.letters = append(p.letters, l)
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *courierPeer) take() []letter {
	p.mu.Lock()
	defer p.mu.Unlock()
	letters := p.letters
	p.letters = nil
	return letters
}

func (c *Courier) deliver(ctx context.Context, to trust.Identity, p *courierPeer) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
		}
		for _, l := range p.take() {
			err := c.link.Send(ctx, to, c.lane, l.kind, l.data)
			if err == nil || ctx.Err() != nil {
				continue
			}
			c.link.log.Debug("courier", "peer", to.String(), "kind", l.kind, "error", err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(courierPause):
			}
		}
	}
}
