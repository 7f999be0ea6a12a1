package token

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
)

// feature is one tokenizer of testdata/features.json.gz, made by features.py
// beside it: what the reference gives for it.
type feature struct {
	Name       string                     `json:"name"`
	Vocabulary string                     `json:"vocabulary"`
	Tokenizer  map[string]json.RawMessage `json:"tokenizer"`
	Model      map[string]json.RawMessage `json:"model"`
	Drop       int                        `json:"drop"` // each Drop-th merge is left out
	Lose       bool                       `json:"lose"` // tokens of three characters are left out
	Rows       []row                      `json:"rows"`
	Noise      []row                      `json:"noise"` // ids alone
}

// row is what the reference gives for a text. Decoded is nil where it panicked.
// A member that is left out is as the one before it: ids_special as ids,
// decoded as text, decoded_skip as decoded.
type row struct {
	Text        string  `json:"text"`
	IDs         []int32 `json:"ids"`
	IDsSpecial  []int32 `json:"ids_special"`
	Decoded     *string `json:"decoded"`
	DecodedSkip *string `json:"decoded_skip"`
}

func (r *row) UnmarshalJSON(data []byte) error {
	type plain row
	var members struct {
		plain
		Decoded     json.RawMessage `json:"decoded"`
		DecodedSkip json.RawMessage `json:"decoded_skip"`
	}
	if err := json.Unmarshal(data, &members); err != nil {
		return err
	}
	*r = row(members.plain)
	if r.IDsSpecial == nil {
		r.IDsSpecial = r.IDs
	}
	var err error
	if r.Decoded, err = decodedText(members.Decoded, &r.Text); err != nil {
		return err
	}
	r.DecodedSkip, err = decodedText(members.DecodedSkip, r.Decoded)
	return err
}

// decodedText reads a text; null is nil.
func decodedText(raw json.RawMessage, otherwise *string) (*string, error) {
	if raw == nil {
		return otherwise, nil
	}
	var text *string
	err := json.Unmarshal(raw, &text)
	return text, err
}

func readGzip(t testing.TB, path string) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(path, err)
	}
	data, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(path, err)
	}
	return data
}

type smallVocabulary struct {
	Vocab  map[string]int32 `json:"vocab"`
	Merges [][2]string      `json:"merges"`
}

// readFeatures reads the file once for all tests.
var readFeatures = sync.OnceValues(func() (map[string]smallVocabulary, []feature) {
	var all struct {
		Vocabularies map[string]smallVocabulary `json:"vocabularies"`
		Cases        []feature                  `json:"cases"`
	}
	f, err := os.Open(filepath.Join("testdata", "features.json.gz"))
	if err != nil {
		panic(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err == nil {
		err = json.NewDecoder(z).Decode(&all)
	}
	if err != nil {
		panic(err)
	}
	return all.Vocabularies, all.Cases
})

// tokenizerJSON puts a feature's tokenizer.json together.
func (f *feature) tokenizerJSON(t testing.TB, v smallVocabulary) []byte {
	t.Helper()
	lost := func(text string) bool {
		return f.Lose && bytes.ContainsAny([]byte(text), "eÃĊ")
	}
	vocab, merges := map[string]int32{}, [][2]string{}
	for text, id := range v.Vocab {
		if !lost(text) {
			vocab[text] = id
		}
	}
	for _, m := range v.Merges {
		if !lost(m[0] + m[1]) {
			merges = append(merges, m)
		}
	}
	if f.Drop > 0 {
		kept := merges[:0]
		for i, m := range merges {
			if i%f.Drop != 0 {
				kept = append(kept, m)
			}
		}
		merges = kept
	}
	model := map[string]any{"type": "BPE", "vocab": vocab, "merges": merges}
	for key, value := range f.Model {
		model[key] = value
	}
	file := map[string]any{"model": model}
	for key, value := range f.Tokenizer {
		file[key] = value
	}
	data, err := json.Marshal(file)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// checkRow holds a tokenizer against a row, and says whether it does; the whole
// and the stream of a decoding are compared with the reference and so with each
// other.
func checkRow(t *testing.T, tok *Tokenizer, r row) bool {
	t.Helper()
	ok := true
	for _, c := range []struct {
		special bool
		want    []int32
	}{{false, r.IDs}, {true, r.IDsSpecial}} {
		got, err := tok.Encode(r.Text, c.special)
		if err != nil {
			t.Errorf("Encode(%.80q, %v): %v", r.Text, c.special, err)
			ok = false
		} else if !slices.Equal(got, c.want) {
			t.Errorf("Encode(%.80q, %v) = %v, want %v", r.Text, c.special, got, c.want)
			ok = false
		}
	}
	return checkDecoding(t, tok, r.IDs, r) && ok
}

func checkDecoding(t *testing.T, tok *Tokenizer, ids []int32, r row) bool {
	t.Helper()
	ok := true
	for _, c := range []struct {
		skip bool
		want *string
	}{{false, r.Decoded}, {true, r.DecodedSkip}} {
		if c.want == nil {
			continue
		}
		if got := tok.Decode(ids, c.skip); got != *c.want {
			t.Errorf("Decode(%v, %v) = %q, want %q", ids, c.skip, got, *c.want)
			ok = false
		}
		if got := stream(t, tok, c.skip, nil, ids); got != *c.want {
			t.Errorf("Push(%v), skipSpecial %v, gives %q, want %q", ids, c.skip, got, *c.want)
			ok = false
		}
	}
	return ok
}

// Every component of a tokenizer.json that is read does what it does in the
// reference.
func TestFeatures(t *testing.T) {
	vocabularies, features := readFeatures()
	if len(features) < 60 {
		t.Fatalf("%d features in testdata", len(features))
	}
	for _, f := range features {
		t.Run(f.Name, func(t *testing.T) {
			tok, err := New(Source{JSON: f.tokenizerJSON(t, vocabularies[f.Vocabulary])})
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range f.Rows {
				checkRow(t, tok, r)
			}
			for _, r := range f.Noise {
				checkDecoding(t, tok, r.IDs, r)
			}
		})
	}
}
