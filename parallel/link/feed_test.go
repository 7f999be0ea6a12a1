//go:build linux

package link

import (
	"bytes"
	"errors"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"manta/internal/trust"
)

// Tokens come to who follows from the sender's own server, whole and in order, from its
// device processes too; to who does not, to its inbox.
func TestTokensComeToWhoFollows(t *testing.T) {
	d := &directory{}
	head, other := start(t, d, headA, secret, nil), start(t, d, trust.Identity{Role: trust.Head, ID: "z"}, secret, nil)
	node := start(t, d, nodeB, secret, nil)
	device := startDevice(t, d, trust.DeviceOf(nodeB.ID, "m/0"), nil)
	got, greeted := make(chan Message, 16), make(chan struct{}, 1)
	for _, l := range []*Link{head, other} {
		l.Handle("x", func(m Message) { m.Data = bytes.Clone(m.Data); got <- m })
		l.Handle("y", func(Message) { greeted <- struct{}{} })
	}
	if err := head.Follow(soon(t), nodeB); err != nil {
		t.Fatal(err)
	}
	sizes := []int{0, 1, 100, recordBytes, 3*recordBytes + 17, 5, 1 << 20, 7}
	for _, from := range []*Link{node, device, node} {
		for _, to := range []*Link{head, other} {
			for to == head && openLane(from, headA, Tokens) == nil { // one that answers late is not asked for a time
				if err := from.Send(soon(t), headA, Tokens, "y", nil); err != nil {
					t.Fatal(err)
				}
				<-greeted
			}
			for i, size := range sizes {
				if err := from.Send(soon(t), to.self, Tokens, "x", bytes.Repeat([]byte{byte(i)}, size)); err != nil {
					t.Fatal(err)
				}
			}
			for i, size := range sizes {
				select {
				case m := <-got:
					if m.From != from.self || len(m.Data) != size || bytes.Count(m.Data, []byte{byte(i)}) != size {
						t.Fatalf("%v to %v: message %d of %d bytes from %v", from.self, to.self, i, len(m.Data), m.From)
					}
				case <-soon(t).Done():
					t.Fatalf("%v to %v: message %d did not come", from.self, to.self, i)
				}
			}
			if there := openLane(from, to.self, Tokens) != nil; there != (to == head) {
				t.Errorf("%v to %v: a lane of tokens: %v", from.self, to.self, there)
			}
		}
	}
}

// openLane gives a lane that is there.
func openLane(l *Link, to trust.Identity, which Lane) *lane {
	l.out.Lock()
	defer l.out.Unlock()
	return l.out.lanes[laneKey{to, which}]
}

// A feed that breaks is told as lost. Who follows anew hears what is sent from then on,
// of sessions that go on and of new ones; what nobody heard counts as no message.
func TestFeedThatBroke(t *testing.T) {
	d := &directory{}
	lost := make(chan trust.Identity, 16)
	head := start(t, d, headA, secret, func(c *Config) {
		c.Lost = func(peer trust.Identity, err error) {
			if !errors.Is(err, ErrReplaced) { // a last chunk of the session that ended may come to the next feed, which then tells of it
				lost <- peer
			}
		}
	})
	node := start(t, d, nodeB, secret, nil)
	got := make(chan byte, 16)
	head.Handle("x", func(m Message) { got <- m.Data[0] })
	head.Handle("y", func(Message) {})
	for round := range 4 {
		if err := head.Follow(soon(t), nodeB); err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			want := byte(10*round + i)
			if err := node.Send(soon(t), headA, Tokens, "x", []byte{want}); err != nil {
				t.Fatal(err)
			}
			select {
			case b := <-got:
				if b != want {
					t.Fatalf("round %d: got %d, want %d", round, b, want)
				}
			case <-soon(t).Done():
				t.Fatalf("round %d: message %d did not come", round, i)
			}
		}
		for _, f := range head.feeds.all() {
			f.plain.shut()
		}
		select {
		case peer := <-lost:
			if peer != nodeB {
				t.Fatalf("lost %v", peer)
			}
		case <-soon(t).Done():
			t.Fatal("nobody was told")
		}
		if round%2 == 1 { // the session ends meanwhile: nobody hears its chunks, once the server knows
			for first := openLane(node, headA, Tokens); first != nil && openLane(node, headA, Tokens) == first; {
				first.mu.Lock()
				first.asked = time.Time{}
				first.mu.Unlock()
				if err := node.Send(soon(t), headA, Tokens, "y", nil); err != nil && !errors.Is(err, ErrBroken) { // it ends as this is written
					t.Fatal(err)
				}
			}
		}
	}
}

// Nobody but who it is for follows a peer's tokens.
func TestStrangersDoNotFollow(t *testing.T) {
	d := &directory{}
	start(t, d, nodeB, secret, nil)
	stranger := start(t, d, headA, "a secret of somebody else, as long as ours", nil)
	if err := stranger.Follow(soon(t), nodeB); !errors.Is(err, ErrBroken) {
		t.Fatalf("got %v", err)
	}
}

// A feed that nobody uses closes without a loss, and opens again when it is needed; what
// comes while it is closed comes to the inbox.
func TestIdleFeedsClose(t *testing.T) {
	d := &directory{}
	var used atomic.Bool
	head := start(t, d, headA, secret, func(c *Config) {
		c.Idle = 30 * time.Millisecond
		c.Lost = func(p trust.Identity, err error) {
			if !used.Load() { // what comes to a feed that is just closing is a loss
				t.Errorf("lost %v: %v", p, err)
			}
		}
	})
	node := start(t, d, nodeB, secret, nil)
	got := make(chan struct{}, 1)
	head.Handle("x", func(Message) { got <- struct{}{} })
	for range 2 {
		if err := head.Follow(soon(t), nodeB); err != nil {
			t.Fatal(err)
		}
		for late := soon(t); len(head.feeds.all()) > 0; runtime.Gosched() {
			if late.Err() != nil {
				t.Fatal("an idle feed stays open")
			}
		}
	}
	used.Store(true)
	if err := node.Send(soon(t), headA, Tokens, "x", nil); err != nil {
		t.Fatal(err)
	}
	<-got
}

// What is followed at all times is followed again after a break; lanes that its pings
// watch over end with it, and one loss is told.
func TestFollowAll(t *testing.T) {
	d := &directory{}
	lost := make(chan error, 16)
	head := start(t, d, headA, secret, func(c *Config) { c.Lost = func(_ trust.Identity, err error) { lost <- err } })
	node := start(t, d, nodeB, secret, nil)
	got := make(chan struct{}, 1)
	node.Handle("x", func(Message) { got <- struct{}{} })
	for range 2 {
		for late := soon(t); !head.feeds.follows(nodeB); runtime.Gosched() {
			head.FollowAll([]trust.Identity{nodeB})
			if late.Err() != nil {
				t.Fatal("it is not followed")
			}
		}
		if err := head.Send(soon(t), nodeB, Control, "x", nil); err != nil {
			t.Fatal(err)
		}
		<-got
		lane := openLane(head, nodeB, Control)
		for _, f := range head.feeds.all() {
			f.plain.shut()
		}
		<-lane.gone
		if err := <-lost; !errors.Is(err, ErrBroken) {
			t.Fatal(err)
		}
		select {
		case err := <-lost:
			t.Fatalf("a second loss: %v", err)
		default:
		}
	}
}
