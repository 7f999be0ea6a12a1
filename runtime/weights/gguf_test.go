package weights

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"manta/kernels"
	"manta/runtime/weights/weightstest"
)

func sample(t testing.TB) []byte {
	t.Helper()
	data, err := weightstest.GGUF([]weightstest.Pair{
		{Key: "u", Value: uint32(7)}, {Key: "i", Value: int32(-7)}, {Key: "big", Value: uint64(1 << 63)}, {Key: "f", Value: float32(0.5)},
		{Key: "b", Value: true}, {Key: "s", Value: "text"}, {Key: "ss", Value: []string{"a", "", "c"}}, {Key: "is", Value: []int32{1, -1}},
		{Key: "fs", Value: []float32{1.5}}, {Key: "bs", Value: []bool{true, false}},
	}, []weightstest.Tensor{weightstest.Ramp("a", kernels.F32, 1, 2, 4), weightstest.Ramp("b", kernels.Q8_0, 2, 2, 32)})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// Each value comes back as what it was written, and as nothing else.
func TestMetadata(t *testing.T) {
	g, err := parseGGUF(sample(t))
	if err != nil {
		t.Fatal(err)
	}
	m := g.meta
	if v, ok := m.Uint("u"); !ok || v != 7 {
		t.Error("u as Uint", v, ok)
	}
	if _, ok := m.Uint("i"); ok {
		t.Error("-7 was given as Uint")
	}
	if v, ok := m.Float("f"); !ok || v != 0.5 {
		t.Error("f", v, ok)
	}
	if v, ok := m.Bool("b"); !ok || !v {
		t.Error("b", v, ok)
	}
	if v, ok := m.String("s"); !ok || v != "text" {
		t.Error("s", v, ok)
	}
	if v, ok := m.Strings("ss"); !ok || !slices.Equal(v, []string{"a", "", "c"}) {
		t.Error("ss", v, ok)
	}
	if v, ok := m.Ints("is"); !ok || !slices.Equal(v, []int64{1, -1}) {
		t.Error("is", v, ok)
	}
	if v, ok := m.Floats("fs"); !ok || !slices.Equal(v, []float64{1.5}) {
		t.Error("fs", v, ok)
	}
	if v, ok := m.Bools("bs"); !ok || !slices.Equal(v, []bool{true, false}) {
		t.Error("bs", v, ok)
	}
	if _, ok := m.String("none"); ok {
		t.Error("a key that is not there was given")
	}
}

// A file that ends anywhere early is refused, never read past its end.
func TestGGUFCutShort(t *testing.T) {
	data := sample(t)
	end := len(data) - (32 - 2*34%32) // the padding after the last tensor may go
	for n := range end {
		if _, err := parseGGUF(slices.Clone(data[:n])); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("%d of %d bytes: %v", n, len(data), err)
		}
	}
}

// header builds a GGUF file by hand, field by field.
func header(fields ...any) []byte {
	b := []byte("GGUF")
	for _, f := range fields {
		switch v := f.(type) {
		case uint32:
			b = binary.LittleEndian.AppendUint32(b, v)
		case uint64:
			b = binary.LittleEndian.AppendUint64(b, v)
		case string:
			b = append(binary.LittleEndian.AppendUint64(b, uint64(len(v))), v...)
		}
	}
	return append(b, make([]byte, 256)...)
}

