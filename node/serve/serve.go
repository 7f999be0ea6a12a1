// Package serve runs on a node what the heads assign to it: it pulls and loads
// models onto devices, drives their engines, takes requests and sends frames.
//
// It knows nothing of gossip, connections or raft: the node's composition root
// hands it messages and takes its own. Whatever a head or a link does, an engine
// never waits for it.
package serve

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"manta/internal/trace"
	"manta/node/wire"
	"manta/runtime/weights"
)

// Config is what a Server is made of.
type Config struct {
	Node    string
	Devices []Kind
	Library func(downloadDir string) *weights.Library // "" is the node's own folder
	Send    Sender
	Peers   Peers
	Logger  *slog.Logger
	Tracer  *trace.Tracer // nil: requests are not traced
	// Hosts runs replicas outside of this process; nil: all run in it.
	Hosts Hosts
	// Broken is called when a device failed in a way that only a new process can
	// mend; it must not block. nil: the replica is reported as failed.
	Broken func(error)
	// Changed is called when Report would tell something new. It must not block.
	Changed func()
}

// Sender sends an encoded message to a head. It may block while a peer is
// dialled; an error means that messages may be lost.
type Sender interface {
	Send(ctx context.Context, head, kind string, data []byte) error
}

// Server holds a node's replicas and the requests in progress on them.
type Server struct {
	cfg      Config
	sessions *sessions
	outboxes *outboxes

	mu       sync.Mutex // guards what follows
	index    uint64     // of the newest Assignments
	replicas map[string]Hosted
	draining bool          // no request is taken
	going    bool          // the node stops soon: heads shall move its shards
	leaving  bool          // and will not come back
	assigned time.Time     // when the newest Assignments came
	emptied  chan struct{} // closed and made anew when a replica goes
	sequence uint64        // of the newest Report
	running  context.Context
	group    *errgroup.Group
}

// ErrNoLeader: no head leads, so nobody moves this node's shards.
var ErrNoLeader = errors.New("serve: no head leads")

// ErrDraining is the answer to requests while the node empties itself.
var ErrDraining = errors.New("serve: this node is draining")

// New makes a server; Run starts it.
func New(cfg Config) *Server {
	s := &Server{cfg: cfg, replicas: make(map[string]Hosted), emptied: make(chan struct{})}
	s.outboxes = newOutboxes(cfg.Send, cfg.Logger)
	s.sessions = newSessions(s.outboxes, cfg.Tracer)
	return s
}

// Run works until ctx ends; then every replica has stopped and freed its devices.
func (s *Server) Run(ctx context.Context) error {
	group, running := errgroup.WithContext(ctx)
	s.mu.Lock()
	s.running, s.group = running, group
	for _, r := range s.replicas {
		s.start(r)
	}
	s.mu.Unlock()
	group.Go(func() error { return s.outboxes.run(running) })
	group.Go(func() error { return s.tidy(running) })
	err := group.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// tidy forgets outputs that nobody will come back for, and cancels the requests of
// heads that have been out of reach for too long.
func (s *Server) tidy(ctx context.Context) error {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case now := <-ticker.C:
			s.sessions.expire(now)
			for _, head := range s.outboxes.lost(now) {
				s.sessions.abandon(head)
			}
		}
	}
}

// forgotten is how long no order may have come before one of a lower index is obeyed.
// A leader repeats itself twice a second; such an order is one of heads that have lost
// their disks and count anew.
const forgotten = 5 * time.Second

// Assign makes the node run what the heads want, and nothing else.
func (s *Server) Assign(a wire.Assignments) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a.Version > wire.Version || s.draining || s.running != nil && s.running.Err() != nil {
		return
	}
	if a.Index < s.index {
		if time.Since(s.assigned) < forgotten {
			return
		}
		s.cfg.Logger.Warn("the heads count anew: what runs here ends", "index", a.Index, "before", s.index)
		a.Replicas = nil // their epochs are lower too; the next order starts them
	}
	s.index, s.assigned = a.Index, time.Now()
	for id, r := range s.replicas {
		if !slices.ContainsFunc(a.Replicas, func(w wire.Assignment) bool { return w.Replica == id }) {
			delete(s.replicas, id)
			r.Stop()
		}
	}
	if len(s.replicas) == 0 {
		close(s.emptied)
		s.emptied = make(chan struct{})
	}
	for _, want := range a.Replicas {
		if r, ok := s.replicas[want.Replica]; ok {
			r.Want(want)
			continue
		}
		r := s.host(want)
		s.replicas[want.Replica] = r
		if s.group != nil {
			s.start(r)
		}
	}
}

// start runs a replica; s.mu is held.
func (s *Server) start(r Hosted) {
	s.group.Go(func() error {
		r.Run(s.running)
		return nil // a replica that fails is reported, and fails alone
	})
}

// later does something after a while, unless the server ends before.
func (s *Server) later(after time.Duration, do func()) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running == nil || s.running.Err() != nil {
		return ErrDraining
	}
	ctx := s.running
	s.group.Go(func() error {
		select {
		case <-time.After(after):
			do()
		case <-ctx.Done():
		}
		return nil
	})
	return nil
}

