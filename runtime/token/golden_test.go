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

// goldenRows gives the reference rows of each vocabulary: with GOLDEN_DIR all
// of that folder's, else the part kept in testdata.
func goldenRows(t *testing.T) map[string][]row {
	t.Helper()
	all := map[string][]row{}
	folder := os.Getenv("GOLDEN_DIR")
	if folder == "" {
		if err := json.Unmarshal(readGzip(t, filepath.Join("testdata", "rows.json.gz")), &all); err != nil {
			t.Fatal(err)
		}
		return all
	}
	narrow, err := filepath.Glob(filepath.Join(folder, "tokenizers", "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range narrow {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var file struct {
			Rows []struct {
				Text        string  `json:"text"`
				IDs         []int32 `json:"ids_no_special"`
				IDsSpecial  []int32 `json:"ids"`
				Decoded     *string `json:"decoded"`
				DecodedSkip *string `json:"decoded_skip"`
			} `json:"rows"`
		}
		if err := json.Unmarshal(data, &file); err != nil {
			t.Fatal(path, err)
		}
		name := strings.TrimSuffix(filepath.Base(path), ".json")
		for _, r := range file.Rows {
			all[name] = append(all[name], row(r))
		}
	}
	wide, err := filepath.Glob(filepath.Join(folder, "tokenizers-wide", "*.jsonl.gz"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range wide {
		name := strings.TrimSuffix(filepath.Base(path), ".jsonl.gz")
		lines := bufio.NewScanner(bytes.NewReader(readGzip(t, path)))
		lines.Buffer(nil, 1<<26)
		for lines.Scan() {
			var r row
			if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
				t.Fatal(path, err)
			}
			all[name] = append(all[name], r)
		}
		if err := lines.Err(); err != nil {
			t.Fatal(path, err)
		}
	}
	if len(all) == 0 {
		t.Fatalf("GOLDEN_DIR=%s has no tokenizers and no tokenizers-wide", folder)
	}
	return all
}

// Published vocabularies give the reference's ids and texts, row by row.
func TestGolden(t *testing.T) {
	for name, rows := range goldenRows(t) {
		t.Run(name, func(t *testing.T) {
			tok, err := New(Source{JSON: vocabularyFile(t, name)})
			if err != nil {
				t.Fatal(err)
			}
			passed := 0
			for _, r := range rows {
				if checkRow(t, tok, r) {
					passed++
				}
			}
			t.Logf("%d passed, %d failed", passed, len(rows)-passed)
		})
	}
}
