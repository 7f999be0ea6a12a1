package weights

import (
	"context"
	"os"
)

// prefetchChunk is a whole number of huge pages: long enough to read at the
// disk's speed, short enough to obey a context.
const prefetchChunk = 32 << 20

// Prefetch reads the model's pages into memory before they are needed, so that
// the first request does not wait for the disk. progress may be nil; it is called
// from this goroutine.
func (m *Model) Prefetch(ctx context.Context, progress func(Progress)) error {
	for _, f := range m.files {
		total := int64(len(f.data))
		for at := 0; at < len(f.data); at += prefetchChunk {
			if err := ctx.Err(); err != nil {
				return err
			}
			end := min(at+prefetchChunk, len(f.data))
			if next := min(end+prefetchChunk, len(f.data)); end < next {
				readAhead(f.data[end:next])
			}
			populate(f.data[at:end])
			if progress != nil {
				progress(Progress{File: f.name, Done: int64(end), Total: total})
			}
		}
	}
	return ctx.Err()
}

// Release gives back the memory of pages that were read, once a device has its own
// copy. The mapping stays: what is read again comes from the system's cache.
func (m *Model) Release() {
	for _, f := range m.files {
		drop(f.data)
	}
}

// touch reads one byte of each page.
func touch(data []byte) {
	var sum byte
	for at := 0; at < len(data); at += os.Getpagesize() {
		sum += data[at]
	}
	touched(sum)
}

// touched keeps the loop above from being optimised away.
//
//go:noinline
func touched(byte) {}
