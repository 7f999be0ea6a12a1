package link

import (
	"net"
	"sync"
	"time"
)

// gatherBytes is how much of what a message's records take goes out at once. The
// peer decrypts one part while the next is encrypted.
const gatherBytes = 64 << 10

// A gatherer stands between a TLS connection and the socket, which TLS would write
// to once a record. While it holds, records are collected and written together.
type gatherer struct {
	net.Conn

	mu      sync.Mutex // guards what follows; the client library writes too
	holding bool
	held    *[]byte   // of buffers; nil: nothing
	armed   time.Time // when the deadline of writes was set
}

// hold says whether what is written next is collected. What was collected goes out
// with the first that is not.
func (g *gatherer) hold(next bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.holding = next
}

// flush writes what was collected, and collects no more until it is told: while the
// sender waits, what the client library writes must not.
func (g *gatherer) flush() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.holding = false
	return g.write()
}

func (g *gatherer) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.held == nil && !g.holding {
		if err := g.arm(); err != nil {
			return 0, err
		}
		return g.Conn.Write(p)
	}
	if g.held == nil {
		g.held = buffers.Get().(*[]byte)
		*g.held = (*g.held)[:0]
	}
	*g.held = append(*g.held, p...)
	if g.holding && len(*g.held) < gatherBytes {
		return len(p), nil
	}
	return len(p), g.write()
}

// arm bounds how long the next write may take, by writeDeadline and up to a fifth of it
// more: a timer is not set anew for each. The caller holds mu.
func (g *gatherer) arm() error {
	const slack = writeDeadline / 5
	now := time.Now()
	if now.Sub(g.armed) < slack {
		return nil
	}
	g.armed = now
	return g.SetWriteDeadline(now.Add(writeDeadline + slack))
}

// write writes what is held. The caller holds mu.
func (g *gatherer) write() error {
	if g.held == nil {
		return nil
	}
	err := g.arm()
	if err == nil {
		_, err = g.Conn.Write(*g.held)
	}
	buffers.Put(g.held)
	g.held = nil
	return err
}
