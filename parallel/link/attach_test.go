package link

import (
	"bytes"
	"context"
	"errors"
	"runtime"
	"testing"

	"manta/internal/trust"
)

// startDevice starts a device process's link at its node's server.
func startDevice(t *testing.T, d *directory, id trust.Identity, lost func(trust.Identity, error)) *Link {
	t.Helper()
	l, err := Start(Config{Authority: authority(t, id, secret), Resolve: d.resolve, Lost: lost})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

// A device process is reached at its node's server, and reaches its node, heads
// and other device processes; calls go both ways.
func TestDeviceProcessHasAnInboxAtItsNode(t *testing.T) {
	d := &directory{}
	head := start(t, d, headA, secret, nil)
	nodeHere, nodeThere := start(t, d, nodeB, secret, nil), start(t, d, nodeC, secret, nil)
	here := startDevice(t, d, trust.DeviceOf(nodeB.ID, "m/0"), nil)
	there := startDevice(t, d, trust.DeviceOf(nodeC.ID, "m/0"), nil)
	everyone := []*Link{head, nodeHere, nodeThere, here, there}
	got := make(chan trust.Identity, len(everyone))
	for _, l := range everyone {
		l.Handle("x", func(m Message) { got <- m.From })
	}
	for _, from := range everyone {
		for _, to := range everyone {
			if from == to || from.self.Role != trust.Device && to.self.Role != trust.Device {
				continue
			}
			for which := range lanes {
				if err := from.Send(soon(t), to.self, which, "x", make([]byte, recordBytes+1)); err != nil {
					t.Fatalf("%v to %v: %v", from.self, to.self, err)
				}
				select {
				case sender := <-got:
					if sender != from.self {
						t.Fatalf("from %v, want %v", sender, from.self)
					}
				case <-soon(t).Done():
					t.Fatalf("%v to %v: nothing came", from.self, to.self)
				}
			}
		}
	}
}

// Peers of a device process that ended learn it at once, and begin anew with the
// next one: what they send to that arrives, and counts as no loss.
func TestNextDeviceProcessBeginsAnew(t *testing.T) {
	d := &directory{}
	lost := make(chan trust.Identity, 16)
	head := start(t, d, headA, secret, func(c *Config) { c.Lost = func(peer trust.Identity, _ error) { lost <- peer } })
	node := start(t, d, nodeB, secret, nil)
	id := trust.DeviceOf(nodeB.ID, "m/0")
	received := make(chan Message, 1)
	head.Handle("y", func(m Message) { m.Data = bytes.Clone(m.Data); received <- m })
	for round := range 3 {
		device := startDevice(t, d, id, nil)
		got := make(chan Message, 1)
		device.Handle("x", func(m Message) { m.Data = bytes.Clone(m.Data); got <- m })
		if err := head.Send(soon(t), id, Control, "x", []byte("hello")); err != nil {
			t.Fatal(err)
		}
		select {
		case <-got:
		case <-soon(t).Done():
			t.Fatalf("round %d: nothing came", round)
		}
		if err := device.Send(soon(t), headA, Control, "y", nil); err != nil {
			t.Fatal(err)
		}
		<-received
		// As if it were killed: its lanes do not say goodbye.
		device.out.Lock()
		var open []*lane
		for _, lane := range device.out.lanes {
			open = append(open, lane)
		}
		device.out.Unlock()
		for _, lane := range open {
			lane.close(ErrBroken)
		}
		device.Close()
		if err := node.Disconnect(id); err != nil {
			t.Fatal(err)
		}
		select {
		case peer := <-lost:
			if peer != id {
				t.Fatalf("lost %v", peer)
			}
		case <-soon(t).Done():
			t.Fatalf("round %d: the head did not learn it", round)
		}
	}
	if len(lost) > 0 {
		t.Fatalf("%d more losses", len(lost))
	}
}

// A question to a device process that does not hear yet is answered by an error once
// its node breaks what leads there, and then the process hears the next.
func TestCallBeforeAProcessHears(t *testing.T) {
	d := &directory{}
	head := start(t, d, headA, secret, nil)
	node := start(t, d, nodeB, secret, nil)
	id := trust.DeviceOf(nodeB.ID, "m/0")
	early := make(chan error, 1)
	go func() {
		_, err := head.Call(soon(t), id, "x", nil)
		early <- err
	}()
	answered := func() (done bool) {
		if err := node.Disconnect(id); err != nil {
			t.Error(err)
			return true
		}
		select {
		case err := <-early:
			if !errors.Is(err, ErrBroken) {
				t.Errorf("answered with %v", err)
			}
			return true
		default:
			runtime.Gosched()
			return false
		}
	}
	for !answered() { // the call may not have dialled yet
	}
	device := startDevice(t, d, id, nil)
	device.HandleCall("x", 1, func(context.Context, Message) ([]byte, error) { return []byte("here"), nil })
	if got, err := head.Call(soon(t), id, "x", nil); err != nil || string(got) != "here" {
		t.Errorf("%s, %v", got, err)
	}
}

// A device process that its node's server has lost can't be reached, and is told so.
func TestDeviceProcessLearnsThatItsNodeIsGone(t *testing.T) {
	d := &directory{}
	node := start(t, d, nodeB, secret, nil)
	lost := make(chan trust.Identity, 16)
	id := trust.DeviceOf(nodeB.ID, "m/0")
	startDevice(t, d, id, func(peer trust.Identity, _ error) { lost <- peer })
	node.Close()
	select {
	case peer := <-lost:
		if peer != id {
			t.Fatalf("lost %v, want itself", peer)
		}
	case <-soon(t).Done():
		t.Fatal("it was not told")
	}
}

// Only the device processes of a node may use its server as theirs.
func TestForeignDeviceProcessGetsNoInbox(t *testing.T) {
	d := &directory{}
	node := start(t, d, nodeB, secret, nil)
	d.set(nodeC, node.Address()) // the certificate says otherwise
	if l, err := Start(Config{Authority: authority(t, trust.DeviceOf(nodeC.ID, "m/0"), secret), Resolve: d.resolve}); err == nil {
		l.Close()
		t.Fatal("a device process attached to another node's server")
	}
}
