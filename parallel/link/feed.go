package link

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"manta/internal/trust"
)

// feedBuffer holds a chunk and what it may take to come.
const feedBuffer = 2 * recordBytes

// refusedFor is how long a peer that does not let us follow it, being of an earlier
// version, is not asked again.
const refusedFor = 10 * time.Second

// feeds are the connections to the servers of the peers that we follow. One goroutine
// reads them all: whatever comes while it is awake wakes nobody, however many there are.
type feeds struct {
	mu      sync.Mutex // guards what follows
	closed  bool
	open    map[trust.Identity]*feed
	refused map[trust.Identity]time.Time // until when
	polled  map[*feed]bool               // those that are read
	poll    *poller                      // nil: nobody was followed yet
}

// feed is one such connection.
type feed struct {
	peer  trust.Identity
	ready chan struct{} // closed when what follows and err are set
	err   error
	sub   *subscriber
	plain *socket // under sub
	in    receiver
	take  func(subject, data []byte)

	mu    sync.Mutex // guards what follows
	used  time.Time
	pings int // since anything came
	idle  bool
}

// Follow makes what a peer, and the device processes at its server, have for us on the
// lane of tokens come from there from now on. It waits until that is so, and gives an error when the
// peer can't be reached. A peer that can't be followed sends it to us, as before.
func (l *Link) Follow(ctx context.Context, peer trust.Identity) error {
	if !canFollow {
		return nil
	}
	f, fresh, err := l.feed(peer)
	if f == nil || err != nil {
		return err
	}
	if fresh {
		f.err = l.connectFeed(ctx, f)
		l.feeds.settle(f)
		close(f.ready)
	}
	select {
	case <-f.ready:
	case <-ctx.Done():
		return ctx.Err()
	}
	if errors.Is(f.err, errRefused) {
		return nil
	}
	return f.err
}

// FollowAll begins to follow the peers that are not followed, and does not wait. It is to
// be called again and again: who could not be reached is tried again then.
func (l *Link) FollowAll(peers []trust.Identity) {
	for _, peer := range peers {
		if l.feeds.follows(peer) {
			continue
		}
		l.out.Lock()
		if !l.out.closed && !l.out.following[peer] {
			l.out.following[peer] = true
			l.wg.Go(func() {
				if err := l.Follow(l.ctx, peer); err != nil && l.ctx.Err() == nil {
					l.log.Debug("link follow", "peer", peer.String(), "error", err)
				}
				l.out.Lock()
				defer l.out.Unlock()
				delete(l.out.following, peer)
			})
		}
		l.out.Unlock()
	}
}

// feed gives a peer's; a fresh one is the caller's to connect. None: it can't be followed.
func (l *Link) feed(peer trust.Identity) (f *feed, fresh bool, err error) {
	s := &l.feeds
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if s.closed {
		return nil, false, ErrClosed
	}
	if f := s.open[peer]; f != nil {
		f.touch(now)
		return f, false, nil
	}
	if now.Before(s.refused[peer]) {
		return nil, false, nil
	}
	if s.poll == nil {
		if s.poll, err = newPoller(); err != nil {
			return nil, false, fmt.Errorf("link: %w", err)
		}
		s.open, s.refused, s.polled = map[trust.Identity]*feed{}, map[trust.Identity]time.Time{}, map[*feed]bool{}
		l.wg.Go(l.readFeeds)
		l.wg.Go(l.pingFeeds)
	}
	f = &feed{peer: peer, ready: make(chan struct{}), used: now}
	s.open[peer] = f
	return f, true, nil
}

// settle forgets a feed that could not be opened.
func (s *feeds) settle(f *feed) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.err == nil {
		return
	}
	delete(s.open, f.peer)
	if errors.Is(f.err, errRefused) {
		s.refused[f.peer] = time.Now().Add(refusedFor)
	}
}

func (l *Link) connectFeed(ctx context.Context, f *feed) error {
	address, err := l.cfg.Resolve(f.peer)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnknown, err)
	}
	ctx, stop := context.WithTimeout(ctx, dialTimeout)
	defer stop()
	dialer := net.Dialer{Control: control}
	raw, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("%w: follow %s: %w", ErrBroken, f.peer, err)
	}
	f.plain = &socket{Conn: raw}
	secure := tls.Client(f.plain, l.cfg.Authority.Client(f.peer))
	if err := secure.HandshakeContext(ctx); err != nil {
		raw.Close()
		return fmt.Errorf("%w: follow %s: %w", ErrBroken, f.peer, err)
	}
	f.sub, err = newSubscriber(secure, feedBuffer, connectOptions{TLS: true, Name: l.self.String()}, inbox(l.self)+"."+Tokens.String()+".>")
	if err != nil {
		return fmt.Errorf("%w: follow %s: %w", ErrBroken, f.peer, err)
	}
	f.take = func(subject, data []byte) {
		f.touch(time.Now())
		l.receive(&f.in, subject, data)
	}
	f.in.begin(Tokens, func(_ Lane, to trust.Identity, g grant) { f.grant(to, g) })
	l.feeds.mu.Lock()
	defer l.feeds.mu.Unlock()
	if l.feeds.closed {
		raw.Close()
		return ErrClosed
	}
	if err := f.plain.detach(); err != nil {
		raw.Close()
		return fmt.Errorf("link: follow %s: %w", f.peer, err)
	}
	if err := l.feeds.poll.add(f); err != nil {
		f.plain.Close()
		return fmt.Errorf("link: follow %s: %w", f.peer, err)
	}
	l.feeds.polled[f] = true
	// What came right behind the server's last answer was read with it, and no socket
	// tells of it: the answer to this does.
	if _, err := f.sub.conn.Write([]byte("PING\r\n")); err != nil {
		f.plain.shut() // whoever reads it sees the end
	}
	return nil
}

