package state

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"go.uber.org/goleak"

	"manta/internal/trust"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func open(t *testing.T, dir string) *Server {
	t.Helper()
	authority, err := trust.NewAuthority(trust.Secrets{[]byte("the secret of raft's tests")}, trust.Identity{Role: trust.Head, ID: "h-1"})
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(Config{
		Dir: dir, Listen: "127.0.0.1:0", Authority: authority, Bootstrap: true, Heartbeat: 50 * time.Millisecond,
		Resolve: func(id string) (string, error) { return "", errors.New("no peers") },
		Logger:  slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// lead waits until the only voter leads.
func lead(t *testing.T, s *Server) {
	t.Helper()
	select {
	case leading := <-s.Leadership():
		if !leading {
			t.Fatal("leadership lost")
		}
	case <-soon(t).Done():
		t.Fatal("no leader")
	}
}

func commit(t *testing.T, s *Server, c Command) error {
	t.Helper()
	data, err := c.Encode()
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Apply(soon(t), data)
	return err
}

// What was committed is there after a restart, from the log and from a snapshot.
func TestRestartKeepsState(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	lead(t, s)
	if err := commit(t, s, command(deployment("d", 1))); err != nil {
		t.Fatal(err)
	}
	if err := commit(t, s, command(Change{DeleteJob: "none"})); !errors.Is(err, ErrUnknown) {
		t.Fatalf("refusal: %v", err)
	}
	if _, ok := s.View().Deployments["d"]; !ok {
		t.Fatal("a write that returned is not in the view")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s = open(t, dir)
	lead(t, s)
	if _, err := s.Barrier(soon(t)); err != nil {
		t.Fatal(err)
	}
	if _, ok := s.View().Deployments["d"]; !ok {
		t.Fatal("lost after a restart")
	}
	if err := commit(t, s, command(deployment("e", 1))); err != nil {
		t.Fatal(err)
	}
	if err := s.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s = open(t, dir)
	defer s.Close()
	lead(t, s)
	if _, err := s.Barrier(soon(t)); err != nil {
		t.Fatal(err)
	}
	if v := s.View(); len(v.Deployments) != 2 {
		t.Fatalf("%d deployments after a restart from a snapshot", len(v.Deployments))
	}
}

// Wait returns at the first later View, and obeys its context.
func TestWait(t *testing.T) {
	s := open(t, t.TempDir())
	defer s.Close()
	lead(t, s)
	index := s.View().Index
	got := make(chan *View, 1)
	go func() {
		v, _ := s.Wait(soon(t), index)
		got <- v
	}()
	if err := commit(t, s, command(deployment("d", 1))); err != nil {
		t.Fatal(err)
	}
	if v := <-got; v == nil || v.Index <= index || len(v.Deployments) != 1 {
		t.Fatalf("got %+v", v)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Wait(ctx, s.View().Index); !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v", err)
	}
}
