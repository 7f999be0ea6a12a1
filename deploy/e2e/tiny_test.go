//go:build e2e && unix

package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

// tiny makes a model of random weights with a tokenizer of single bytes: it
// loads at once, and what it says does not matter.
func tiny(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"config.json", "generation_config.json", "model.safetensors"} {
		data, err := os.ReadFile(filepath.Join("../../runtime/model/testdata/models/llama", name))
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, name), data)
	}
	config := readConfig(t, dir)
	vocabulary := map[string]int{}
	next := rune(256)
	for b := range 256 { // GPT-2's alphabet of bytes: Radford et al. 2019, §2.2
		r := rune(b)
		if b < '!' || b > '~' && b < 0xa1 || b == 0xad {
			r, next = next, next+1
		}
		vocabulary[string(r)] = b
	}
	for id := 256; id < int(config["vocab_size"].(float64)); id++ {
		vocabulary["<"+strconv.Itoa(id)+">"] = id
	}
	tokenizer, err := json.Marshal(object{
		"version": "1.0", "added_tokens": []any{}, "normalizer": nil, "post_processor": nil,
		"pre_tokenizer": object{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
		"decoder":       object{"type": "ByteLevel"},
		"model":         object{"type": "BPE", "vocab": vocabulary, "merges": []string{}},
	})
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "tokenizer.json"), tokenizer)
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
