// Package relay stands between two processes of a test (Relay), or between all of a
// cluster (Mesh): it counts what passes, and can cut the way as a network does that drops
// packets. It is never part of the program.
package relay

import (
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"
)

// Relay forwards connections to an address. It is safe for concurrent use.
type Relay struct {
	listener net.Listener
	behind   string
	forth    atomic.Int64
	back     atomic.Int64
	ctx      context.Context // ends at Close
	stop     context.CancelFunc
	wg       sync.WaitGroup

	mu   sync.Mutex    // guards open
	open chan struct{} // closed while the way is free
}

// Start listens on a free port of this machine and forwards to an address.
func Start(behind string) (*Relay, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &Relay{listener: listener, behind: behind, open: make(chan struct{})}
	close(r.open)
	r.ctx, r.stop = context.WithCancel(context.Background())
	r.wg.Go(r.accept)
	return r, nil
}

// Address is where the relay listens.
func (r *Relay) Address() string { return r.listener.Addr().String() }

// Carried gives the bytes that went to the address behind, and those that came back.
func (r *Relay) Carried() (forth, back int64) { return r.forth.Load(), r.back.Load() }

// Cut stops everything on its way: connections stay, nothing passes, nobody is told.
func (r *Relay) Cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-r.open:
		r.open = make(chan struct{})
	default:
	}
}

// Mend lets what was stopped go on.
func (r *Relay) Mend() {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-r.open:
	default:
		close(r.open)
	}
}

// Close ends every connection and waits.
func (r *Relay) Close() {
	r.stop()
	r.listener.Close()
	r.wg.Wait()
}

// pass waits while the way is cut; false: the relay ends.
func (r *Relay) pass() bool {
	r.mu.Lock()
	open := r.open
	r.mu.Unlock()
	select {
	case <-open:
		return r.ctx.Err() == nil
	case <-r.ctx.Done():
		return false
	}
}

func (r *Relay) accept() {
	for {
		near, err := r.listener.Accept()
		if err != nil {
			return
		}
		r.wg.Go(func() {
			defer near.Close()
			if r.pass() {
				forward(r.ctx, near, r.behind, r.pass, &r.forth, &r.back)
			}
		})
	}
}

// forward carries a connection to an address, as long as pass lets it, and counts.
func forward(ctx context.Context, near net.Conn, behind string, pass func() bool, forth, back *atomic.Int64) {
	far, err := (&net.Dialer{}).DialContext(ctx, "tcp", behind)
	if err != nil {
		return
	}
	defer far.Close()
	defer context.AfterFunc(ctx, func() { near.Close(); far.Close() })()
	var both sync.WaitGroup
	both.Go(func() { defer far.Close(); carry(far, near, pass, forth) })
	both.Go(func() { defer near.Close(); carry(near, far, pass, back) })
	both.Wait()
}

func carry(to io.Writer, from io.Reader, pass func() bool, count *atomic.Int64) {
	buffer := make([]byte, 64<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			if !pass() {
				return
			}
			count.Add(int64(n))
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
