package link

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"manta/internal/trust"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	headA = trust.Identity{Role: trust.Head, ID: "a"}
	nodeB = trust.Identity{Role: trust.Node, ID: "b"}
	nodeC = trust.Identity{Role: trust.Node, ID: "c"}
)

// A directory resolves ids to the links that a test started.
type directory struct {
	mu        sync.Mutex
	addresses map[trust.Identity]string
}

func (d *directory) set(id trust.Identity, address string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.addresses == nil {
		d.addresses = map[trust.Identity]string{}
	}
	d.addresses[id] = address
}

func (d *directory) resolve(id trust.Identity) (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if address, ok := d.addresses[id]; ok {
		return address, nil
	}
	return "", fmt.Errorf("%s is not in the directory", id)
}

// authority is what a process of some identity that knows a secret proves itself by.
func authority(t testing.TB, id trust.Identity, secret string) *trust.Authority {
	t.Helper()
	a, err := trust.NewAuthority(trust.Secrets{[]byte(secret)}, id)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func start(t *testing.T, d *directory, id trust.Identity, secret string, adjust func(*Config)) *Link {
	t.Helper()
	cfg := Config{Authority: authority(t, id, secret), Listen: "127.0.0.1:0", Resolve: d.resolve, Logger: slog.New(slog.DiscardHandler)}
	if adjust != nil {
		adjust(&cfg)
	}
	l, err := Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	d.set(id, l.Address())
	return l
}

const secret = "the secret of the link's tests"

func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// Messages of any size arrive whole, in order, under their sender's name.
func TestMessagesArriveInOrder(t *testing.T) {
	d := &directory{}
	a := start(t, d, headA, secret, nil)
	b := start(t, d, nodeB, secret, nil)
	sizes := []int{0, 1, 100, recordBytes - 1, recordBytes, recordBytes + 1, 3*recordBytes + 17, 5}
	for which := range lanes {
		t.Run(which.String(), func(t *testing.T) {
			got := make(chan Message, len(sizes))
			b.Handle("x", func(m Message) { m.Data = bytes.Clone(m.Data); got <- m })
			for i, size := range sizes {
				data := bytes.Repeat([]byte{byte(i + 1)}, size)
				if err := a.Send(soon(t), nodeB, which, "x", data); err != nil {
					t.Fatal(err)
				}
			}
			for i, size := range sizes {
				select {
				case m := <-got:
					if m.From != headA || len(m.Data) != size || size > 0 && (m.Data[0] != byte(i+1) || m.Data[size-1] != byte(i+1)) {
						t.Fatalf("message %d: from %v, %d bytes, want %d", i, m.From, len(m.Data), size)
					}
				case <-soon(t).Done():
					t.Fatalf("message %d did not arrive", i)
				}
			}
		})
	}
}

// Far more than a window gets through, because credit flows back.
func TestCreditFlowsBack(t *testing.T) {
	d := &directory{}
	a := start(t, d, headA, secret, func(c *Config) { c.Window = 4 << 20 })
	b := start(t, d, nodeB, secret, func(c *Config) { c.Window = 4 << 20 })
	const messages = 40
	got := make(chan int, messages)
	b.Handle("x", func(m Message) { got <- len(m.Data) })
	data := make([]byte, 1<<20)
	for range messages {
		if err := a.Send(soon(t), nodeB, Bulk, "x", data); err != nil {
			t.Fatal(err)
		}
	}
	for range messages {
		select {
		case <-got:
		case <-soon(t).Done():
			t.Fatal("messages missing")
		}
	}
}

// A peer that does not read costs its sender a bounded wait and bounded memory,
// and the other lane goes on.
func TestStalledPeerIsGivenUp(t *testing.T) {
	d := &directory{}
	lost := make(chan error, 1)
	a := start(t, d, headA, secret, func(c *Config) {
		c.Window, c.Stall = 4<<20, 300*time.Millisecond
		c.Lost = func(_ trust.Identity, err error) { lost <- err }
	})
	b := start(t, d, nodeB, secret, func(c *Config) { c.Window = 4 << 20 })
	release := make(chan struct{})
	defer close(release)
	b.Handle("slow", func(Message) { <-release })
	quick := make(chan Message, 1)
	b.Handle("quick", func(m Message) { quick <- m })
	var err error
	for i := 0; err == nil && i < 100; i++ {
		err = a.Send(soon(t), nodeB, Bulk, "slow", make([]byte, 1<<20))
	}
	if !errors.Is(err, ErrStalled) {
		t.Fatalf("error %v, want ErrStalled", err)
	}
	if err := <-lost; !errors.Is(err, ErrStalled) {
		t.Fatalf("lost with %v", err)
	}
	if err := a.Send(soon(t), nodeB, Control, "quick", nil); err != nil {
		t.Fatal(err)
	}
	select {
	case <-quick:
	case <-soon(t).Done():
		t.Fatal("the control lane waits behind the bulk lane")
	}
}

func TestCalls(t *testing.T) {
	d := &directory{}
	a := start(t, d, headA, secret, nil)
	b := start(t, d, nodeB, secret, nil)
	release, entered := make(chan struct{}), make(chan struct{})
	free := sync.OnceFunc(func() { close(release) })
	defer free() // the links' end waits for who answers
	b.HandleCall("echo", 4, func(_ context.Context, m Message) ([]byte, error) { return m.Data, nil })
	b.HandleCall("fail", 4, func(_ context.Context, m Message) ([]byte, error) { return nil, errors.New("no such thing") })
	b.HandleCall("one", 1, func(context.Context, Message) ([]byte, error) {
		entered <- struct{}{}
		<-release
		return nil, nil
	})
	large := bytes.Repeat([]byte("large"), 1<<20)
	got, err := a.Call(soon(t), nodeB, "echo", large)
	if err != nil || !bytes.Equal(got, large) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if _, err := a.Call(soon(t), nodeB, "fail", nil); !errors.Is(err, ErrRemote) || !strings.Contains(err.Error(), "no such thing") {
		t.Fatalf("error %v", err)
	}
	if _, err := a.Call(soon(t), nodeB, "unknown", nil); !errors.Is(err, ErrRemote) {
		t.Fatalf("error %v", err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := a.Call(soon(t), nodeB, "one", nil); err != nil {
			t.Error(err)
		}
	})
	<-entered
	if _, err := a.Call(soon(t), nodeB, "one", nil); err == nil || !strings.Contains(err.Error(), ErrBusy.Error()) {
		t.Fatalf("a second call beyond the limit: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.Call(ctx, nodeB, "echo", nil); !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled call: %v", err)
	}
	free()
	wg.Wait()
}

// A peer that went away is an error, and the same id back at another address is
// found again.
func TestPeerReturns(t *testing.T) {
	d := &directory{}
	lost := make(chan trust.Identity, 4)
	a := start(t, d, headA, secret, func(c *Config) { c.Lost = func(p trust.Identity, _ error) { lost <- p } })
	first := start(t, d, nodeB, secret, nil)
	first.HandleCall("echo", 1, func(_ context.Context, m Message) ([]byte, error) { return []byte("first"), nil })
	if _, err := a.Call(soon(t), nodeB, "echo", nil); err != nil {
		t.Fatal(err)
	}
	first.Close()
	select {
	case p := <-lost:
		if p != nodeB {
			t.Fatalf("lost %v", p)
		}
	case <-soon(t).Done():
		t.Fatal("the loss was not told")
	}
	if err := a.Send(soon(t), nodeB, Control, "x", nil); !errors.Is(err, ErrBroken) {
		t.Fatalf("send to a dead peer: %v", err)
	}
	second := start(t, d, nodeB, secret, nil)
	second.HandleCall("echo", 1, func(_ context.Context, m Message) ([]byte, error) { return []byte("second"), nil })
	if got, err := a.Call(soon(t), nodeB, "echo", nil); err != nil || string(got) != "second" {
		t.Fatalf("%q, %v", got, err)
	}
}

// Who holds another secret, or is not who was asked for, gets no connection; an
// id without an address is an error.
func TestStrangersAreRefused(t *testing.T) {
	d := &directory{}
	a := start(t, d, headA, secret, nil)
	start(t, d, nodeB, "another secret than the link's", nil)
	if err := a.Send(soon(t), nodeB, Control, "x", nil); !errors.Is(err, trust.ErrUnknownSecret) {
		t.Fatalf("stranger: %v", err)
	}
	c := start(t, d, nodeC, secret, nil)
	d.set(nodeB, c.Address())
	if err := a.Send(soon(t), nodeB, Control, "x", nil); !errors.Is(err, trust.ErrIdentity) {
		t.Fatalf("impostor: %v", err)
	}
	if err := a.Send(soon(t), trust.Identity{Role: trust.Node, ID: "nobody"}, Control, "x", nil); !errors.Is(err, ErrUnknown) {
		t.Fatalf("unknown: %v", err)
	}
}

// Idle lanes close without a loss, and open again when needed.
func TestIdleLanesClose(t *testing.T) {
	d := &directory{}
	a := start(t, d, headA, secret, func(c *Config) {
		c.Idle = 30 * time.Millisecond
		c.Lost = func(p trust.Identity, err error) { t.Errorf("lost %v: %v", p, err) }
	})
	b := start(t, d, nodeB, secret, nil)
	got := make(chan Message, 2)
	b.Handle("x", func(m Message) { m.Data = bytes.Clone(m.Data); got <- m })
	for range 2 {
		if err := a.Send(soon(t), nodeB, Control, "x", nil); err != nil {
			t.Fatal(err)
		}
		<-got
		a.out.Lock()
		open := a.out.lanes[laneKey{nodeB, Control}]
		a.out.Unlock()
		if open != nil {
			select {
			case <-open.gone:
			case <-soon(t).Done():
				t.Fatal("idle lane stays open")
			}
		}
	}
}

// A courier delivers the newest to who is there; a peer that can't be reached
// delays nobody.
func TestCourier(t *testing.T) {
	d := &directory{}
	a := start(t, d, headA, secret, nil)
	b := start(t, d, nodeB, secret, nil)
	d.set(nodeC, "127.0.0.1:1")
	got := make(chan string, 1000)
	b.Handle("news", func(m Message) { got <- string(m.Data) })
	c := NewCourier(a, Control)
	defer c.Close()
	for i := range 100 {
		c.Tell(nodeC, "news", "", nil)
		c.Tell(nodeB, "news", "", fmt.Append(nil, i))
	}
	for last := ""; last != "99"; {
		select {
		case last = <-got:
		case <-soon(t).Done():
			t.Fatalf("the newest did not arrive; last was %q", last)
		}
	}
	c.Keep(map[trust.Identity]bool{nodeB: true})
	if len(c.peers) != 1 {
		t.Fatalf("%d peers kept", len(c.peers))
	}
}

func TestMessageTooLarge(t *testing.T) {
	d := &directory{}
	a := start(t, d, headA, secret, func(c *Config) { c.MaxMessage = 10 })
	if err := a.Send(soon(t), nodeB, Control, "x", make([]byte, 11)); !errors.Is(err, ErrTooLarge) {
		t.Fatalf("error %v", err)
	}
}
