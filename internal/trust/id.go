package trust

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// StableID gives a process's id: its stable name and eight digits that are drawn
// once and kept in dir. Who lost its disk is somebody else.
func StableID(dir, name string) (string, error) {
	path := filepath.Join(dir, "id")
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		random := make([]byte, 4)
		rand.Read(random)
		text = []byte(hex.EncodeToString(random))
		err = writeOnce(path, append(text, '\n'))
	}
	if err != nil {
		return "", fmt.Errorf("%w: read or write %s: %w", ErrIdentity, path, err)
	}
	id := name + "-" + strings.TrimSpace(string(text))
	return id, Identity{Head, id}.Check()
}

// writeOnce puts a private file in place, whole or not at all.
func writeOnce(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	file, err := os.CreateTemp(filepath.Dir(path), ".new-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	_, err = file.Write(data)
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	return os.Link(file.Name(), path) // fails when another was first
}
