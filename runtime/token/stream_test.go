package token

import (
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
