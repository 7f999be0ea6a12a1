package state

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"

	"manta/internal/trust"
)

const (
	walSegmentBytes = 8 << 20
	keptSnapshots   = 2
	peerTimeout     = 2 * time.Second
	applyTimeout    = 5 * time.Second
)

var (
	// ErrNotLeader: this head does not lead at the moment; Leader may know who does.
	ErrNotLeader = errors.New("state: not the leader")
	// ErrFull: the leader has no room for its log. It leads no more, and nothing was
	// committed: a head with room may lead next.
	ErrFull = errors.New("state: no room for the log on the leading head's disk")
)

// Config says how a Server is opened.
type Config struct {
	Dir       string // of this head's own disk
	Listen    string // raft's host:port; port 0 takes a free one
	Authority *trust.Authority
	Resolve   Resolver // of other heads
	// Bootstrap makes a new cluster of this one voter when Dir holds no state.
	Bootstrap bool
	// Heartbeat is how long a follower waits for its leader before it stands for
	// election, 0: half a second.
	Heartbeat time.Duration
	Logger    *slog.Logger
}

// Server is a head's part in raft. It is safe for concurrent use.
type Server struct {
	self      string
	machine   *machine
	raft      *raft.Raft
	log       *wal.WAL
	transport *raft.NetworkTransport
	port      int
	opened    uint64 // the log's last index when it was opened
}