// Every number of a header is checked before it is used; the error names the place.
func TestGGUFRefuses(t *testing.T) {
	const v3, none = uint32(3), uint64(0)
	tensor := func(dims []uint64, kind uint32, offset uint64) []byte {
		fields := []any{v3, uint64(1), none, "w", uint32(len(dims))}
		for _, d := range dims {
			fields = append(fields, d)
		}
		return header(append(fields, kind, offset)...)
	}
	for _, c := range []struct {
		name string
		data []byte
		is   error
		says string
	}{
		{"empty", nil, ErrCorrupt, "magic"},
		{"other magic", []byte("GGML0000"), ErrCorrupt, "magic"},
		{"version 1", header(uint32(1), none, none), ErrUnsupported, "version 1"},
		{"big-endian", header(uint32(3<<24), none, none), ErrUnsupported, "big-endian"},
		{"tensor count", header(v3, uint64(1<<62), none), ErrCorrupt, "tensor count is 4611686018427387904"},
		{"pair count", header(v3, none, uint64(1<<62)), ErrCorrupt, "metadata count"},
		{"string length", header(v3, none, uint64(1), uint64(1<<63)), ErrCorrupt, "metadata key needs"},
		{"value type", header(v3, none, uint64(1), "k", uint32(13)), ErrCorrupt, "value type 13"},
		{"item count", header(v3, none, uint64(1), "k", uint32(9), uint32(4), uint64(1<<62)), ErrCorrupt, `metadata "k" item count`},
		{"item type", header(v3, none, uint64(1), "k", uint32(9), uint32(99), uint64(1)), ErrCorrupt, "item type 99"},
		{"deep arrays", header(v3, none, uint64(1), "k", uint32(9), uint32(9), uint64(1), uint32(9), uint64(1), uint32(9), uint64(1),
			uint32(9), uint64(1), uint32(9), uint64(1)), ErrCorrupt, "nested"},
		{"key twice", header(v3, none, uint64(2), "k", uint32(4), uint32(1), "k", uint32(4), uint32(1)), ErrCorrupt, `"k" appears twice`},
		{"alignment 0", header(v3, none, uint64(1), "general.alignment", uint32(4), uint32(0)), ErrCorrupt, "general.alignment is 0"},
		{"alignment 3", header(v3, none, uint64(1), "general.alignment", uint32(4), uint32(3)), ErrCorrupt, "general.alignment is 3"},
		{"alignment text", header(v3, none, uint64(1), "general.alignment", uint32(8), "x"), ErrCorrupt, "general.alignment is x"},
		{"no dimension", tensor(nil, 0, 0), ErrCorrupt, `tensor "w": 0 dimensions`},
		{"five dimensions", tensor([]uint64{1, 1, 1, 1, 1}, 0, 0), ErrCorrupt, "5 dimensions"},
		{"dimension 0", tensor([]uint64{0}, 0, 0), ErrCorrupt, "dimension of 0"},
		{"dimension 2^63", tensor([]uint64{1 << 63}, 0, 0), ErrCorrupt, "dimension 0 is"},
		{"product overflows", tensor([]uint64{1 << 32, 1 << 32, 4}, 0, 0), ErrCorrupt, "overflows"},
		{"too large", tensor([]uint64{1 << 20}, 0, 0), ErrCorrupt, "the file has"},
		{"part of a block", tensor([]uint64{33}, 8, 0), ErrCorrupt, "Q8_0 blocks"},
		{"offset past the end", tensor([]uint64{4}, 0, 1<<40), ErrCorrupt, "pass the end"},
		{"offset near 2^64", tensor([]uint64{4}, 0, 1<<64-32), ErrCorrupt, "pass the end"},
		{"offset unaligned", tensor([]uint64{4}, 0, 4), ErrCorrupt, "no multiple of 32"},
		{"type without kernel", tensor([]uint64{256}, 10, 0), ErrUnsupported, `tensor "w": type Q2_K`},
		{"unknown type", tensor([]uint64{4}, 77, 0), ErrUnsupported, "type 77"},
		{"overlap", header(v3, uint64(2), none, "a", uint32(1), uint64(16), uint32(0), uint64(0), "b", uint32(1), uint64(4), uint32(0), uint64(32)),
			ErrCorrupt, `"a" and "b" overlap`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := parseGGUF(c.data)
			if !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %v saying %q", err, c.is, c.says)
			}
		})
	}
}

