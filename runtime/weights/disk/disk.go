// Package disk does for weights what a download folder needs of a file system:
// locks between processes, files that are whole or absent, and one error for a
// disk that is full. It knows nothing of models.
package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// ErrFull: no room is left. errors.Is finds it in what this package and Explain give.
var ErrFull = errors.New("disk is full")

// errForbidden: the folder can't be written.
var errForbidden = errors.New("choose another folder with --download-dir")

// Explain turns the system's «no space left» (or quota) into ErrFull, naming the
// folder and the bytes wanted where they are known, and says what to do about a folder
// that can't be written; other errors pass.
func Explain(err error, folder string, wanted int64) error {
	var path *os.PathError
	switch {
	case err == nil, errors.Is(err, ErrFull), errors.Is(err, errForbidden):
		return err
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return full(folder, wanted)
	case errors.As(err, &path) && (errors.Is(err, os.ErrPermission) || errors.Is(err, syscall.EROFS)):
		return fmt.Errorf("%w: %w", err, errForbidden)
	}
	return err
}

// Room refuses early what can't fit: wanted bytes in folder. Where the system
// tells nothing it lets pass.
func Room(folder string, wanted int64) error {
	if free, ok := free(folder); ok && free < wanted {
		return full(folder, wanted)
	}
	return nil
}

func full(folder string, wanted int64) error {
	have := ""
	if n, ok := free(folder); ok {
		have = fmt.Sprintf(", %s is free", Size(n))
	}
	need := ""
	if wanted > 0 {
		need = fmt.Sprintf("%s more is needed in ", Size(wanted))
	}
	return fmt.Errorf("%w: %s%s%s: make room, or choose another folder with --download-dir", ErrFull, need, folder, have)
}

// Size prints bytes as people read them.
func Size(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	default:
		return fmt.Sprintf("%d bytes", n)
	}
}

// Replace writes a small file so that a reader, also after a crash, sees the old
// content or the new.
func Replace(path string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return Rename(f.Name(), path)
}

// Rename moves a file or folder within a file system and makes the move last.
func Rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return SyncFolder(filepath.Dir(to))
}

// SyncFolder makes the names in a folder last.
func SyncFolder(folder string) error {
	d, err := os.Open(folder)
	if err != nil {
		return err
	}
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) { // some file systems have none for folders
		return errors.Join(err, d.Close())
	}
	return d.Close()
}
