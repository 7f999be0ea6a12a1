package member

import (
	"bytes"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"manta/internal/trust"
)

// A probe that memberlist has under way at Shutdown ends by itself, at its timeout.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/hashicorp/memberlist.(*Memberlist).probeNode"))
}

var (
	head = trust.Identity{Role: trust.Head, ID: "h"}
	node = trust.Identity{Role: trust.Node, ID: "n"}
)

func start(t *testing.T, id trust.Identity, secret string, logger *slog.Logger) *List {
	t.Helper()
	secrets, err := trust.ParseSecrets([]byte(secret))
	if err != nil {
		t.Fatal(err)
	}
	keys, err := secrets.GossipKeys()
	if err != nil {
		t.Fatal(err)
	}
	l, err := Start(Config{Self: id, Keys: keys, Listen: "127.0.0.1:0", Info: Info{Link: 1234, API: "x:1"}, Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// patience bounds every wait: the machine may be busy with other things.
const patience = time.Minute

// until waits for the members to satisfy a condition.
func until(t *testing.T, l *List, what string, ok func() bool) {
	t.Helper()
	late := time.After(patience)
	for {
		changed := l.Changed()
		if ok() {
			return
		}
		select {
		case <-changed:
		case <-late:
			t.Fatalf("%s: members are %v", what, l.Members())
		}
	}
}

var quiet = slog.New(slog.DiscardHandler)

// Members see each other with their metadata; one that leaves is gone; one that
// was killed and is back, elsewhere, is found at its new place at once.
func TestJoinLeaveReturn(t *testing.T) {
	a := start(t, head, "the secret of the gossip", quiet)
	b := start(t, node, "the secret of the gossip", quiet)
	if err := b.Join(a.Address()); err != nil {
		t.Fatal(err)
	}
	until(t, a, "join", func() bool { return len(a.Members()) == 2 })
	until(t, b, "join", func() bool { return len(b.Members()) == 2 })
	m, ok := b.Find(head)
	if !ok || m.Info.API != "x:1" || m.Link() != "127.0.0.1:1234" {
		t.Fatalf("head as seen by the node: %+v", m)
	}
	killed, _ := a.Find(node)
	b.Close()

	again := start(t, node, "the secret of the gossip", quiet)
	if err := again.Join(a.Address()); err != nil {
		t.Fatal(err)
	}
	until(t, a, "return", func() bool { m, ok := a.Find(node); return ok && m.Boot > killed.Boot })
	if got := a.Members(); len(got) != 2 || got[1].Boot == killed.Boot {
		t.Fatalf("members %v", got)
	}
	if err := again.Leave(patience); err != nil {
		t.Fatal(err)
	}
	until(t, a, "leave", func() bool { m, ok := a.Find(node); return !ok || m.Boot == killed.Boot })
	until(t, a, "death of the first boot", func() bool { _, ok := a.Find(node); return !ok })
}

// Addresses may stand in a file, which is read anew at each attempt, and hosts may
// be DNS names.
func TestJoinByFileAndName(t *testing.T) {
	a := start(t, head, "the secret of the gossip", quiet)
	b := start(t, node, "the secret of the gossip", quiet)
	path := filepath.Join(t.TempDir(), "members")
	if err := b.Join("@" + path); !errors.Is(err, ErrJoin) || !strings.Contains(err.Error(), path) {
		t.Errorf("without the file: %v", err)
	}
	_, port, err := net.SplitHostPort(a.Address())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("# heads\n\nlocalhost:"+port+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := b.Join("@" + path); err != nil {
		t.Fatal(err)
	}
	until(t, a, "join", func() bool { return len(a.Members()) == 2 })
}

// Secrets rotate without a pause: each step of the rotation, member by member,
// leaves a cluster whose members hear each other.
func TestKeysRotate(t *testing.T) {
	const old, new = "the secret of the gossip", "the next secret of gossip"
	steps := []string{old, old + "\n" + new, new + "\n" + old, new}
	for i := range len(steps) - 1 {
		a := start(t, head, steps[i], quiet)
		b := start(t, node, steps[i+1], quiet)
		if err := b.Join(a.Address()); err != nil {
			t.Errorf("step %d: %v", i+1, err)
		}
		until(t, a, "join", func() bool { return len(a.Members()) == 2 })
		until(t, b, "join", func() bool { return len(b.Members()) == 2 })
	}
}

type buffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.String()
}

// The wrong secret joins nothing, and the refusal is logged.
func TestWrongSecretIsRefused(t *testing.T) {
	var log buffer
	a := start(t, head, "the secret of the gossip", slog.New(slog.NewTextHandler(&log, nil)))
	b := start(t, node, "another secret than that", quiet)
	if err := b.Join(a.Address()); !errors.Is(err, ErrJoin) {
		t.Fatalf("error %v", err)
	}
	if len(a.Members()) != 1 || len(b.Members()) != 1 {
		t.Fatalf("members %v and %v", a.Members(), b.Members())
	}
	if !strings.Contains(log.String(), "gossip") {
		t.Fatal("the refusal is not logged")
	}
}
