package token

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// smolTokenizer is the default model's tokenizer.
func smolTokenizer(t testing.TB) *Tokenizer {
	t.Helper()
	v, _ := smolLM2(t)
	tok, err := New(Source{GGUF: v})
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// featureTokenizer is one of testdata/features.json.gz.
func featureTokenizer(t testing.TB, name string) *Tokenizer {
	t.Helper()
	vocabularies, features := readFeatures()
	for _, f := range features {
		if f.Name == name {
			tok, err := New(Source{JSON: f.tokenizerJSON(t, vocabularies[f.Vocabulary])})
			if err != nil {
				t.Fatal(err)
			}
			return tok
		}
	}
	t.Fatalf("no feature %q", name)
	return nil
}

// Text that is not UTF-8 is refused with the place of the first bad byte.
func TestEncodeRefusesInvalidText(t *testing.T) {
	tok := smolTokenizer(t)
	for _, c := range []struct {
		text string
		at   int
	}{{"\xff", 0}, {"abc\xe2\x82", 3}, {"a\ufffdb\xc0\x80", 5}, {"\xed\xa0\x80", 0}} {
		_, err := tok.Encode(c.text, false)
		if !errors.Is(err, ErrInvalidText) || !strings.Contains(err.Error(), fmt.Sprintf("byte %d ", c.at)) {
			t.Errorf("Encode(%q): %v, want %v at byte %d", c.text, err, ErrInvalidText, c.at)
		}
	}
}

// The time of an encoding is near linear in the length of the text, whatever
// the text: 256 kB take some 30 ms, and would take minutes if each character
// looked through the others.
func TestEncodeIsNearLinear(t *testing.T) {
	texts := map[string]string{
		"one letter":   "a",
		"two letters":  "ab",
		"spaces":       " ",
		"line ends":    "\n",
		"symbols":      "!",
		"marks":        "\u0301",
		"apostrophes":  "'",
		"special cut":  "<|im_star",
		"ideographs":   "\u4e2d",
		"mixed spaces": " \n\t",
		"emoji":        "\U0001f600",
		"marked":       "\u2581",
	}
	const size, limit = 256_000, 10 * time.Second
	for _, tokenizer := range []string{"pattern llama3", "pattern o200k", "normalizer NFC", "added tokens", "llama2", "smollm"} {
		tok := featureTokenizer(t, tokenizer)
		for name, unit := range texts {
			text := strings.Repeat(unit, size/len(unit))
			start := time.Now()
			ids, err := tok.Encode(text, false)
			if err != nil {
				t.Fatal(err)
			}
			if took := time.Since(start); took > limit {
				t.Errorf("%s, %s: %d bytes take %v", tokenizer, name, len(text), took)
			}
			if tokenizer != "normalizer NFC" && tokenizer != "llama2" && tok.Decode(ids, false) != text {
				t.Errorf("%s, %s: the text does not come back", tokenizer, name)
			}
		}
	}
}

// A pattern that backtracks without end gives an error, in time.
func TestPatternGivesUp(t *testing.T) {
	tok, err := New(Source{JSON: []byte(tiny(map[string]string{
		"pre": `{"type":"Split","pattern":{"Regex":"(?:(?:a|aa)+)+$|b"},"behavior":"Isolated"}`,
	}))})
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{
		strings.Repeat("a", 200) + "b",                        // one search without end
		strings.Repeat(strings.Repeat("a", 24)+"b\n", 10_000), // many that take long
	} {
		start := time.Now()
		_, err = tok.Encode(text, false)
		if !errors.Is(err, ErrPattern) {
			t.Errorf("error %v, want %v", err, ErrPattern)
		}
		if took := time.Since(start); took > 10*patternTime {
			t.Errorf("gave up after %v", took)
		}
	}
}

// Encode and Decode of many goroutines give what one alone gets: the word
// cache and the scratch are shared.
func TestConcurrentUse(t *testing.T) {
	tok := smolTokenizer(t)
	_, rows := smolLM2(t)
	var wait sync.WaitGroup
	for worker := range 8 {
		wait.Go(func() {
			for i := range 40 {
				r := rows[(worker+i)%len(rows)]
				got, err := tok.Encode(r.Text, false)
				if err != nil || !slices.Equal(got, r.IDs) {
					t.Errorf("Encode(%.40q) = %v, %v, want %v", r.Text, got, err, r.IDs)
				}
				if text := tok.Decode(r.IDs, false); text != r.Text {
					t.Errorf("Decode(%v) = %q, want %q", r.IDs, text, r.Text)
				}
			}
		})
	}
	wait.Wait()
}

// Ids that the vocabulary lacks are nothing, and harm nothing.
func TestUnknownIDs(t *testing.T) {
	tok := smolTokenizer(t)
	the, _ := tok.ID("Ġthe")
	for _, id := range []int32{-1, -1 << 31, int32(tok.Size()), 1<<31 - 1} {
		if tok.Token(id) != "" || tok.Bytes(id) != nil || tok.Special(id) {
			t.Errorf("id %d: token %q, bytes %v, special %v", id, tok.Token(id), tok.Bytes(id), tok.Special(id))
		}
		if got := tok.Decode([]int32{the, id, the}, false); got != " the the" {
			t.Errorf("Decode with id %d = %q", id, got)
		}
	}
	if _, ok := tok.ID("no such token"); ok {
		t.Error("ID finds a token that is not there")
	}
}

// Token and Bytes show the text that a token stands for, not its spelling.
func TestTokenText(t *testing.T) {
	for _, c := range []struct {
		tokenizer, id, text string
		bytes               string
	}{
		{"llama2", "▁the", " the", " the"},
		{"llama2", "<0xE2>", "\ufffd", "\xe2"},
		{"llama2", "<0x41>", "A", "A"},
		{"llama2", "</s>", "</s>", "</s>"},
		{"pattern llama3", "Ġthe", " the", " the"},
		{"pattern llama3", "Ã", "\ufffd", "\xc3"},
		{"pattern llama3", "<|im_end|>", "<|im_end|>", "<|im_end|>"},
		{"added tokens", " spaced ", " spaced ", " spaced "},
	} {
		tok := featureTokenizer(t, c.tokenizer)
		id, ok := tok.ID(c.id)
		if !ok {
			t.Errorf("%s: no token %q", c.tokenizer, c.id)
			continue
		}
		if tok.Token(id) != c.text || string(tok.Bytes(id)) != c.bytes {
			t.Errorf("%s: token %q is %q, bytes %q, want %q and %q", c.tokenizer, c.id, tok.Token(id), tok.Bytes(id), c.text, c.bytes)
		}
	}
}