// vocabularyFile writes a GGUF file with a tokenizer and opens it.
func vocabularyFile(t *testing.T, pairs ...weightstest.Pair) (*Model, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "m.gguf")
	if err := weightstest.WriteGGUF(path, pairs, nil); err != nil {
		t.Fatal(err)
	}
	m, err := Open(path)
	if err == nil {
		t.Cleanup(func() {
			if err := m.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	return m, err
}

// What a GGUF file does not say about its tokenizer is as llama.cpp has it.
func TestGGUFTokenizer(t *testing.T) {
	tokens := weightstest.Pair{Key: "tokenizer.ggml.tokens", Value: []string{"<unk>", "<s>", "</s>", "<|eot_id|>", "<|im_end|>"}}
	types := weightstest.Pair{Key: "tokenizer.ggml.token_type", Value: []int32{2, 3, 3, 3, 1}}
	model := func(name string) weightstest.Pair {
		return weightstest.Pair{Key: "tokenizer.ggml.model", Value: name}
	}
	t.Run("llama", func(t *testing.T) {
		m, err := vocabularyFile(t, model("llama"), tokens, types, weightstest.Pair{Key: "tokenizer.ggml.scores", Value: []float32{0, 0, 0, -1, -2}})
		if err != nil {
			t.Fatal(err)
		}
		s, err := m.Tokenizer()
		if err != nil {
			t.Fatal(err)
		}
		v := s.GGUF
		if v.BOS != 1 || v.EOS != 2 || v.UNK != 0 || v.PAD != -1 || !v.AddBOS || v.AddEOS || !v.AddSpacePrefix || v.Scores[4] != -2 || len(v.Types) != 5 {
			t.Errorf("vocabulary %+v", v)
		}
		// <|im_end|> is a normal token here, so it ends nothing.
		if ends := m.EndTokens(); !slices.Equal(ends, []int32{2, 3}) {
			t.Errorf("end tokens %v", ends)
		}
	})
	t.Run("gpt2", func(t *testing.T) {
		m, err := vocabularyFile(t, model("gpt2"), tokens, weightstest.Pair{Key: "tokenizer.ggml.pre", Value: "llama-bpe"},
			weightstest.Pair{Key: "tokenizer.ggml.merges", Value: []string{"a b"}},
			weightstest.Pair{Key: "tokenizer.ggml.eos_token_id", Value: uint32(4)}, weightstest.Pair{Key: "tokenizer.ggml.padding_token_id", Value: uint32(1<<32 - 1)},
			weightstest.Pair{Key: "tokenizer.chat_template", Value: "{{ messages }}"}, weightstest.Pair{Key: "tokenizer.chat_template.tool_use", Value: "tools"})
		if err != nil {
			t.Fatal(err)
		}
		s, err := m.Tokenizer()
		if err != nil {
			t.Fatal(err)
		}
		if v := s.GGUF; v.BOS != -1 || v.EOS != 4 || v.PAD != -1 || !v.AddBOS || v.AddSpacePrefix || v.Pre != "llama-bpe" || len(v.Merges) != 1 {
			t.Errorf("vocabulary %+v", v)
		}
		if template, ok := m.ChatTemplate(); !ok || template != "{{ messages }}" || m.ChatTemplates()["tool_use"] != "tools" {
			t.Errorf("templates %v", m.ChatTemplates())
		}
	})
	t.Run("none", func(t *testing.T) {
		m, err := vocabularyFile(t)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.Tokenizer(); !errors.Is(err, ErrNotFound) || len(m.EndTokens()) != 0 {
			t.Errorf("got %v, %v", err, m.EndTokens())
		}
	})
	for name, pair := range map[string]weightstest.Pair{
		"id past the vocabulary": {Key: "tokenizer.ggml.eos_token_id", Value: uint32(5)},
		"too few types":          {Key: "tokenizer.ggml.token_type", Value: []int32{1}},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := vocabularyFile(t, model("gpt2"), tokens, pair); !errors.Is(err, ErrCorrupt) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// Any bytes are a file or an error; what is accepted lies within the bytes.
func FuzzGGUF(f *testing.F) {
	f.Add(sample(f))
	f.Add(header(uint32(3), uint64(1), uint64(0), "w", uint32(1), uint64(4), uint32(0), uint64(0)))
	f.Add(header(uint32(2), uint64(0), uint64(1), "k", uint32(9), uint32(8), uint64(2), "a", "b"))
	f.Fuzz(func(t *testing.T, data []byte) {
		g, err := parseGGUF(data)
		if err == nil {
			checkWithin(t, g.tensors, len(data))
		}
	})
}

// checkWithin fails where a tensor could reach outside of its file.
func checkWithin(t *testing.T, tensors []namedTensor, length int) {
	t.Helper()
	for _, n := range tensors {
		rows, cols := n.matrix()
		if n.offset < 0 || n.size <= 0 || n.offset+n.size > length || rows*n.kind.Bytes(cols) != n.size {
			t.Errorf("tensor %q: %d bytes at %d of %d, %d×%d %v", n.name, n.size, n.offset, length, rows, cols, n.kind)
		}
	}
}

// openBytes opens a folder with the given files.
func openBytes(t testing.TB, files map[string]string) (*Model, error) {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return Open(dir)
}
