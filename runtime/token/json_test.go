package token

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func checkRefusal(t *testing.T, err, want error, names string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error %v, want %v", err, want)
	}
	if !strings.Contains(err.Error(), names) {
		t.Errorf("error %q does not name %s", err, names)
	}
}

// tiny is a tokenizer.json with parts put in.
func tiny(parts map[string]string) string {
	get := func(name, otherwise string) string {
		if p, ok := parts[name]; ok {
			return p
		}
		return otherwise
	}
	return fmt.Sprintf(`{"added_tokens":%s,"normalizer":%s,"pre_tokenizer":%s,"post_processor":%s,"decoder":%s,"model":{"type":%s,"vocab":%s,"merges":%s%s}}`,
		get("added", "[]"), get("normalizer", "null"), get("pre", "null"), get("post", "null"), get("decoder", "null"),
		get("type", `"BPE"`), get("vocab", `{"a":0,"b":1,"ab":2}`), get("merges", `[["a","b"]]`), get("more", ""))
}

// What a tokenizer.json asks for and is not done is refused by name, what is
// damaged by place.
func TestJSONRefusals(t *testing.T) {
	for _, c := range []struct {
		name, part, text string
		want             error
		names            string
	}{
		{"model", "type", `"Unigram"`, ErrUnsupported, "Unigram"},
		{"dropout", "more", `,"dropout":0.1`, ErrUnsupported, "dropout"},
		{"subword prefix", "more", `,"continuing_subword_prefix":"##"`, ErrUnsupported, "continuing_subword_prefix"},
		{"word suffix", "more", `,"end_of_word_suffix":"</w>"`, ErrUnsupported, "end_of_word_suffix"},
		{"unknown token", "more", `,"unk_token":"<unk>"`, ErrMalformed, "<unk>"},
		{"normalizer", "normalizer", `{"type":"Precompiled"}`, ErrUnsupported, "Precompiled"},
		{"inner normalizer", "normalizer", `{"type":"Sequence","normalizers":[{"type":"Nmt"}]}`, ErrUnsupported, "Nmt"},
		{"replaced pattern", "normalizer", `{"type":"Replace","pattern":{"Regex":"(?<n"},"content":""}`, ErrUnsupported, "(?<n"},
		{"pre_tokenizer", "pre", `{"type":"UnicodeScripts"}`, ErrUnsupported, "UnicodeScripts"},
		{"after byte level", "pre", `{"type":"Sequence","pretokenizers":[{"type":"ByteLevel"},{"type":"Digits"}]}`, ErrUnsupported, "after ByteLevel"},
		{"pattern", "pre", `{"type":"Split","pattern":{"Regex":"["},"behavior":"Isolated"}`, ErrUnsupported, `"["`},
		{"no pattern", "pre", `{"type":"Split","behavior":"Isolated"}`, ErrMalformed, "pattern"},
		{"behavior", "pre", `{"type":"Split","pattern":{"String":"a"},"behavior":"Odd"}`, ErrUnsupported, "Odd"},
		{"prepend scheme", "pre", `{"type":"Metaspace","replacement":"▁","prepend_scheme":"last"}`, ErrUnsupported, "last"},
		{"replacement", "pre", `{"type":"Metaspace","replacement":"","prepend_scheme":"always"}`, ErrMalformed, "replacement"},
		{"post_processor", "post", `{"type":"BertProcessing"}`, ErrUnsupported, "BertProcessing"},
		{"template's id", "post", `{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"x"}},{"Sequence":{"id":"A"}}],"special_tokens":{"x":{"ids":[9]}}}`, ErrMalformed, "9"},
		{"template's name", "post", `{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"x"}},{"Sequence":{"id":"A"}}]}`, ErrMalformed, `"x"`},
		{"template without text", "post", `{"type":"TemplateProcessing","single":[]}`, ErrMalformed, "single"},
		{"decoder", "decoder", `{"type":"CTC"}`, ErrUnsupported, "CTC"},
		{"decoder after fuse", "decoder", `{"type":"Sequence","decoders":[{"type":"Fuse"},{"type":"ByteFallback"}]}`, ErrUnsupported, "ByteFallback"},
		{"strip", "decoder", `{"type":"Strip","content":" ","start":1000000000,"stop":0}`, ErrUnsupported, "Strip"},
		{"merge's part", "merges", `[["a","c"]]`, ErrMalformed, `"c"`},
		{"merge's result", "merges", `[["b","a"]]`, ErrMalformed, `"ba"`},
		{"merge of three", "merges", `["a b c"]`, ErrMalformed, "merge"},
		{"merge of one", "merges", `[["a"]]`, ErrMalformed, "merge"},
		{"id far off", "vocab", `{"a":0,"b":1,"ab":1000000}`, ErrMalformed, "1000000"},
		{"id below zero", "vocab", `{"a":0,"b":-1,"ab":2}`, ErrMalformed, "-1"},
		{"id twice", "vocab", `{"a":0,"b":1,"ab":1}`, ErrMalformed, "same id"},
		{"id no integer", "vocab", `{"a":0,"b":1.5,"ab":2}`, ErrMalformed, "integer"},
		{"half a surrogate", "vocab", `{"\ud800":0}`, ErrMalformed, "surrogate"},
		{"added token over another", "added", `[{"id":3,"content":"x"},{"id":0,"content":"x2"}]`, nil, ""},
		{"added tokens", "added", `{"a":1}`, ErrMalformed, "added_tokens"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := New(Source{JSON: []byte(tiny(map[string]string{c.part: c.text}))})
			if c.want == nil {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			checkRefusal(t, err, c.want, c.names)
		})
	}
}

