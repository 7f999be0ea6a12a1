package token

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

// scanners are the patterns that have a scanner of their own.
var scanners = map[string]string{
	"gpt2": gpt2Pattern, "llama3": llama3Pattern, "qwen2": qwen2Pattern,
	"qwen35": qwen35Pattern, "o200k": o200kPattern, "tekken": tekkenPattern,
}

// twoWays is a scanner and the search for the same pattern.
type twoWays struct {
	name              string
	scanned, searched splitter
}

func newTwoWays(t testing.TB) []twoWays {
	t.Helper()
	var all []twoWays
	for name, expression := range scanners {
		raw, err := json.Marshal(map[string]string{"Regex": expression})
		if err != nil {
			t.Fatal(err)
		}
		p, err := newPattern(raw)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, twoWays{name, knownPattern(expression), &patternSplit{pattern: p}})
	}
	return all
}

// check fails where the two cut a text at other places.
func (w twoWays) check(t testing.TB, text string) {
	t.Helper()
	s := &scratch{deadline: patternDeadline(text)}
	got, err := w.scanned.split(s, nil, text, true)
	if err != nil {
		t.Fatal(err)
	}
	want, err := w.searched.split(s, nil, text, true)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		t.Fatalf("%s of %q: %q, the pattern gives %q", w.name, text, got, want)
	}
}

// A scanner cuts where its pattern does, and loses nothing.
func TestScannersArePatterns(t *testing.T) {
	classes := []string{"a", "B", "\u01c5", "\u02b0", "\u4e2d", "\u0301", "1", "\u00bd", " ", "\t", "\n", "\r", "\u00a0", "'", "s", "L", "l", "!", "/", "\U0001f600"}
	for _, w := range newTwoWays(t) {
		// Of every text of four characters, one of each class, a seventh.
		for code := len(w.name); code < len(classes)*len(classes)*len(classes)*len(classes); code += 7 {
			var text strings.Builder
			for n, rest := 0, code; n < 4; n, rest = n+1, rest/len(classes) {
				text.WriteString(classes[rest%len(classes)])
			}
			w.check(t, text.String())
		}
	}
}

func FuzzScanners(f *testing.F) {
	for _, s := range []string{"Hello  world's\r\n\n 'LL don't", "\u0301A\u0301b \u01c5x 123456 !?/\n/", " \u4e2d\u6587\u3000 x"} {
		f.Add(s)
	}
	all := newTwoWays(f)
	f.Fuzz(func(t *testing.T, text string) {
		if !utf8.ValidString(text) || strings.ContainsFunc(text, newToSomeone) {
			return
		}
		for _, w := range all {
			w.check(t, text)
		}
	})
}

// newToSomeone is a character that Go's tables lack: the search may know it.
func newToSomeone(r rune) bool {
	return !unicode.In(r, unicode.L, unicode.M, unicode.N, unicode.P, unicode.S, unicode.Z, unicode.Cc, unicode.Cf)
}