func (f *feed) touch(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.used, f.idle = now, false
}

// grant lets a sender at this feed's server go on.
func (f *feed) grant(to trust.Identity, g grant) {
	text := fmt.Appendf(nil, "PUB %s %d\r\n", creditSubject(to, Tokens), grantBytes)
	if _, err := f.sub.conn.Write(append(g.append(text), "\r\n"...)); err != nil {
		f.plain.shut() // whoever reads it sees the end
	}
}

// readFeeds reads all feeds, until the link is closed.
func (l *Link) readFeeds() {
	for {
		ready, err := l.feeds.poll.wait()
		if err != nil {
			break
		}
		for _, f := range ready {
			if err := l.read(f); err != nil {
				l.endFeed(f, err)
			}
		}
	}
	l.feeds.mu.Lock()
	defer l.feeds.mu.Unlock()
	for f := range l.feeds.polled {
		f.plain.Close()
	}
}

// read takes what has come on a feed.
func (l *Link) read(f *feed) error {
	f.plain.readable()
	err := f.sub.run(f.take)
	f.mu.Lock()
	f.pings = 0
	f.mu.Unlock()
	if errors.Is(err, errLater) {
		return nil
	}
	return err
}

// endFeed is called by who reads it.
func (l *Link) endFeed(f *feed, err error) {
	l.feeds.mu.Lock()
	delete(l.feeds.open, f.peer)
	delete(l.feeds.polled, f)
	l.feeds.poll.remove(f)
	f.plain.Close()
	l.feeds.mu.Unlock()
	f.mu.Lock()
	idle := f.idle
	f.mu.Unlock()
	var reason error
	if !idle {
		reason = fmt.Errorf("%w: %w", ErrBroken, errFeedLost)
	}
	l.closeWatched(f.peer, reason)
	if idle || l.ctx.Err() != nil {
		return
	}
	l.log.Info("link lost", "peer", f.peer.String(), "lane", Tokens.String(), "error", err)
	l.cfg.Lost(f.peer, lost(err))
}

// follows reports whether a feed from a peer is read.
func (s *feeds) follows(peer trust.Identity) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.polled[s.open[peer]]
}

// closeWatched ends the lanes to a peer, and to the device processes at its server, that
// only its feed watches.
func (l *Link) closeWatched(peer trust.Identity, reason error) {
	l.out.Lock()
	var open []*lane
	for key, n := range l.out.lanes {
		if key.which != Tokens && key.peer.Home() == peer {
			open = append(open, n)
		}
	}
	l.out.Unlock()
	for _, n := range open {
		n.mu.Lock()
		watched := n.watched
		n.mu.Unlock()
		if watched {
			n.close(reason)
		}
	}
}

// pingFeeds asks the servers of feeds whether they are there: those that say nothing.
func (l *Link) pingFeeds() {
	ticker := time.NewTicker(pingInterval)
	defer ticker.Stop()
	for {
		select {
		case <-l.ctx.Done():
			return
		case <-ticker.C:
		}
		for _, f := range l.feeds.all() {
			f.mu.Lock()
			pings := f.pings
			f.pings++
			f.mu.Unlock()
			if pings >= maxPings {
				f.plain.shut()
			} else if pings > 0 {
				if _, err := f.sub.conn.Write([]byte("PING\r\n")); err != nil {
					f.plain.shut()
				}
			}
		}
	}
}

// all gives the feeds that are read.
func (s *feeds) all() []*feed {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.polled))
}

// sweep closes feeds that nobody used since a time, and forgets senders silent for longer.
func (s *feeds) sweep(unused, silent time.Time) {
	for _, f := range s.all() {
		f.in.forget(silent)
		f.mu.Lock()
		f.idle = f.used.Before(unused)
		idle := f.idle
		f.mu.Unlock()
		if idle {
			f.plain.shut()
		}
	}
}

// close ends the reading.
func (s *feeds) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.poll != nil {
		s.poll.close()
	}
}
