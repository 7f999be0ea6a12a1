package token

import (
	"encoding/binary"
	"encoding/json"
	"path/filepath"
	"slices"
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
