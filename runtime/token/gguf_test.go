package token

import (
	"encoding/binary"
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// smolLM2 is the vocabulary of SmolLM2's GGUF file. testdata has it as the
// first tokens, and for each merge the ids of its parts: token 252+i is merge i.
func smolLM2(t testing.TB) (*Vocabulary, []row) {
	t.Helper()
	data := readGzip(t, filepath.Join("testdata", "smollm2.gz"))
	n := binary.BigEndian.Uint32(data)
	var head struct {
		First []string `json:"first"`
		Rows  []row    `json:"rows"`
	}
	if err := json.Unmarshal(data[4:4+n], &head); err != nil {
		t.Fatal(err)
	}
	parts := data[4+n:]
	merges := len(parts) / 4
	v := &Vocabulary{Model: "gpt2", Pre: "smollm", BOS: 1, EOS: 2, UNK: 0, PAD: 2, Tokens: head.First}
	id := func(side, i int) int {
		at := side*2*merges + i
		return int(parts[at])<<8 | int(parts[at+merges])
	}
	for i := range merges {
		left, right := v.Tokens[id(0, i)], v.Tokens[id(1, i)]
		v.Tokens = append(v.Tokens, left+right)
		v.Merges = append(v.Merges, left+" "+right)
	}
	v.Types = slices.Repeat([]int32{typeNormal}, len(v.Tokens))
	for i := range 17 {
		v.Types[i] = typeControl
	}
	return v, head.Rows
}

// The default model's own vocabulary gives the ids that transformers gives for
// its rendered prompts.
func TestSmolLM2(t *testing.T) {
	v, rows := smolLM2(t)
	tok, err := New(Source{GGUF: v})
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) != 13 || tok.Size() != 49152 {
		t.Fatalf("%d rows, %d tokens in testdata", len(rows), tok.Size())
	}
	for _, r := range rows {
		for _, special := range []bool{false, true} { // the file has add_bos_token false
			got, err := tok.Encode(r.Text, special)
			if err != nil || !slices.Equal(got, r.IDs) {
				t.Errorf("Encode(%.60q, %v) = %v, %v, want %v", r.Text, special, got, err, r.IDs)
			}
		}
		if got := tok.Decode(r.IDs, false); got != r.Text {
			t.Errorf("Decode(%v) = %q, want %q", r.IDs, got, r.Text)
		}
	}
	if bos, ok := tok.BOS(); bos != 1 || !ok {
		t.Errorf("BOS() = %d, %v", bos, ok)
	}
	if eos, ok := tok.EOS(); eos != 2 || !ok || !tok.Special(eos) || tok.Token(eos) != "<|im_end|>" {
		t.Errorf("EOS() = %d, %v, special %v, token %q", eos, ok, tok.Special(eos), tok.Token(eos))
	}
	if id, ok := tok.ID("Ġthe"); !ok || tok.Token(id) != " the" || string(tok.Bytes(id)) != " the" {
		t.Errorf("ID(Ġthe) = %d, %v, token %q", id, ok, tok.Token(id))
	}
}

// ggufOf makes the GGUF vocabulary that a converter makes of a tokenizer.json.
func ggufOf(t *testing.T, data []byte, model, pre string) *Vocabulary {
	t.Helper()
	tok, err := New(Source{JSON: data})
	if err != nil {
		t.Fatal(err)
	}
	size := tok.Size()
	v := &Vocabulary{
		Model: model, Pre: pre, BOS: -1, EOS: -1, UNK: -1, PAD: -1,
		Tokens: make([]string, size), Types: slices.Repeat([]int32{typeNormal}, size),
	}
	for id := range int32(size) {
		v.Tokens[id] = tok.vocabulary.text(id)
		_, isByte := byteToken(v.Tokens[id])
		switch {
		case tok.Special(id):
			v.Types[id] = typeControl
		case tok.vocabulary.isAdded[id]:
			v.Types[id] = typeUserDefined
		case isByte && model == "llama":
			v.Types[id] = typeByte
		}
	}
	if model == "llama" { // SentencePiece scores pieces by minus their place, runs of spaces last
		v.Scores = make([]float32, size)
		for id, text := range v.Tokens {
			if v.Scores[id] = -float32(id); strings.Trim(text, spaceMark) == "" && text != spaceMark {
				v.Scores[id] = -1e9
			}
		}
		return v
	}
	merges := make([]string, len(tok.model.merges.slots))
	for _, slot := range tok.model.merges.slots {
		if slot.rank > 0 {
			merges[slot.rank-1] = v.Tokens[slot.left] + " " + v.Tokens[slot.right]
		}
	}
	v.Merges = slices.DeleteFunc(merges, func(m string) bool { return m == "" })
	return v
}

