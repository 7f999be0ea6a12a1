package jinja

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

var simpleEscapes = map[byte]string{
	'\n': "", '\\': "\\", '\'': "'", '"': "\"", 'a': "\a", 'b': "\b",
	'f': "\f", 'n': "\n", 'r': "\r", 't': "\t", 'v': "\v",
}

// unescape reads a string literal's body as Python's unicode-escape codec does;
// an escape that it does not know stays as written.
func unescape(s string) (string, error) {
	if !strings.Contains(s, "\\") {
		return s, nil
	}
	var out strings.Builder
	for i := 0; i < len(s); {
		if s[i] != '\\' {
			out.WriteByte(s[i])
			i++
			continue
		}
		i++
		if i == len(s) {
			return "", raise("TemplateSyntaxError", "\\ at end of string")
		}
		c := s[i]
		if text, ok := simpleEscapes[c]; ok {
			out.WriteString(text)
			i++
			continue
		}
		switch {
		case c >= '0' && c <= '7':
			n := 1
			for n < 3 && i+n < len(s) && s[i+n] >= '0' && s[i+n] <= '7' {
				n++
			}
			code, _ := strconv.ParseUint(s[i:i+n], 8, 32)
			out.WriteRune(rune(code))
			i += n
		case c == 'x' || c == 'u' || c == 'U':
			width := map[byte]int{'x': 2, 'u': 4, 'U': 8}[c]
			code, err := strconv.ParseUint(s[i+1:min(i+1+width, len(s))], 16, 32)
			if err != nil || i+1+width > len(s) {
				return "", raise("TemplateSyntaxError", "truncated \\%c escape", c)
			}
			if code > utf8.MaxRune {
				return "", raise("TemplateSyntaxError", "illegal Unicode character")
			}
			out.WriteRune(rune(code))
			i += 1 + width
		case c == 'N':
			return "", raise("TemplateSyntaxError", "\\N{...} escapes are not supported: write \\u and the code point")
		case c >= utf8.RuneSelf:
			// Jinja turns what is not ASCII into an escape first, so here the
			// backslash escapes that escape's own.
			r, size := utf8.DecodeRuneInString(s[i:])
			out.WriteString(asciiEscape(r))
			i += size
		default:
			out.WriteByte('\\')
			out.WriteByte(c)
			i++
		}
	}
	return out.String(), nil
}

// asciiEscape writes one rune as Python's backslashreplace does.
func asciiEscape(r rune) string {
	switch {
	case r < 0x100:
		return fmt.Sprintf("\\x%02x", r)
	case r < 0x10000:
		return fmt.Sprintf("\\u%04x", r)
	}
	return fmt.Sprintf("\\U%08x", r)
}
