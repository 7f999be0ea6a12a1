package token

import (
	"encoding/json"
	"testing"
)

func newRegexPattern(t testing.TB, expression string) (*pattern, error) {
	t.Helper()
	raw, err := json.Marshal(map[string]string{"Regex": expression})
	if err != nil {
		t.Fatal(err)
	}
	return newPattern(raw)
}

// What means another thing in the search's syntax, and is not translated, is
// refused. What is translated is held against the reference in TestFeatures.
func TestPatternRefusals(t *testing.T) {
	for _, expression := range []string{
		`[[:alpha:]]`, `[a&&b]`, `[a&&[^b]c]`, `[a[^b]]`, `[a-[bc]]`, `[a`, `[\W]`, `[\b]`,
		`(?s:a)`, `(?x) a`, `(?-i:a)`, `(?~a)`, `(?<n>a)`, `(?#c)`, `(?(1)a)`, `(*FAIL)`, `(a`, `a)`,
		`\R`, `\X`, `\K`, `\G`, `\N`, `\O`, `\H`, `\k<n>`, `\pL`, `\p{L`, `\p{NoSuch}`, `\`, `\x{110000}`, `\ud800`, `\xff`, `\u12`,
		`*a`, `a**`, `a{2}?`, `a{2}{3}`, `a{1001}`, `a{9999999999999999999}`, `^*`,
	} {
		if _, err := newRegexPattern(t, expression); err == nil {
			t.Errorf("pattern %q is not refused", expression)
		} else {
			checkRefusal(t, err, ErrUnsupported, "pattern")
		}
	}
}

// No pattern makes the translation or the search panic, and what is found lies
// inside the text, in order.
func FuzzPattern(f *testing.F) {
	f.Add(llama3Pattern, "Hello 123")
	f.Add(`[\p{Han}]+|[\p{Lu}\p{M}&&[^\p{Han}]]*+|\b\w{1,3}+$`, "x\u4e2d y12\n")
	f.Add(`(?m:a.)|(?i:x)|[]\]a-c[de]]{,2}?|\x{41}\h`, "a\nXA0")
	f.Fuzz(func(t *testing.T, expression, text string) {
		if len(expression) > 200 || len(text) > 200 {
			return
		}
		p, err := newRegexPattern(t, expression)
		if err != nil {
			return
		}
		text = lossy([]byte(text))
		matches, err := p.find(&scratch{deadline: patternDeadline(text)}, text)
		if err != nil {
			return
		}
		done := 0
		for _, m := range matches {
			if m.start < done || m.end < m.start || m.end > len(text) {
				t.Fatalf("%q in %q: match %v after %d", expression, text, m, done)
			}
			done = m.end
		}
	})
}