// Request takes a request for one of the node's drivers. What goes wrong with it
// is told to its head as a frame.
func (s *Server) Request(r wire.Request) {
	if err := s.request(r); err != nil {
		s.outboxes.put(r.Head, wire.Frame{Version: wire.Version, Request: r.ID, Attempt: r.Attempt, Epoch: r.Epoch, Err: wireError(err)})
	}
}

func (s *Server) request(r wire.Request) error {
	if r.Version > wire.Version {
		return &wire.Error{Code: wire.ErrInvalid, Message: fmt.Sprintf("request of version %d, this node speaks %d", r.Version, wire.Version)}
	}
	s.mu.Lock()
	replica, ok := s.replicas[r.Replica].(*replica)
	draining := s.draining
	s.mu.Unlock()
	if draining {
		return ErrDraining
	}
	if !ok {
		return &wire.Error{Code: wire.ErrStale, Message: "replica " + r.Replica + " is not on this node"}
	}
	return replica.request(r)
}

// Cancel withdraws a request or some of its choices.
func (s *Server) Cancel(c wire.Cancel) {
	if c.Version <= wire.Version {
		s.sessions.cancel(c)
	}
}

// Report tells the heads what the node has and runs.
func (s *Server) Report() wire.Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sequence++
	report := wire.Report{Version: wire.Version, Protocol: wire.Protocol, Node: s.cfg.Node, Sequence: s.sequence, Draining: s.draining || s.going, Leaving: s.leaving}
	for _, kind := range s.cfg.Devices {
		report.Devices = append(report.Devices, kind.Devices()...)
		if watched, ok := kind.(Watched); ok {
			report.GPUs = append(report.GPUs, watched.GPUs()...)
		}
	}
	for _, r := range s.replicas {
		report.Replicas = append(report.Replicas, r.Report())
	}
	slices.SortFunc(report.Replicas, func(a, b wire.ReplicaReport) int {
		if a.Replica < b.Replica {
			return -1
		}
		return 1
	})
	return report
}

// Credits tells a head, one of so many, how many choices it may have outstanding
// on each driver here.
func (s *Server) Credits(heads int) []wire.Credit {
	s.mu.Lock()
	defer s.mu.Unlock()
	var credits []wire.Credit
	for _, r := range s.replicas {
		if c, ok := r.Credit(max(1, heads), s.draining); ok {
			credits = append(credits, c)
		}
	}
	return credits
}

// leaderSilent is how long no head may have told what to run before it is clear
// that none will take the shards elsewhere.
const leaderSilent = 3 * time.Second

// Empty asks the heads to move the node's shards elsewhere, and works on until
// none is left, ctx ends, or no head leads. leaving: the node will not come back.
func (s *Server) Empty(ctx context.Context, leaving bool) error {
	s.mu.Lock()
	s.going, s.leaving = true, s.leaving || leaving
	s.mu.Unlock()
	s.changed()
	ticker := time.NewTicker(leaderSilent / 6)
	defer ticker.Stop()
	for {
		s.mu.Lock()
		left, silent, emptied := len(s.replicas), time.Since(s.assigned), s.emptied
		s.mu.Unlock()
		switch {
		case left == 0:
			return nil
		case silent > leaderSilent:
			return ErrNoLeader
		}
		select {
		case <-emptied:
		case <-ticker.C:
		case <-ctx.Done():
			return fmt.Errorf("serve: %d replicas still have shards here: %w", left, ctx.Err())
		}
	}
}

// Stay takes Empty back.
func (s *Server) Stay() {
	s.mu.Lock()
	s.going, s.leaving = false, false
	s.mu.Unlock()
	s.changed()
}

// Drain takes no new requests and returns when those in progress have ended, or
// with ctx.
func (s *Server) Drain(ctx context.Context) error {
	s.Refuse()
	if err := s.sessions.drained(ctx); err != nil || s.cfg.Hosts == nil {
		return err
	}
	return s.cfg.Hosts.Drain(ctx)
}

// Refuse takes no new requests from now on.
func (s *Server) Refuse() {
	s.mu.Lock()
	s.draining = true
	s.mu.Unlock()
	s.changed()
}

// Requests is the number of requests in progress.
func (s *Server) Requests() int {
	s.sessions.mu.Lock()
	defer s.sessions.mu.Unlock()
	return s.sessions.open
}

func (s *Server) changed() {
	if s.cfg.Changed != nil {
		s.cfg.Changed()
	}
}

// wireError puts an error into the words that a head acts on.
func wireError(err error) *wire.Error {
	var told *wire.Error
	if errors.As(err, &told) {
		return told
	}
	for _, known := range errorCodes {
		if errors.Is(err, known.err) {
			return &wire.Error{Code: known.code, Message: err.Error()}
		}
	}
	return &wire.Error{Code: wire.ErrInternal, Message: err.Error()}
}
