package token

import (
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// stream pushes ids one by one and gives all text; no part may end inside a
// character.
func stream(t testing.TB, tok *Tokenizer, skip bool, prompt, ids []int32) string {
	t.Helper()
	d := tok.NewDecoder(skip, prompt)
	var all strings.Builder
	for _, id := range ids {
		part := d.Push(id)
		if !utf8.ValidString(part) {
			t.Errorf("Push(%d) = %q ends inside a character", id, part)
		}
		all.WriteString(part)
	}
	all.WriteString(d.Flush())
	return all.String()
}

// What follows a prompt is given without the prompt, spaced as inside the
// whole: Decode(prompt+ids) is what the prompt alone has made certain, and
// then the stream.
func TestDecoderAfterPrompt(t *testing.T) {
	for _, c := range []struct {
		tokenizer, prompt string
		ids               []string
		want              []string // of each Push, then of Flush
	}{
		{"llama2", "", []string{"▁the", "▁of"}, []string{"the", " of", ""}},
		{"llama2", "hello", []string{"▁the", "▁of"}, []string{" the", " of", ""}},
		{"llama2", "hello", []string{"<0xC3>", "<0xA9>", "▁the"}, []string{"", "", "é the", ""}},
		{"llama2", "hello", []string{"<0xC3>", "▁the"}, []string{"", "\ufffd the", ""}},
		{"llama2", "hello", []string{"<0xC3>", "</s>", "<0xA9>"}, []string{"", "", "", "é"}},
		{"llama2", "hello", []string{"<0xE2>", "<0x82>"}, []string{"", "", "\ufffd\ufffd"}},
		{"pattern llama3", "hello", []string{"Ġthe", "Ã", "©"}, []string{" the", "", "é", ""}},
		{"pattern llama3", "hello", []string{"â", "Ĥ", "Ġthe"}, []string{"", "", "\ufffd the", ""}},
		{"pattern llama3", "hello", []string{"â", "Ĥ"}, []string{"", "", "\ufffd"}},
		{"pattern llama3", "hello", []string{"Ã", "<|im_end|>", "©"}, []string{"", "", "é", ""}},
	} {
		tok := featureTokenizer(t, c.tokenizer)
		prompt, err := tok.Encode(c.prompt, true)
		if err != nil {
			t.Fatal(err)
		}
		d := tok.NewDecoder(true, prompt)
		var got []string
		for _, text := range c.ids {
			id, ok := tok.ID(text)
			if !ok {
				t.Fatalf("%s has no token %q", c.tokenizer, text)
			}
			got = append(got, d.Push(id))
		}
		got = append(got, d.Flush())
		if !slices.Equal(got, c.want) {
			t.Errorf("%s after %q, %v: %q, want %q", c.tokenizer, c.prompt, c.ids, got, c.want)
		}
	}
}
