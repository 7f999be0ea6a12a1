package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A full disk is one error, whoever noticed it; where a folder can't be written the user
// hears what to do; other errors stay what they are.
func TestExplain(t *testing.T) {
	dir := t.TempDir()
	err := Explain(fmt.Errorf("write: %w", &os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}), dir, 3<<30)
	if !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), "3.0 GiB more is needed in "+dir) || !strings.Contains(err.Error(), "--download-dir") {
		t.Errorf("got %v", err)
	}
	if again := Explain(err, "other", 1); again != err {
		t.Errorf("explained twice: %v", again)
	}
	if err := Explain(os.ErrPermission, dir, 1); err != os.ErrPermission {
		t.Errorf("got %v", err)
	}
	for _, cause := range []error{syscall.EACCES, syscall.EROFS} {
		err := Explain(&os.PathError{Op: "mkdir", Path: "x", Err: cause}, dir, 0)
		if !errors.Is(err, cause) || !strings.Contains(err.Error(), "--download-dir") || Explain(err, dir, 0) != err {
			t.Errorf("got %v", err)
		}
	}
	if err := Room(filepath.Join(dir, "not/there/yet"), 1<<60); !errors.Is(err, ErrFull) {
		t.Errorf("an exbibyte fits: %v", err)
	}
	if err := Room(dir, 1); err != nil {
		t.Error(err)
	}
}

// One holder at a time; who waits is told once, obeys its context, and gets the
// lock when it is released.
func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b.lock")
	release, err := Lock(t.Context(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	told := 0
	if _, err := Lock(ctx, path, func() { told++; cancel() }); !errors.Is(err, context.Canceled) || told != 1 {
		t.Errorf("got %v, told %d times", err, told)
	}
	waiting, got := make(chan struct{}), make(chan error)
	go func() {
		release, err := Lock(t.Context(), path, func() { close(waiting) })
		if err == nil {
			err = release()
		}
		got <- err
	}()
	<-waiting
	if err := release(); err != nil {
		t.Error(err)
	}
	select {
	case err := <-got:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Error("the lock was never given")
	}
}

// Replace leaves the new content and nothing else.
func TestReplace(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for _, content := range []string{"one", "two"} {
		if err := Replace(path, []byte(content)); err != nil {
			t.Fatal(err)
		}
		if data, err := os.ReadFile(path); err != nil || string(data) != content {
			t.Errorf("%q, %v", data, err)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
	if err := Replace(filepath.Join(dir, "none", "f"), nil); err == nil {
		t.Error("written into a folder that is not there")
	}
}
