package jobs

import (
	"bytes"
	"context"
	"errors"
	"io"

	"manta/head/state"
)

// Store keeps bytes on a majority of the heads; Put returns when they are there.
type Store interface {
	PutBlob(ctx context.Context, data []byte) (state.Digest, error)
	Blob(ctx context.Context, digest state.Digest) ([]byte, error)
}

const (
	// PartBytes is the size that files are cut into.
	PartBytes = 4 << 20
	// manyParts is how many small parts there may be before they become one.
	manyParts  = 32
	smallBytes = 1 << 20
)

// appendPart puts data after parts. Small parts that have become many are put
// together, so that a long job's list stays short.
func appendPart(ctx context.Context, store Store, parts []state.Part, data []byte) ([]state.Part, error) {
	if len(data) == 0 {
		return parts, nil
	}
	next := append([]state.Part(nil), parts...)
	first := len(next)
	for first > 0 && next[first-1].Size < smallBytes {
		first--
	}
	if len(next)-first >= manyParts {
		whole, err := io.ReadAll(Open(ctx, store, next[first:]))
		if err != nil {
			return nil, err
		}
		next, data = next[:first], append(whole, data...)
	}
	for len(data) > 0 {
		n := min(len(data), PartBytes)
		part, err := putPart(ctx, store, data[:n])
		if err != nil {
			return nil, err
		}
		next, data = append(next, part), data[n:]
	}
	return next, nil
}

func putPart(ctx context.Context, store Store, data []byte) (state.Part, error) {
	digest, err := store.PutBlob(ctx, data)
	return state.Part{Digest: digest, Size: int64(len(data))}, err
}

// PutFile cuts what from gives into parts and stores them, at most so many bytes.
func PutFile(ctx context.Context, store Store, from io.Reader, most int64) ([]state.Part, error) {
	var parts []state.Part
	buffer := make([]byte, PartBytes)
	for size := int64(0); ; {
		n, err := io.ReadFull(from, buffer)
		if size += int64(n); size > most {
			return nil, ErrTooLarge
		}
		if n > 0 {
			part, err := putPart(ctx, store, buffer[:n])
			if err != nil {
				return nil, err
			}
			parts = append(parts, part)
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return parts, nil
		case err != nil:
			return nil, err
		}
	}
}

// ErrTooLarge says that a file is larger than it may be.
var ErrTooLarge = errors.New("the file is too large")

// Open reads parts one after the other; it holds one of them in memory.
func Open(ctx context.Context, store Store, parts []state.Part) io.Reader {
	return &reader{ctx: ctx, store: store, left: parts}
}

type reader struct {
	ctx   context.Context
	store Store
	left  []state.Part
	now   bytes.Reader
}

func (r *reader) Read(p []byte) (int, error) {
	for r.now.Len() == 0 {
		if len(r.left) == 0 {
			return 0, io.EOF
		}
		data, err := r.store.Blob(r.ctx, r.left[0].Digest)
		if err != nil {
			return 0, err
		}
		r.left = r.left[1:]
		r.now.Reset(data)
	}
	return r.now.Read(p)
}
