package state

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/goleak"

	"manta/internal/trust"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
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

// A head whose log holds a command of a later version stops following it and says
// so: its state would not be the others' any more.
func TestTooNewCommandEndsTheHead(t *testing.T) {
	m := newMachine()
	put := func(index uint64, c Command) any {
		data, err := encoding.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		return m.Apply(&raft.Log{Index: index, Data: data})
	}
	first, later := command(deployment("d", 1)), command(deployment("e", 1))
	first.Version, later.Version = 1, Version+1
	if err := put(1, first); err != nil {
		t.Fatal(err)
	}
	put(2, later)
	select {
	case err := <-m.tooNew:
		if !errors.Is(err, ErrVersion) {
			t.Errorf("error %v", err)
		}
	default:
		t.Fatal("nobody is told")
	}
	put(3, command(Change{DeleteDeployment: "d"}))
	if v := m.view.Load(); v.Index != 1 || len(v.Deployments) != 1 {
		t.Errorf("the view went on to %d: %v", v.Index, v.Deployments)
	}
}

// The leader writes no version that a member is known not to read.
func TestLeaderWritesWhatAllRead(t *testing.T) {
	s := open(t, t.TempDir())
	defer s.Close()
	lead(t, s)
	old := Change{PutHead: &Head{ID: "h-2"}}
	if err := commit(t, s, command(old)); err != nil {
		t.Fatal(err)
	}
	if err := commit(t, s, command(key("a", 1))); err != nil {
		t.Fatalf("before the old head is a member: %v", err)
	}
	if err := s.Change(soon(t), Membership{Add: "h-2"}); err != nil {
		t.Fatal(err)
	}
	if err := commit(t, s, command(key("b", 2))); !errors.Is(err, ErrVersion) {
		t.Errorf("with it: %v, want %v", err, ErrVersion)
	}
	if err := commit(t, s, command(deployment("d", 1))); err != nil {
		t.Errorf("an old command: %v", err)
	}
	if readable, err := s.Readable([]Change{key("b", 2), deployment("d", 2)}); !errors.Is(err, ErrVersion) || len(readable) != 1 || readable[0].PutDeployment == nil {
		t.Errorf("of a new and an old change it reads %+v, %v", readable, err)
	}
	old.PutHead.Reads = 2
	if err := commit(t, s, command(old)); err != nil {
		t.Fatal(err)
	}
	if err := commit(t, s, command(key("b", 2))); err != nil {
		t.Errorf("after its upgrade: %v", err)
	}
}

// A head of three is made the only voter: it leads, with all that was committed.
func TestRecover(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	lead(t, s)
	if err := commit(t, s, command(deployment("d", 1))); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"h-2", "h-3"} { // they are never there
		if err := s.Change(soon(t), Membership{Add: id}); err != nil {
			t.Fatal(err)
		}
	}
	// From here on the lone head has no majority: nothing is committed any more.
	_ = s.raft.AddVoter("h-2", "h-2", 0, time.Second)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Recover(dir, "9", slog.New(slog.DiscardHandler)); err == nil {
		t.Error("another head's disk was taken")
	}
	if _, err := Recover(t.TempDir(), "1", slog.New(slog.DiscardHandler)); !errors.Is(err, ErrNothing) {
		t.Errorf("an empty disk: %v", err)
	}
	r, err := Recover(dir, "1", slog.New(slog.DiscardHandler))
	if err != nil || r.ID != "h-1" || len(r.Were) != 3 || len(r.View.Deployments) != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	s = open(t, dir)
	defer s.Close()
	lead(t, s)
	if _, err := s.Barrier(soon(t)); err != nil {
		t.Fatal(err)
	}
	if seats, err := s.Seats(); err != nil || len(seats) != 1 || len(s.View().Deployments) != 1 {
		t.Errorf("seats %v, %v, deployments %v", seats, err, s.View().Deployments)
	}
}

// A leader whose disk is full says so, also to a head that it told by name; so another
// is asked, and a user who hears of it knows what to do.
func TestFullDiskIsSaid(t *testing.T) {
	for _, cause := range []error{syscall.ENOSPC, syscall.EDQUOT} {
		err := await(t.Context(), failed{&os.PathError{Op: "write", Path: "1.wal", Err: cause}})
		if !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), "1.wal") {
			t.Errorf("%v became %v", cause, err)
		}
		name, ok := RefusalOf(err)
		if far := (&Refused{Name: name, Text: err.Error()}); !ok || !errors.Is(far, ErrFull) {
			t.Errorf("%v is %q to other heads", err, name)
		}
	}
	if err := await(t.Context(), failed{syscall.EIO}); errors.Is(err, ErrFull) {
		t.Errorf("%v", err)
	}
}

// failed is a future that ended so.
type failed struct{ err error }

func (f failed) Error() error { return f.err }