// Open starts raft from what Dir holds. The raft id is the authority's.
func Open(cfg Config) (_ *Server, err error) {
	if cfg.Heartbeat == 0 {
		cfg.Heartbeat = 500 * time.Millisecond
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	logger := raftLogger(cfg.Logger)
	s := &Server{self: cfg.Authority.Self().ID, machine: newMachine()}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	logDir := filepath.Join(cfg.Dir, "log")
	if err := os.MkdirAll(logDir, 0o700); err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	if s.log, err = wal.Open(logDir, wal.WithSegmentSize(walSegmentBytes), wal.WithLogger(logger.Named("wal"))); err != nil {
		return nil, fmt.Errorf("state: open log in %s: %w", logDir, err)
	}
	snapshots, err := raft.NewFileSnapshotStoreWithLogger(cfg.Dir, keptSnapshots, logger.Named("snapshot"))
	if err != nil {
		return nil, fmt.Errorf("state: snapshots in %s: %w", cfg.Dir, err)
	}
	layer, err := listen(cfg.Listen, cfg.Authority, cfg.Resolve)
	if err != nil {
		return nil, err
	}
	s.port = layer.listener.Addr().(*net.TCPAddr).Port
	s.transport = raft.NewNetworkTransportWithLogger(layer, 3, peerTimeout, logger.Named("net"))

	config := raft.DefaultConfig()
	config.LocalID = raft.ServerID(s.self)
	config.HeartbeatTimeout, config.ElectionTimeout = cfg.Heartbeat, cfg.Heartbeat
	config.LeaderLeaseTimeout = cfg.Heartbeat - standAloneStep
	config.CommitTimeout = cfg.Heartbeat / 10
	config.SnapshotThreshold = 4096
	config.Logger = logger
	if cfg.Bootstrap {
		if err := bootstrap(config, s, snapshots); err != nil {
			return nil, err
		}
	}
	if s.raft, err = raft.NewRaft(config, s.machine, s.log, s.log, snapshots, s.transport); err != nil {
		return nil, fmt.Errorf("state: start raft: %w", err)
	}
	s.opened = s.raft.LastIndex()
	return s, s.standAlone()
}

// standAloneStep is by how much the heartbeat of a lone voter is shortened.
const standAloneStep = time.Millisecond

// standAlone makes a lone voter stand for election at once: there is nobody whose
// heartbeat it could wait for. A follower whose timeout gets shorter looks right away.
func (s *Server) standAlone() error {
	future := s.raft.GetConfiguration()
	if err := future.Error(); err != nil {
		return fmt.Errorf("state: read raft's configuration: %w", err)
	}
	servers := future.Configuration().Servers
	if len(servers) != 1 || servers[0].ID != raft.ServerID(s.self) {
		return nil
	}
	now := s.raft.ReloadableConfig()
	now.HeartbeatTimeout -= standAloneStep
	if err := s.raft.ReloadConfig(now); err != nil {
		return fmt.Errorf("state: %w", err)
	}
	return nil
}

func bootstrap(config *raft.Config, s *Server, snapshots raft.SnapshotStore) error {
	exists, err := raft.HasExistingState(s.log, s.log, snapshots)
	if err != nil {
		return fmt.Errorf("state: read log: %w", err)
	}
	if exists {
		return nil
	}
	err = raft.BootstrapCluster(config, s.log, s.log, snapshots, s.transport, raft.Configuration{Servers: []raft.Server{{
		Suffrage: raft.Voter, ID: config.LocalID, Address: raft.ServerAddress(config.LocalID),
	}}})
	if err != nil {
		return fmt.Errorf("state: bootstrap: %w", err)
	}
	return nil
}

// Close stops raft and closes its files.
func (s *Server) Close() error {
	var errs []error
	if s.raft != nil {
		errs = append(errs, s.raft.Shutdown().Error())
	}
	if s.transport != nil {
		errs = append(errs, s.transport.Close())
	}
	if s.log != nil {
		errs = append(errs, s.log.Close())
	}
	return errors.Join(errs...)
}

// Port is where raft listens.
func (s *Server) Port() int { return s.port }

// View gives the newest state that this head has applied.
func (s *Server) View() *View { return s.machine.view.Load() }

// Restored reports whether the View holds all that the log held when it was opened.
func (s *Server) Restored() bool { return s.raft.AppliedIndex() >= s.opened }

// Wait blocks until there is a View whose Index is greater, or ctx ends.
func (s *Server) Wait(ctx context.Context, index uint64) (*View, error) {
	return s.machine.wait(ctx, index)
}

// Changed gives a channel that is closed when a later View is published.
func (s *Server) Changed() <-chan struct{} { return s.machine.changes() }

// Leader gives the id of the leader, or "" when none is known.
func (s *Server) Leader() string {
	_, leader := s.raft.LeaderWithID()
	return string(leader)
}

// Leading reports whether this head leads and its lease holds.
func (s *Server) Leading() bool { return s.raft.State() == raft.Leader }

// Leadership tells when this head begins and ceases to lead. One reader.
func (s *Server) Leadership() <-chan bool { return s.raft.LeaderCh() }

// Apply commits an encoded command, waits until this head has applied it and
// gives its index. Only the leader does so. The error may be one of those that
// refuse a command.
func (s *Server) Apply(ctx context.Context, command []byte) (uint64, error) {
	c, err := DecodeCommand(command)
	if err != nil {
		return 0, err
	}
	if err := s.allRead(c.Version); err != nil {
		return 0, err
	}
	future := s.raft.Apply(command, timeLeft(ctx))
	if err := await(ctx, future); err != nil {
		return 0, err
	}
	if refused, ok := future.Response().(error); ok {
		return future.Index(), refused
	}
	return future.Index(), nil
}

// allRead refuses a version that a member is known not to read.
func (s *Server) allRead(version int) error {
	if version <= 1 {
		return nil
	}
	seats, err := s.Seats()
	if err != nil {
		return err
	}
	heads := s.View().Heads
	for _, seat := range seats {
		if head, known := heads[seat.ID]; known && seat.ID != s.self && max(1, head.Reads) < version {
			return fmt.Errorf("%w: the command is of version %d, head %s reads %d: upgrade it first", ErrVersion, version, seat.ID, max(1, head.Reads))
		}
	}
	return nil
}

// Readable gives the changes that every member reads: one that waits for an upgrade
// holds no other up. The error says why some are left out.
func (s *Server) Readable(changes []Change) (readable []Change, err error) {
	for _, c := range changes {
		if unread := s.allRead(Command{Changes: []Change{c}}.needs()); unread != nil {
			err = unread
			continue
		}
		readable = append(readable, c)
	}
	return readable, err
}

// TooNew tells that the log holds a command which this program can't read: the
// View is not followed any further, and the head must end.
func (s *Server) TooNew() <-chan error { return s.machine.tooNew }

// Barrier returns once this head has applied everything that was committed before
// the call, and gives the Index that another head's View must have to hold as
// much. Only the leader can tell.
func (s *Server) Barrier(ctx context.Context) (uint64, error) {
	if err := await(ctx, s.raft.VerifyLeader()); err != nil {
		return 0, err
	}
	if err := await(ctx, s.raft.Barrier(timeLeft(ctx))); err != nil {
		return 0, err
	}
	return s.View().Index, nil
}

// timeLeft bounds how long raft may hold a command before it enters the log.
func timeLeft(ctx context.Context) time.Duration {
	if deadline, ok := ctx.Deadline(); ok {
		return max(min(time.Until(deadline), applyTimeout), time.Millisecond)
	}
	return applyTimeout
}

// await waits for a future, or the end of ctx; then the outcome is unknown. The
// goroutine ends with the future, which raft always answers.
func await(ctx context.Context, future raft.Future) error {
	done := make(chan error, 1)
	go func() { done <- future.Error() }()
	select {
	case err := <-done:
		if errors.Is(err, raft.ErrNotLeader) || errors.Is(err, raft.ErrLeadershipLost) || errors.Is(err, raft.ErrRaftShutdown) {
			return fmt.Errorf("%w: %w", ErrNotLeader, err)
		}
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			return fmt.Errorf("%w: %w", ErrFull, err)
		}
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
