package model

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"manta/kernels/ref"
	"manta/runtime/token"
	"manta/runtime/weights"
)

// What is made up has every tensor that a model of that configuration asks for,
// in whole rows that differ, the same numbers each time: ranks in different
// processes hold parts of one model.
func TestDummyIsWholeAndAlwaysTheSame(t *testing.T) {
	for _, golden := range goldenModels(t) {
		t.Run(filepath.Base(golden), func(t *testing.T) {
			config, err := os.ReadFile(filepath.Join(golden, "config.json"))
			if err != nil {
				t.Skip("a GGUF file has no config.json")
			}
			folder := t.TempDir()
			if err := os.WriteFile(filepath.Join(folder, "config.json"), config, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, _, err := Open(folder, "auto"); !errors.Is(err, weights.ErrNotFound) {
				t.Errorf("a folder without weights: %v", err)
			}
			w, made, err := Open(folder, "dummy")
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			again, second, err := Open(folder, "dummy")
			if err != nil {
				t.Fatal(err)
			}
			defer again.Close()
			if _, err := Describe(made); err != nil {
				t.Fatal(err)
			}
			for _, name := range made.Names() {
				a, _ := made.Tensor(name)
				b, _ := second.Tensor(name)
				if err := ref.CheckMatrix(a); err != nil {
					t.Error(err)
				}
				if !bytes.Equal(a.Data, b.Data) {
					t.Errorf("%s is made anew each time", name)
				}
				if n := 2 * a.Cols; a.Rows > 1 && bytes.Equal(a.Data[:n], a.Data[a.Stride:a.Stride+n]) {
					t.Errorf("%s: rows are equal", name)
				}
			}
			source, err := made.Tokenizer()
			if err != nil {
				t.Fatal(err)
			}
			numbers, err := token.New(source)
			if err != nil {
				t.Fatal(err)
			}
			if got := numbers.Decode([]int32{7, 0, 21}, true); got != " 7 0 21" {
				t.Errorf("tokens read %q", got)
			}
		})
	}
}
