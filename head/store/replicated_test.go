package store

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"manta/head/state"
)

// heads are other heads' disks, some of which are down.
type heads struct {
	disks map[string]*Disk
	mu    sync.Mutex
	down  map[string]bool
}

func (h *heads) isDown(head string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.down[head]
}

var errDown = errors.New("head is down")

func (h *heads) Voters() (string, []string, error) { return "a", []string{"a", "b", "c"}, nil }

func (h *heads) Put(ctx context.Context, head string, data []byte) error {
	if h.isDown(head) {
		return errDown
	}
	_, err := h.disks[head].PutBlob(ctx, data)
	return err
}

func (h *heads) Get(ctx context.Context, head string, digest state.Digest) ([]byte, error) {
	if h.isDown(head) {
		return nil, errDown
	}
	return h.disks[head].Blob(ctx, digest)
}

// A blob counts as put when a majority has it, and is read as long as one head
// that has it lives. This head's disk may be one that takes nothing.
func TestMajority(t *testing.T) {
	for name, c := range map[string]struct {
		down   map[string]bool
		broken bool // this head's disk
		want   error
	}{
		"all up":                    {nil, false, nil},
		"one down":                  {map[string]bool{"b": true}, false, nil},
		"two down":                  {map[string]bool{"b": true, "c": true}, false, ErrNoMajority},
		"other down":                {map[string]bool{"c": true}, false, nil},
		"own disk broken":           {nil, true, nil},
		"own disk broken, one down": {map[string]bool{"b": true}, true, ErrNoMajority},
	} {
		t.Run(name, func(t *testing.T) {
			h := &heads{disks: map[string]*Disk{"b": open(t, t.TempDir()), "c": open(t, t.TempDir())}, down: c.down}
			dir := t.TempDir()
			own := open(t, dir)
			if c.broken {
				if err := os.Remove(filepath.Join(dir, "new")); err != nil {
					t.Fatal(err)
				}
			}
			r := NewReplicated(own, h)
			digest, err := r.PutBlob(t.Context(), []byte("bytes"))
			if !errors.Is(err, c.want) || c.want == nil && err != nil {
				t.Fatalf("error %v, want %v", err, c.want)
			}
			if c.want != nil {
				return
			}
			if err := own.Delete(digest); err != nil {
				t.Fatal(err)
			}
			if got, err := r.Blob(t.Context(), digest); err != nil || !bytes.Equal(got, []byte("bytes")) {
				t.Fatalf("%q, %v", got, err)
			}
			if _, err := own.Blob(t.Context(), digest); err != nil && !c.broken {
				t.Fatalf("what was read from another head is not kept: %v", err)
			}
		})
	}
}

// named is a state that refers to some bytes.
type named struct {
	digests []state.Digest
	changed chan struct{}
}

func (n *named) Referenced(use func(state.Digest)) {
	for _, d := range n.digests {
		use(d)
	}
}

func (n *named) Changed() <-chan struct{} { return n.changed }

// A head that lost its disk gets again all that the state names, as soon as another
// head that has it is up; bytes that have rotted are got anew.
func TestRepair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &heads{
			disks: map[string]*Disk{"b": open(t, t.TempDir()), "c": open(t, t.TempDir())}, down: map[string]bool{"b": true, "c": true},
		}
		own := open(t, t.TempDir())
		var state named
		for i := range 20 {
			data := bytes.Repeat([]byte{byte(i)}, 1000)
			digest, err := h.disks[[]string{"b", "c"}[i%2]].PutBlob(t.Context(), data)
			if err != nil {
				t.Fatal(err)
			}
			state.digests = append(state.digests, digest)
		}
		rotten, err := own.PutBlob(t.Context(), bytes.Repeat([]byte{0}, 1000))
		if err != nil || os.WriteFile(own.path(rotten), []byte("rot"), 0o600) != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- NewReplicated(own, h).Keep(ctx, &state, slog.New(slog.DiscardHandler)) }()
		<-time.After(time.Minute)
		if all, _ := own.List(); len(all) != 1 {
			t.Errorf("%d objects while no other head is up", len(all))
		}
		h.mu.Lock()
		h.down["b"], h.down["c"] = false, false
		h.mu.Unlock()
		<-time.After(time.Minute)
		for i, d := range state.digests {
			if data, err := own.Blob(t.Context(), d); err != nil || !bytes.Equal(data, bytes.Repeat([]byte{byte(i)}, 1000)) {
				t.Errorf("object %d: %v", i, err)
			}
		}
		stop()
		<-done
	})
}

// What nothing refers to goes, but not before a command that names it may have come.
func TestSweep(t *testing.T) {
	own := open(t, t.TempDir())
	r := NewReplicated(own, &heads{})
	var digests []state.Digest
	for _, text := range []string{"needed", "garbage", "put again", "new"} {
		d, err := own.PutBlob(t.Context(), []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, d)
		if old := time.Now().Add(-2 * Grace); text != "new" {
			if err := os.Chtimes(own.path(d), old, old); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := own.PutBlob(t.Context(), []byte("put again")); err != nil {
		t.Fatal(err)
	}
	if err := r.sweep(&named{digests: digests[:1]}, map[state.Digest]bool{}, time.Now().Add(-Grace)); err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{true, false, true, true} {
		if _, err := own.Blob(t.Context(), digests[i]); (err == nil) != want {
			t.Errorf("object %d: %v, want it kept: %v", i, err, want)
		}
	}
}
