//go:build unix

package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// lockPoll is how often a waiting Lock looks again: flock itself obeys no context.
const lockPoll = 100 * time.Millisecond

// Lock holds the file at path (made where missing, never removed) for this
// process until release is called, or the process ends. It is flock(2), as in
// Python's filelock, which huggingface_hub uses. waiting, which may be nil, is
// called once if another holds it.
func Lock(ctx context.Context, path string, waiting func()) (release func() error, err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	ticker := time.NewTicker(lockPoll)
	defer ticker.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return f.Close, nil
		case errors.Is(err, unix.EINTR):
			continue
		case !errors.Is(err, unix.EWOULDBLOCK):
			return nil, errors.Join(fmt.Errorf("lock %s: %w: use a folder on a file system with locks", path, err), f.Close())
		}
		if waiting != nil {
			waiting()
			waiting = nil
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("lock %s is held by another process: %w", path, ctx.Err()), f.Close())
		case <-ticker.C:
		}
	}
}

func free(folder string) (int64, bool) {
	var s unix.Statfs_t
	for unix.Statfs(folder, &s) != nil { // the folder may not be there yet
		parent := filepath.Dir(folder)
		if parent == folder {
			return 0, false
		}
		folder = parent
	}
	return int64(s.Bavail) * int64(s.Bsize), true
}
