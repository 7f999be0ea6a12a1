package token

import (
	"encoding/binary"
	"strings"
	"testing"
	"unicode/utf8"
)

// No tokenizer.json makes the parser panic or a tokenizer that does; what is
// made has no more ids than the file has room for.
func FuzzTokenizerJSON(f *testing.F) {
	f.Add([]byte(tiny(nil)), "ab ab")
	f.Add([]byte(tiny(map[string]string{"pre": `{"type":"ByteLevel","add_prefix_space":true}`, "decoder": `{"type":"ByteLevel"}`, "merges": `["a b"]`})), "a b\n")
	f.Add([]byte(tiny(map[string]string{
		"normalizer": `{"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"▁"},{"type":"Replace","pattern":{"String":" "},"content":"▁"},{"type":"NFC"}]}`,
		"decoder":    `{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},{"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":1}]}`,
		"vocab":      `{"a":0,"b":1,"ab":2,"▁":3,"<0x41>":4,"<unk>":5}`, "more": `,"byte_fallback":true,"fuse_unk":true,"unk_token":"<unk>"`,
		"added": `[{"id":5,"content":"<unk>","special":true,"lstrip":true},{"id":6,"content":"x","normalized":true,"single_word":true,"rstrip":true}]`,
	})), "a x b")
	f.Add([]byte(tiny(map[string]string{
		"pre":  `{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"\\p{N}{1,3}"},"behavior":"MergedWithNext","invert":true},{"type":"Digits"},{"type":"Metaspace","replacement":"▁","prepend_scheme":"first"}]}`,
		"post": `{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"a"}},{"Sequence":{"id":"A"}}],"special_tokens":{"a":{"ids":[0]}}}`,
	})), "12345 ab")
	f.Fuzz(func(t *testing.T, data []byte, text string) {
		tok, err := New(Source{JSON: data})
		if err != nil {
			return
		}
		if tok.Size() > 17*len(data)+1<<16 {
			t.Fatalf("%d bytes make %d ids", len(data), tok.Size())
		}
		ids, err := tok.Encode(text, true)
		if err != nil {
			return
		}
		for _, id := range ids {
			if id < 0 || int(id) >= tok.Size() {
				t.Fatalf("Encode(%q) gives id %d of %d", text, id, tok.Size())
			}
		}
		if got, want := stream(t, tok, false, nil, ids), tok.Decode(ids, false); got != want {
			t.Fatalf("Push gives %q, Decode %q", got, want)
		}
	})
}

// A byte-level vocabulary with all bytes loses nothing: decode(encode(x)) = x.
func FuzzRoundTrip(f *testing.F) {
	for _, s := range []string{"", "Hello, world!", " a\r\n\t b", "<|im_start|>user\n", "don't WE'LL 'ſ", "é́x 中文 🙂 123456", "\u200b\u00a0\u3000"} {
		f.Add(s)
	}
	var toks []*Tokenizer
	for _, name := range []string{"pattern llama3", "pattern o200k", "pattern tekken", "pattern qwen35", "byte level regex", "smollm", "ignore merges", "pattern deepseek", "split MergedWithPrevious False", "template"} {
		toks = append(toks, featureTokenizer(f, name))
	}
	f.Fuzz(func(t *testing.T, text string) {
		for i, tok := range toks {
			ids, err := tok.Encode(text, false)
			if !utf8.ValidString(text) {
				if err == nil {
					t.Fatalf("tokenizer %d encodes %q, which is not UTF-8", i, text)
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := tok.Decode(ids, false); got != text {
				t.Fatalf("tokenizer %d: %q comes back as %q", i, text, got)
			}
			again, err := tok.Encode(text, false) // out of the cache
			if err != nil || tok.Decode(again, false) != text {
				t.Fatalf("tokenizer %d: the second encoding of %q is another", i, text)
			}
		}
	})
}

// Whatever the ids and wherever the prompt ends, Push and Flush give what
// Decode gives for the whole, and never half a character.
func FuzzDecoderIncremental(f *testing.F) {
	f.Add([]byte("\x00\x01\x00\x41\x00\xc3\x00\xa9"), uint8(0), true)
	f.Add([]byte("\x00\xe2\x00\x82\x00\xac\x01\x00"), uint8(1), false)
	var toks []*Tokenizer
	for _, name := range []string{"pattern llama3", "llama2", "metaspace always True", "metaspace never False", "strip both ends", "strip each token", "decoder none", "decoder byte level and strip", "added tokens", "gemma"} {
		toks = append(toks, featureTokenizer(f, name))
	}
	f.Fuzz(func(t *testing.T, data []byte, cut uint8, skip bool) {
		for i, tok := range toks {
			var ids []int32
			for at := 0; at+1 < len(data); at += 2 {
				// A few more ids than there are, so that unknown ones come too.
				ids = append(ids, int32(binary.BigEndian.Uint16(data[at:])%uint16(tok.Size()+5)))
			}
			whole := tok.Decode(ids, skip)
			if got := stream(t, tok, skip, nil, ids); got != whole {
				t.Fatalf("tokenizer %d: Push gives %q, Decode %q", i, got, whole)
			}
			at := min(int(cut), len(ids))
			before := tok.NewDecoder(skip, nil)
			var certain strings.Builder
			for _, id := range ids[:at] {
				certain.WriteString(before.Push(id))
			}
			if got := certain.String() + stream(t, tok, skip, ids[:at], ids[at:]); got != whole {
				t.Fatalf("tokenizer %d cut at %d: %q, Decode gives %q", i, at, got, whole)
			}
		}
	})
}

// No vocabulary of a GGUF file makes the reader panic, or a tokenizer that
// gives ids it does not have.
func FuzzGGUFVocabulary(f *testing.F) {
	f.Add("a\nb\nab", "a b", []byte{1, 1, 1}, int32(0), true, "ab")
	f.Add("<unk>\n<s>\n▁\na\n▁a\n<0x41>", "", []byte{2, 3, 1, 1, 4, 6}, int32(1), true, " a Ab")
	f.Fuzz(func(t *testing.T, tokens, merges string, types []byte, end int32, prefix bool, text string) {
		v := &Vocabulary{Pre: "smollm", Tokens: strings.Split(tokens, "\n"), BOS: end, EOS: end, UNK: end, PAD: -1, AddSpacePrefix: prefix, AddBOS: prefix}
		for i := range v.Tokens {
			kind := int32(typeNormal)
			if i < len(types) {
				kind = int32(types[i]) % 8
			}
			v.Types = append(v.Types, kind)
			v.Scores = append(v.Scores, -float32(i%7))
		}
		if merges != "" {
			v.Merges = strings.Split(merges, "\n")
		}
		for _, v.Model = range []string{"gpt2", "llama"} {
			tok, err := New(Source{GGUF: v})
			if err != nil {
				continue
			}
			ids, err := tok.Encode(text, true)
			if err != nil {
				continue
			}
			for _, id := range ids {
				if id < 0 || int(id) >= len(v.Tokens) {
					t.Fatalf("%s: Encode(%q) gives id %d of %d", v.Model, text, id, len(v.Tokens))
				}
			}
			if got, want := stream(t, tok, true, nil, ids), tok.Decode(ids, true); got != want {
				t.Fatalf("%s: Push gives %q, Decode %q", v.Model, got, want)
			}
		}
	})
}
