package state

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"
)

// maxSnapshotBytes bounds what Restore reads.
const maxSnapshotBytes = 1 << 30

// A machine applies committed commands and publishes the View. Raft's one
// goroutine calls Apply, Snapshot and Restore; everybody else reads.
type machine struct {
	view   atomic.Pointer[View]
	tooNew chan error // holds one: a command of a later version was committed
	ended  bool       // after that; Apply alone uses it

	mu      sync.Mutex // guards changed
	changed chan struct{}
}

var _ raft.FSM = (*machine)(nil)

func newMachine() *machine {
	m := &machine{changed: make(chan struct{}), tooNew: make(chan error, 1)}
	m.view.Store(empty())
	return m
}

func (m *machine) publish(v *View) {
	m.view.Store(v)
	m.mu.Lock()
	defer m.mu.Unlock()
	close(m.changed)
	m.changed = make(chan struct{})
}

// changes gives a channel that is closed when a later View is published.
func (m *machine) changes() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changed
}

// wait blocks until there is a View whose Index is greater.
func (m *machine) wait(ctx context.Context, index uint64) (*View, error) {
	for {
		changed := m.changes()
		if v := m.view.Load(); v.Index > index {
			return v, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Apply gives nil or the error that refused the command.
func (m *machine) Apply(log *raft.Log) any {
	command, err := DecodeCommand(log.Data)
	if m.ended || errors.Is(err, ErrVersion) {
		// To go on without it would be another state than the other heads'.
		if !m.ended {
			m.ended = true
			m.tooNew <- fmt.Errorf("this program is too old for the cluster, upgrade it: %w", err)
		}
		return ErrVersion
	}
	if err != nil {
		next := *m.view.Load()
		next.Index = log.Index
		m.publish(&next)
		return err
	}
	next, err := m.view.Load().Apply(log.Index, command)
	m.publish(next)
	if err != nil {
		return err
	}
	return nil
}

func (m *machine) Snapshot() (raft.FSMSnapshot, error) {
	return published{m.view.Load()}, nil
}

// published is a View on its way into a snapshot: it is immutable, so nothing
// needs copying.
type published struct{ view *View }

func (p published) Persist(sink raft.SnapshotSink) error {
	data, err := p.view.encode()
	if err == nil {
		_, err = sink.Write(data)
	}
	if err != nil {
		sink.Cancel()
		return fmt.Errorf("state: write snapshot: %w", err)
	}
	return sink.Close()
}

func (published) Release() {}

func (m *machine) Restore(from io.ReadCloser) error {
	defer from.Close()
	data, err := io.ReadAll(io.LimitReader(from, maxSnapshotBytes+1))
	if err != nil {
		return fmt.Errorf("state: read snapshot: %w", err)
	}
	if len(data) > maxSnapshotBytes {
		return fmt.Errorf("state: snapshot of more than %d bytes", maxSnapshotBytes)
	}
	view, err := decodeSnapshot(data)
	if err != nil {
		return err
	}
	m.publish(view)
	return nil
}
