package store

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"manta/head/state"
)

// heads are other heads' disks, some of which are down.
type heads struct {
	disks map[string]*Disk
	down  map[string]bool
}

var errDown = errors.New("head is down")

func (h heads) Voters() (string, []string, error) { return "a", []string{"a", "b", "c"}, nil }

func (h heads) Put(ctx context.Context, head string, data []byte) error {
	if h.down[head] {
		return errDown
	}
	_, err := h.disks[head].PutBlob(ctx, data)
	return err
}

func (h heads) Get(ctx context.Context, head string, digest state.Digest) ([]byte, error) {
	if h.down[head] {
		return nil, errDown
	}
	return h.disks[head].Blob(ctx, digest)
}

// A blob counts as put when a majority has it, and is read as long as one head
// that has it lives.
func TestMajority(t *testing.T) {
	for name, c := range map[string]struct {
		down map[string]bool
		want error
	}{
		"all up":     {nil, nil},
		"one down":   {map[string]bool{"b": true}, nil},
		"two down":   {map[string]bool{"b": true, "c": true}, ErrNoMajority},
		"other down": {map[string]bool{"c": true}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			h := heads{map[string]*Disk{"b": open(t, t.TempDir()), "c": open(t, t.TempDir())}, c.down}
			own := open(t, t.TempDir())
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
			if _, err := own.Blob(t.Context(), digest); err != nil {
				t.Fatalf("what was read from another head is not kept: %v", err)
			}
		})
	}
}
