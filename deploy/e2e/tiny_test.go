//go:build e2e && unix

package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"manta/runtime/weights/weightstest"
)

// tiny makes a model of random weights with a tokenizer of single bytes: it
// loads at once, and what it says does not matter.
func tiny(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := weightstest.CopyWithBytes("../../runtime/model/testdata/models/llama", dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

func readConfig(t *testing.T, dir string) object {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	var config object
	if err := json.Unmarshal(data, &config); err != nil {
		t.Fatal(err)
	}
	return config
}

// tinyBut is a tiny model with another value in its config.json.
func tinyBut(t *testing.T, field string, value any) string {
	t.Helper()
	dir := tiny(t)
	config := readConfig(t, dir)
	config[field] = value
	data, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "config.json"), data)
	return dir
}

func write(t *testing.T, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(name, data, 0o644); err != nil {
		t.Fatal(err)
	}
}
