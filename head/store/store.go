// Package store keeps bytes on the heads' disks, named by their SHA-256:
// tokenizers, templates, uploads, results. What is put is whole or absent; what
// is read is verified. Raft state holds the digests.
//
// Disk is one head's own copy. Put returns once the bytes are durable; whoever
// composes several heads puts to a majority of them before a command names the
// digest.
package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"manta/head/state"
)

// Errors of this package.
var (
	ErrNotFound = errors.New("store: not here")
	ErrCorrupt  = errors.New("store: bytes do not have their digest")
	ErrTooLarge = errors.New("store: too large")
	ErrFull     = errors.New("store: no room on the heads' disks")
)

// Limits on one object.
const (
	MaxObject = 64 << 30
	MaxBlob   = 256 << 20 // what Blob reads into memory
)

// Disk is a directory of objects: objects/<first byte>/<digest>. It is safe for
// concurrent use, by one process.
type Disk struct{ dir string }

// Open uses a directory, and removes what an earlier process left unfinished.
func Open(dir string) (*Disk, error) {
	for _, d := range []string{filepath.Join(dir, "objects"), filepath.Join(dir, "new")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("store: %w", err)
		}
	}
	left, err := os.ReadDir(filepath.Join(dir, "new"))
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	for _, entry := range left {
		if err := os.Remove(filepath.Join(dir, "new", entry.Name())); err != nil {
			return nil, fmt.Errorf("store: %w", err)
		}
	}
	return &Disk{dir: dir}, nil
}

func (d *Disk) path(digest state.Digest) string {
	name := hex.EncodeToString(digest[:])
	return filepath.Join(d.dir, "objects", name[:2], name)
}

// Put stores what from gives, and returns when it is on disk.
func (d *Disk) Put(ctx context.Context, from io.Reader) (state.Digest, int64, error) {
	fail := func(err error) (state.Digest, int64, error) {
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			err = fmt.Errorf("%w: %w", ErrFull, err)
		}
		return state.Digest{}, 0, fmt.Errorf("store: put: %w", err)
	}
	file, err := os.CreateTemp(filepath.Join(d.dir, "new"), "put-*")
	if err != nil {
		return fail(err)
	}
	defer os.Remove(file.Name()) // does nothing once renamed
	sum := sha256.New()
	size, err := io.Copy(io.MultiWriter(file, sum), io.LimitReader(obeying{ctx, from}, MaxObject+1))
	if err == nil && size > MaxObject {
		err = ErrTooLarge
	}
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		return fail(err)
	}
	digest := state.Digest(sum.Sum(nil))
	to := d.path(digest)
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return fail(err)
	}
	if err := os.Rename(file.Name(), to); err != nil {
		return fail(err)
	}
	// The rename and a new directory are durable once their directories are.
	if err := errors.Join(syncDir(filepath.Dir(to)), syncDir(filepath.Join(d.dir, "objects"))); err != nil {
		return fail(err)
	}
	return digest, size, nil
}

// PutBlob is Put for bytes in memory; what is there already costs no write.
func (d *Disk) PutBlob(ctx context.Context, data []byte) (state.Digest, error) {
	digest := state.Digest(sha256.Sum256(data))
	if _, err := d.Blob(ctx, digest); err == nil && d.touch(digest) == nil {
		return digest, nil
	}
	digest, _, err := d.Put(ctx, bytes.NewReader(data))
	return digest, err
}

// Get opens an object. Its last Read fails with ErrCorrupt when the bytes are
// not those of the digest.
func (d *Disk) Get(digest state.Digest) (io.ReadCloser, error) {
	file, err := os.Open(d.path(digest))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %x", ErrNotFound, digest[:])
	}
	if err != nil {
		return nil, fmt.Errorf("store: get: %w", err)
	}
	return &verified{file: file, sum: sha256.New(), want: digest}, nil
}

// Blob reads a small object.
func (d *Disk) Blob(ctx context.Context, digest state.Digest) ([]byte, error) {
	from, err := d.Get(digest)
	if err != nil {
		return nil, err
	}
	defer from.Close()
	data, err := io.ReadAll(io.LimitReader(obeying{ctx, from}, MaxBlob+1))
	if err != nil {
		return nil, err
	}
	if len(data) > MaxBlob {
		return nil, fmt.Errorf("%w: %x has more than %d bytes", ErrTooLarge, digest[:], MaxBlob)
	}
	return data, nil
}

// Delete removes an object; one that is not there is no error.
func (d *Disk) Delete(digest state.Digest) error {
	if err := os.Remove(d.path(digest)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("store: delete: %w", err)
	}
	return nil
}

// List gives the digests of what is here.
func (d *Disk) List() ([]state.Digest, error) {
	var digests []state.Digest
	err := filepath.WalkDir(filepath.Join(d.dir, "objects"), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		raw, err := hex.DecodeString(strings.ToLower(entry.Name()))
		if err == nil && len(raw) == len(state.Digest{}) {
			digests = append(digests, state.Digest(raw))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("store: list: %w", err)
	}
	return digests, nil
}

// verified hashes what passes and compares at the end.
type verified struct {
	file *os.File
	sum  hash.Hash
	want state.Digest
}

func (v *verified) Read(p []byte) (int, error) {
	n, err := v.file.Read(p)
	v.sum.Write(p[:n])
	if errors.Is(err, io.EOF) && state.Digest(v.sum.Sum(nil)) != v.want {
		return n, fmt.Errorf("%w: %x; remove %s", ErrCorrupt, v.want[:], v.file.Name())
	}
	return n, err
}

func (v *verified) Close() error { return v.file.Close() }

// obeying is a reader that ends with its context.
type obeying struct {
	ctx  context.Context
	from io.Reader
}

func (o obeying) Read(p []byte) (int, error) {
	if err := o.ctx.Err(); err != nil {
		return 0, err
	}
	return o.from.Read(p)
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
