package token

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// benchmarkText is prose, code and other scripts: the longest reference row
// where GOLDEN_DIR is set, else the rows of testdata.
func benchmarkText(b *testing.B) string {
	b.Helper()
	folder := os.Getenv("GOLDEN_DIR")
	if folder == "" {
		var all map[string][]row
		if err := json.Unmarshal(readGzip(b, filepath.Join("testdata", "rows.json.gz")), &all); err != nil {
			b.Fatal(err)
		}
		var text strings.Builder
		for _, r := range all["qwen3"] {
			text.WriteString(r.Text)
		}
		return text.String()
	}
	longest := ""
	lines := bufio.NewScanner(bytes.NewReader(readGzip(b, filepath.Join(folder, "tokenizers-wide", "qwen3.jsonl.gz"))))
	lines.Buffer(nil, 1<<26)
	for lines.Scan() {
		var r row
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			b.Fatal(err)
		}
		if len(r.Text) > len(longest) {
			longest = r.Text
		}
	}
	return longest
}

func BenchmarkEncode(b *testing.B) {
	text := benchmarkText(b)
	for _, name := range []string{"llama3_1", "qwen3", "gptoss", "llama2", "gemma3", "gpt2style"} {
		data := vocabularyFile(b, name)
		tok, err := New(Source{JSON: data})
		if err != nil {
			b.Fatal(err)
		}
		b.Run(name+"/warm", func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				if _, err := tok.Encode(text, true); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/cold", func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				clear(tok.model.cache.slots)
				if _, err := tok.Encode(text, true); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkLoad(b *testing.B) {
	for _, name := range []string{"llama3_1", "qwen3", "gptoss", "llama2", "gemma3"} {
		data := vocabularyFile(b, name)
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				if _, err := New(Source{JSON: data}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkDecoder(b *testing.B) {
	v, rows := smolLM2(b)
	tok, err := New(Source{GGUF: v})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		d := tok.NewDecoder(true, nil)
		for _, id := range rows[0].IDs {
			d.Push(id)
		}
		d.Flush()
	}
}
