//go:build !windows

package main

import (
	"context"
	"errors"
	"testing"
	"time"
)

// leaver is a member that takes its time to close.
type leaver struct {
	left  chan struct{}
	heard chan struct{} // closed once who asked it to leave has an answer
	early bool          // it was closed before Close returned
}

func (l *leaver) Run(ctx context.Context) error {
	select {
	case <-l.left:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l *leaver) Close() error {
	select {
	case <-l.heard:
		l.early = true
	case <-time.After(100 * time.Millisecond):
	}
	return nil
}

func (l *leaver) Drain(context.Context) error { return errors.New("there is no other place") }
func (l *leaver) Undrain()                    {}
func (l *leaver) Leave(context.Context) error { close(l.left); return nil }

// What a member refuses is said to who asked; that it has left, once it is closed and
// its data directory is free.
func TestLeave(t *testing.T) {
	p := &process{dataDir: t.TempDir()}
	l := &leaver{left: make(chan struct{}), heard: make(chan struct{})}
	ran := make(chan error, 1)
	var err error
	if p.lock, err = lockDir(p.dataDir); err != nil {
		t.Fatal(err)
	}
	go func() { ran <- p.attended(t.Context(), l) }()
	for { // until its socket is there
		if err := tellLocal(t.Context(), p.dataDir, "drain"); err.Error() == "there is no other place" {
			break
		}
		select {
		case err := <-ran:
			t.Fatal(err)
		default:
		}
	}
	if err := tellLocal(t.Context(), p.dataDir, "leave"); err != nil {
		t.Fatal(err)
	}
	lock, err := lockDir(p.dataDir)
	if err != nil {
		t.Error(err)
	} else {
		lock.Close()
	}
	close(l.heard)
	if err := <-ran; err != nil || l.early {
		t.Errorf("%v, told before it was closed: %v", err, l.early)
	}
}