// A source is one of the two, and whole.
func TestSourceRefusals(t *testing.T) {
	for _, c := range []struct {
		name string
		src  Source
	}{
		{"nothing", Source{}},
		{"both", Source{JSON: []byte(tiny(nil)), GGUF: &Vocabulary{}}},
		{"empty", Source{JSON: []byte(" ")}},
		{"cut off", Source{JSON: []byte(tiny(nil)[:40])}},
		{"more behind", Source{JSON: []byte(tiny(nil) + "{}")}},
		{"no model", Source{JSON: []byte(`{"version":"1.0"}`)}},
		{"brackets", Source{JSON: []byte(`{"model":{"vocab":[}]}}`)}},
		{"deep", Source{JSON: []byte(`{"x":` + strings.Repeat("[", 1000))}},
		{"config", Source{JSON: []byte(tiny(nil)), Config: []byte("{")}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := New(c.src)
			checkRefusal(t, err, ErrMalformed, "")
		})
	}
}

// tokenizer_config.json names the ends of a sequence, decides over the
// template, and brings added tokens that tokenizer.json lacks.
func TestConfig(t *testing.T) {
	file := []byte(tiny(map[string]string{
		"vocab": `{"a":0,"b":1,"ab":2,"<s>":3,"</s>":4}`,
		"added": `[{"id":3,"content":"<s>","special":true},{"id":4,"content":"</s>","special":true}]`,
		"post":  `{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>"}},{"Sequence":{"id":"A"}}],"special_tokens":{"<s>":{"ids":[3]}}}`,
	}))
	for _, c := range []struct {
		name, config string
		bos, eos     int32
		want         []int32
	}{
		{"none", "", 3, -1, []int32{3, 2}},
		{"named", `{"bos_token":"<s>","eos_token":{"content":"</s>","lstrip":false}}`, 3, 4, []int32{3, 2}},
		{"no bos", `{"bos_token":"<s>","add_bos_token":false}`, 3, -1, []int32{2}},
		{"both ends", `{"bos_token":"<s>","eos_token":"</s>","add_bos_token":true,"add_eos_token":true}`, 3, 4, []int32{3, 2, 4}},
		{"unknown name", `{"eos_token":"<none>"}`, 3, -1, []int32{3, 2}},
	} {
		t.Run(c.name, func(t *testing.T) {
			tok, err := New(Source{JSON: file, Config: []byte(c.config)})
			if err != nil {
				t.Fatal(err)
			}
			got, err := tok.Encode("ab", true)
			if err != nil || !slices.Equal(got, c.want) {
				t.Errorf("Encode(ab) = %v, %v, want %v", got, err, c.want)
			}
			if bos, ok := tok.BOS(); bos != c.bos || ok != (c.bos >= 0) {
				t.Errorf("BOS() = %d, %v, want %d", bos, ok, c.bos)
			}
			if eos, ok := tok.EOS(); eos != c.eos || ok != (c.eos >= 0) {
				t.Errorf("EOS() = %d, %v, want %d", eos, ok, c.eos)
			}
		})
	}
	tok, err := New(Source{JSON: file, Config: []byte(`{"added_tokens_decoder":{"5":{"content":"<new>","special":true},"3":{"content":"<s>","special":true}}}`)})
	if err != nil {
		t.Fatal(err)
	}
	if id, ok := tok.ID("<new>"); !ok || id != 5 || !tok.Special(5) || tok.Size() != 6 {
		t.Errorf("ID(<new>) = %d, %v, special %v, size %d", id, ok, tok.Special(5), tok.Size())
	}
	if got, err := tok.Encode("a<new>b", false); err != nil || !slices.Equal(got, []int32{0, 5, 1}) {
		t.Errorf("Encode(a<new>b) = %v, %v", got, err)
	}
}

// Strings of tokenizer.json are JSON's, with all its escapes.
func TestJSONEscapes(t *testing.T) {
	tok, err := New(Source{JSON: []byte(tiny(map[string]string{
		"vocab": `{"\"":0,"\\":1,"\/":2,"\u00e9":3,"\ud83d\ude00":4,"\n\t\r\b\f":5}`, "merges": "[]",
	}))})
	if err != nil {
		t.Fatal(err)
	}
	for id, want := range []string{`"`, `\`, "/", "é", "😀", "\n\t\r\b\f"} {
		if got := tok.Token(int32(id)); got != want {
			t.Errorf("Token(%d) = %q, want %q", id, got, want)
		}
	}
}
