package gpu

import (
	"context"
	"errors"
	"testing"
)

// A machine without a driver, and a program without the tag, say so; one with a
// GPU lists it whole, and watching it ends with the context.
func TestOpenListsTheGPUsOrSaysThatThereAreNone(t *testing.T) {
	r, err := Open()
	if err != nil {
		if !errors.Is(err, ErrUnavailable) || r != nil {
			t.Fatalf("got %v, want ErrUnavailable", err)
		}
		return
	}
	defer r.Close()
	list, err := r.Read()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range list {
		if d.Lost == "" && (d.UUID == "" || d.Name == "" || d.Memory <= 0 || d.Free > d.Memory) {
			t.Errorf("device is not whole: %+v", d)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := r.Watch(ctx, func(f Fault) { t.Logf("fault: %+v", f) }); err != nil {
		t.Fatal(err)
	}
}

// A GPU that fell off the bus is drained; one whose program made an error is not.
func TestFatalXids(t *testing.T) {
	for xid, want := range map[uint64]bool{13: false, 31: false, 43: false, 48: true, 79: true, 95: true} {
		if Fatal(xid) != want {
			t.Errorf("Xid %d: fatal is %v, want %v", xid, !want, want)
		}
	}
}
