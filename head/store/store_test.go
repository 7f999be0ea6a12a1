package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"manta/head/state"
)

func open(t *testing.T, dir string) *Disk {
	t.Helper()
	d, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// Bytes come back as they were put, after a restart too, and are named by content.
func TestPutGet(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir)
	for _, data := range [][]byte{{}, []byte("x"), bytes.Repeat([]byte("manta"), 100000)} {
		digest, err := d.PutBlob(t.Context(), data)
		if err != nil || digest != state.Digest(sha256.Sum256(data)) {
			t.Fatalf("%x, %v", digest, err)
		}
		if _, err := d.PutBlob(t.Context(), data); err != nil {
			t.Fatalf("again: %v", err)
		}
		got, err := open(t, dir).Blob(t.Context(), digest)
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%d bytes of %d, %v", len(got), len(data), err)
		}
	}
	all, err := d.List()
	if err != nil || len(all) != 3 {
		t.Fatalf("%d objects, %v", len(all), err)
	}
	if err := errors.Join(d.Delete(all[0]), d.Delete(all[0])); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Get(all[0]); !errors.Is(err, ErrNotFound) {
		t.Fatalf("deleted: %v", err)
	}
}

// A disk that changes bytes is noticed, a half-written object is never seen.
func TestCorruptionAndLeftovers(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir)
	digest, err := d.PutBlob(t.Context(), []byte("whole"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(d.path(digest), []byte("whale"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Blob(t.Context(), digest); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("error %v", err)
	}
	if again, err := d.PutBlob(t.Context(), []byte("whole")); err != nil || again != digest {
		t.Fatal("corrupt bytes are not replaced", err)
	}
	if _, err := d.Blob(t.Context(), digest); err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(dir, "new", "put-1")
	if err := os.WriteFile(left, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	open(t, dir)
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("leftover stays: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := d.Put(ctx, bytes.NewReader([]byte("x"))); !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v", err)
	}
	if entries, _ := os.ReadDir(filepath.Join(dir, "new")); len(entries) != 0 {
		t.Fatal("a failed put leaves a file")
	}
}