// The vocabulary of a GGUF file gives the ids of the tokenizer.json that it
// was converted from.
func TestGGUFEqualsJSON(t *testing.T) {
	rows := goldenRows(t)
	for _, c := range []struct {
		name, model, pre string
		set              func(*Vocabulary)
	}{
		{"qwen3", "gpt2", "qwen2", nil},
		{"llama3_1", "gpt2", "llama-bpe", func(v *Vocabulary) { v.BOS, v.AddBOS = 128000, true }},
		{"gptoss", "gpt2", "gpt-4o", nil},
		{"gpt2", "gpt2", "gpt-2", nil},
		{"gemma3", "llama", "", func(v *Vocabulary) {
			v.BOS, v.EOS, v.UNK, v.AddBOS = 2, 1, 3, true
			for id, kind := range v.Types { // the converter writes spaces in user-defined tokens
				if kind == typeUserDefined {
					v.Tokens[id] = strings.ReplaceAll(v.Tokens[id], spaceMark, " ")
				}
			}
		}},
		{"llama2", "llama", "", func(v *Vocabulary) { v.BOS, v.EOS, v.UNK, v.AddBOS, v.AddSpacePrefix = 1, 2, 0, true, true }},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := ggufOf(t, vocabularyFile(t, c.name), c.model, c.pre)
			if c.set != nil {
				c.set(v)
			}
			tok, err := New(Source{GGUF: v})
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range rows[c.name] {
				checkRow(t, tok, r)
			}
		})
	}
}

// What a GGUF vocabulary asks for and is not done is refused by name.
func TestGGUFRefusals(t *testing.T) {
	small := func(change func(*Vocabulary)) *Vocabulary {
		v := &Vocabulary{Model: "gpt2", Pre: "gpt-2", Tokens: []string{"a", "b", "ab"}, Merges: []string{"a b"}, BOS: -1, EOS: -1, UNK: -1, PAD: -1}
		change(v)
		return v
	}
	for _, c := range []struct {
		name   string
		change func(*Vocabulary)
		want   error
		names  string
	}{
		{"model", func(v *Vocabulary) { v.Model = "t5" }, ErrUnsupported, "t5"},
		{"pre", func(v *Vocabulary) { v.Pre = "kimi-k2" }, ErrUnsupported, "kimi-k2"},
		{"no tokens", func(v *Vocabulary) { v.Tokens = nil }, ErrMalformed, "tokens"},
		{"types", func(v *Vocabulary) { v.Types = []int32{1} }, ErrMalformed, "token_type"},
		{"type", func(v *Vocabulary) { v.Types = []int32{1, 1, 9} }, ErrUnsupported, "token_type[2]"},
		{"merge of one", func(v *Vocabulary) { v.Merges = []string{"ab"} }, ErrMalformed, "merges[0]"},
		{"merge of unknown", func(v *Vocabulary) { v.Merges = []string{"a c"} }, ErrMalformed, `"c"`},
		{"no merges", func(v *Vocabulary) { v.Merges = nil }, ErrMalformed, "merges"},
		{"bos", func(v *Vocabulary) { v.BOS = 3 }, ErrMalformed, "bos"},
		{"add bos", func(v *Vocabulary) { v.AddBOS = true }, ErrMalformed, "bos"},
		{"add eos", func(v *Vocabulary) { v.AddEOS = true }, ErrMalformed, "eos"},
		{"not UTF-8", func(v *Vocabulary) { v.Tokens[1] = "\xff" }, ErrMalformed, "tokens[1]"},
		{"no scores", func(v *Vocabulary) { v.Model = "llama" }, ErrMalformed, "scores"},
		{"scores", func(v *Vocabulary) { v.Model, v.Scores = "llama", []float32{1} }, ErrMalformed, "scores"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := New(Source{GGUF: small(c.change)})
			checkRefusal(t, err, c.want, c.names)
		})
	}
}
