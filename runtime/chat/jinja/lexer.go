package jinja

import (
	"math/big"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

type tokenKind uint8

const (
	tokenEnd tokenKind = iota
	tokenData
	tokenVariableBegin
	tokenVariableEnd
	tokenBlockBegin
	tokenBlockEnd
	tokenName
	tokenString
	tokenInteger
	tokenFloat
	tokenOperator
)

type token struct {
	kind  tokenKind
	text  string // of data, name, string (unescaped) or operator
	value Value  // of integer and float
	line  int
}

// lexer follows jinja2/lexer.py: text up to the next tag, then the tag's own
// tokens until its end, which counts only outside brackets.
type lexer struct {
	source       string
	position     int
	line         int
	lineStarting bool // whether what was read last ended with a newline
	tokens       []token
}

func lex(source string) ([]token, error) {
	source = strings.ReplaceAll(source, "\r\n", "\n")
	source = strings.ReplaceAll(source, "\r", "\n")
	source = strings.TrimSuffix(source, "\n") // keep_trailing_newline is off
	l := &lexer{source: source, line: 1, lineStarting: true}
	for l.position < len(l.source) {
		if err := l.readText(); err != nil {
			return nil, err
		}
	}
	l.emit(token{kind: tokenEnd})
	return l.tokens, nil
}

func (l *lexer) emit(t token) {
	t.line = l.line
	l.tokens = append(l.tokens, t)
}

func (l *lexer) fail(format string, args ...any) error {
	return atLine(raise("TemplateSyntaxError", format, args...), l.line)
}

// advance moves to the position and counts the lines passed.
func (l *lexer) advance(to int) {
	passed := l.source[l.position:to]
	l.line += strings.Count(passed, "\n")
	if passed != "" {
		l.lineStarting = passed[len(passed)-1] == '\n'
	}
	l.position = to
}

func (l *lexer) emitData(text string) {
	if text != "" {
		l.emit(token{kind: tokenData, text: text})
	}
}

// readText reads data up to the next tag, and the tag.
func (l *lexer) readText() error {
	start := l.position
	at := start
	for {
		next := strings.IndexByte(l.source[at:], '{')
		if next < 0 || at+next+1 >= len(l.source) {
			l.emitData(l.source[start:])
			l.advance(len(l.source))
			return nil
		}
		at += next
		if c := l.source[at+1]; c == '{' || c == '%' || c == '#' {
			break
		}
		at++
	}
	kind := l.source[at+1]
	begin := at + 2 // after the delimiter and its sign
	sign := byte(0)
	if begin < len(l.source) && (l.source[begin] == '-' || l.source[begin] == '+') {
		sign = l.source[begin]
		begin++
	}
	l.emitData(l.stripBefore(l.source[start:at], sign, kind != '{'))
	l.advance(at)
	if kind == '%' {
		if content, ok := rawBegin(l.source[begin:]); ok {
			l.advance(begin + content)
			return l.readRaw()
		}
	}
	switch kind {
	case '#':
		l.advance(begin)
		return l.skipComment()
	case '%':
		l.emit(token{kind: tokenBlockBegin})
		l.advance(begin)
		return l.readTag("%}", tokenBlockEnd)
	default:
		l.emit(token{kind: tokenVariableBegin})
		l.advance(begin)
		return l.readTag("}}", tokenVariableEnd)
	}
}

// stripBefore applies "-" and lstrip_blocks to the text before a tag.
func (l *lexer) stripBefore(text string, sign byte, lstrip bool) string {
	switch {
	case sign == '-':
		return strings.TrimRightFunc(text, isSpace)
	case sign == 0 && lstrip:
		lineStart := strings.LastIndexByte(text, '\n') + 1
		if (lineStart > 0 || l.lineStarting) && strings.TrimLeftFunc(text[lineStart:], isSpace) == "" {
			return text[:lineStart]
		}
	}
	return text
}

// blockEnd tells how long the end of a tag is at the head of s: "%}" with its
// sign and what the sign or trim_blocks swallows; 0 when it is not one.
func blockEnd(s, delimiter string) int {
	switch {
	case strings.HasPrefix(s, "+"+delimiter) && delimiter != "}}":
		return 1 + len(delimiter)
	case strings.HasPrefix(s, "-"+delimiter):
		return 1 + len(delimiter) + leadingSpace(s[1+len(delimiter):])
	case !strings.HasPrefix(s, delimiter):
		return 0
	case delimiter != "}}" && strings.HasPrefix(s[len(delimiter):], "\n"):
		return len(delimiter) + 1
	}
	return len(delimiter)
}

func leadingSpace(s string) int { return len(s) - len(strings.TrimLeftFunc(s, isSpace)) }

// rawBegin tells how long " raw %}" at the head of s is.
func rawBegin(s string) (int, bool) {
	n := leadingSpace(s)
	if !strings.HasPrefix(s[n:], "raw") {
		return 0, false
	}
	n += len("raw")
	n += leadingSpace(s[n:])
	if strings.HasPrefix(s[n:], "-%}") {
		return n + 3 + leadingSpace(s[n+3:]), true
	}
	return n + 2, strings.HasPrefix(s[n:], "%}")
}

func (l *lexer) readRaw() error {
	rest := l.source[l.position:]
	if rest == "" { // Jinja misses this one, and so do we
		return nil
	}
	for at := 0; ; at += 2 {
		next := strings.Index(rest[at:], "{%")
		if next < 0 {
			return l.fail("Missing end of raw directive")
		}
		at += next
		begin := at + 2
		sign := byte(0)
		if begin < len(rest) && (rest[begin] == '-' || rest[begin] == '+') {
			sign = rest[begin]
			begin++
		}
		begin += leadingSpace(rest[begin:])
		if !strings.HasPrefix(rest[begin:], "endraw") {
			continue
		}
		begin += len("endraw")
		begin += leadingSpace(rest[begin:])
		length := blockEnd(rest[begin:], "%}")
		if length == 0 {
			continue
		}
		l.emitData(l.stripBefore(rest[:at], sign, true))
		l.advance(l.position + begin + length)
		return nil
	}
}

func (l *lexer) skipComment() error {
	rest := l.source[l.position:]
	end := strings.Index(rest, "#}")
	if rest == "" {
		return nil
	}
	if end < 0 {
		return l.fail("Missing end of comment tag")
	}
	if end > 0 && (rest[end-1] == '-' || rest[end-1] == '+') {
		end--
	}
	l.advance(l.position + end + blockEnd(rest[end:], "#}"))
	return nil
}

var closingBracket = map[string]string{"{": "}", "(": ")", "[": "]"}

// readTag reads the tokens of one tag up to its end.
func (l *lexer) readTag(end string, kind tokenKind) error {
	var open []string // brackets to be closed before the end counts
	for {
		space := leadingSpace(l.source[l.position:])
		l.advance(l.position + space)
		rest := l.source[l.position:]
		if rest == "" {
			return nil // the parser meets the end of the template and says so
		}
		if len(open) == 0 {
			if n := blockEnd(rest, end); n > 0 {
				l.emit(token{kind: kind})
				l.advance(l.position + n)
				return nil
			}
		}
		n, t, err := l.readToken(rest)
		if err != nil {
			return err
		}
		if t.kind == tokenOperator {
			switch t.text {
			case "{", "(", "[":
				open = append(open, closingBracket[t.text])
			case "}", ")", "]":
				if len(open) == 0 {
					return l.fail("unexpected '%s'", t.text)
				}
				if expected := open[len(open)-1]; expected != t.text {
					return l.fail("unexpected '%s', expected '%s'", t.text, expected)
				}
				open = open[:len(open)-1]
			}
		}
		l.emit(t)
		l.advance(l.position + n)
	}
}

func (l *lexer) readToken(rest string) (int, token, error) {
	c := rest[0]
	if isDigit(c) {
		return l.readNumber(rest)
	}
	if c == '\'' || c == '"' {
		return l.readString(rest)
	}
	if n := nameLength(rest); n > 0 {
		return n, token{kind: tokenName, text: rest[:n]}, nil
	}
	if len(rest) > 1 {
		switch two := rest[:2]; two {
		case "//", "**", "==", "!=", ">=", "<=":
			return 2, token{kind: tokenOperator, text: two}, nil
		}
	}
	if strings.IndexByte("+-/*%~[](){}><=.:|,;", c) >= 0 {
		return 1, token{kind: tokenOperator, text: rest[:1]}, nil
	}
	r, _ := utf8.DecodeRuneInString(rest)
	return 0, token{}, l.fail("unexpected char %s at %d", quote(string(r)), utf8.RuneCountInString(l.source[:l.position]))
}

func nameLength(s string) int {
	for i, r := range s {
		word := r == '_' || unicode.IsLetter(r) || i > 0 && (unicode.IsNumber(r) || unicode.In(r, unicode.Mn, unicode.Mc))
		if !word {
			return i
		}
	}
	return len(s)
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// digits reads digits that single underscores may part.
func digits(s string, accept func(byte) bool) int {
	n := 0
	for n < len(s) {
		switch {
		case accept(s[n]):
			n++
		case s[n] == '_' && n > 0 && n+1 < len(s) && accept(s[n+1]):
			n += 2
		default:
			return n
		}
	}
	return n
}

func (l *lexer) readNumber(s string) (int, token, error) {
	if n := floatLength(s); n > 0 && (l.position == 0 || l.source[l.position-1] != '.') {
		value, _ := strconv.ParseFloat(strings.ReplaceAll(s[:n], "_", ""), 64) // out of range is inf, as in Python
		return n, token{kind: tokenFloat, value: value, text: s[:n]}, nil
	}
	n := integerLength(s)
	value, ok := new(big.Int).SetString(strings.ReplaceAll(s[:n], "_", ""), 0)
	if !ok {
		value = new(big.Int) // zeros written as 00, which Go reads as octal
	}
	return n, token{kind: tokenInteger, value: normalInteger(value), text: s[:n]}, nil
}

func floatLength(s string) int {
	n := digits(s, isDigit)
	whole := n
	if n+1 < len(s) && s[n] == '.' && isDigit(s[n+1]) {
		n++
		n += digits(s[n:], isDigit)
	}
	if n < len(s) && (s[n] == 'e' || s[n] == 'E') {
		at := n + 1
		if at < len(s) && (s[at] == '+' || s[at] == '-') {
			at++
		}
		if exponent := digits(s[at:], isDigit); exponent > 0 {
			return at + exponent
		}
	}
	if n == whole {
		return 0
	}
	return n
}

func integerLength(s string) int {
	if s[0] == '0' && len(s) > 1 {
		var accept func(byte) bool
		switch s[1] {
		case 'b', 'B':
			accept = func(c byte) bool { return c == '0' || c == '1' }
		case 'o', 'O':
			accept = func(c byte) bool { return c >= '0' && c <= '7' }
		case 'x', 'X':
			accept = func(c byte) bool { return isDigit(c) || c|32 >= 'a' && c|32 <= 'f' }
		}
		if accept != nil {
			body := s[2:]
			skip := 0
			if strings.HasPrefix(body, "_") {
				skip = 1
			}
			if n := digits(body[skip:], accept); n > 0 {
				return 2 + skip + n
			}
		}
	}
	if s[0] == '0' {
		return digits(s, func(c byte) bool { return c == '0' })
	}
	return digits(s, isDigit)
}

func (l *lexer) readString(s string) (int, token, error) {
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case s[0]:
			text, err := unescape(s[1:i])
			if err != nil {
				return 0, token{}, atLine(err, l.line)
			}
			return i + 1, token{kind: tokenString, text: text}, nil
		}
	}
	return 0, token{}, l.fail("unexpected char %s at %d", quote(s[:1]), utf8.RuneCountInString(l.source[:l.position]))
}
