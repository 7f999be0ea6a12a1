package dispatch

import (
	"math/rand/v2"
	"strings"
	"testing"
	"unicode/utf8"

	"manta/node/wire"
	"manta/runtime/sample"
)

// byteDecoder gives whole characters of bytes.
type byteDecoder struct{ part []byte }

func (d *byteDecoder) Push(id int32) string {
	d.part = append(d.part, byte(id))
	var text []byte
	for len(d.part) > 0 && utf8.FullRune(d.part) {
		r, n := utf8.DecodeRune(d.part)
		text, d.part = utf8.AppendRune(text, r), d.part[n:]
	}
	return string(text)
}

func (d *byteDecoder) Flush() string {
	if len(d.part) == 0 {
		return ""
	}
	d.part = nil
	return "\uFFFD"
}

type byteTokens struct{ Tokenizer }

func (byteTokens) NewDecoder(bool, []int32) Decoder { return &byteDecoder{} }

// expected is what the client must get, computed from the whole text at once: up
// to the first stop string, found at the first token that completes one.
func expected(tokens []int32, stops []string, include bool, minTokens int) string {
	var d byteDecoder
	text := ""
	for n, token := range tokens {
		before := len(text)
		text += d.Push(token)
		if n+1 <= minTokens {
			continue
		}
		start, stop := len(text), ""
		for _, s := range stops {
			from := max(0, before-len(s)+1)
			if at := strings.Index(text[from:], s); at >= 0 && from+at < start {
				start, stop = from+at, s
			}
		}
		if stop != "" {
			if include {
				start += len(stop)
			}
			return text[:start]
		}
	}
	return text + d.Flush()
}

// However frames cut the tokens, the pieces join to the same text; no piece ends
// inside a character, and none holds what a stop string takes back.
func TestPiecesJoinToTheText(t *testing.T) {
	letters := []string{"a", "b", "ab", "é", "日", "😀", " "}
	for seed := range uint64(3000) {
		draw := rand.New(rand.NewPCG(seed, 0))
		var source strings.Builder
		for range draw.IntN(30) {
			source.WriteString(letters[draw.IntN(len(letters))])
		}
		raw := source.String()
		if draw.IntN(4) == 0 && raw != "" {
			raw = raw[:len(raw)-1] // perhaps half a character at the end
		}
		var stops []string
		for range draw.IntN(3) {
			stop := ""
			for range 1 + draw.IntN(3) {
				stop += letters[draw.IntN(len(letters))]
			}
			stops = append(stops, stop)
		}
		var tokens []int32
		for _, b := range []byte(raw) {
			tokens = append(tokens, int32(b))
		}
		if len(tokens) == 0 {
			continue
		}
		params := sample.Default()
		params.MaxTokens, params.Stops = len(tokens), stops
		params.IncludeStop, params.MinTokens = draw.IntN(3) == 0, draw.IntN(4)
		want := expected(tokens, stops, params.IncludeStop, params.MinTokens)
		c := newChoice(0, &Request{Tokenizer: byteTokens{}, Choices: 1, Params: params})
		got := ""
		for at := 0; at < len(tokens) && !c.finished; {
			n := min(1+draw.IntN(4), len(tokens)-at)
			frame := &wire.Frame{Offset: at, Tokens: tokens[at : at+n]}
			if at+n == len(tokens) {
				frame.Finish = wire.FinishLength
			}
			event, fresh, err := c.accept(frame)
			if err != nil {
				t.Fatal(err)
			}
			if !fresh {
				t.Fatalf("seed %d: no event for new tokens", seed)
			}
			if !utf8.ValidString(event.Text) {
				t.Fatalf("seed %d: half a character in %q", seed, event.Text)
			}
			got += event.Text
			if !strings.HasPrefix(want, got) {
				t.Fatalf("seed %d: %q was sent, the text is %q (stops %q)", seed, got, want, stops)
			}
			at += n
		}
		if got != want {
			t.Errorf("seed %d: %q, want %q (tokens of %q, stops %q, include %v, min %d)",
				seed, got, want, raw, stops, params.IncludeStop, params.MinTokens)
		}
	}
}
