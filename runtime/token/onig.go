package token

import (
	"fmt"
	"strconv"
	"strings"
)

// Split patterns are written for Oniguruma with Ruby's syntax, which the
// reference uses, and are searched by regexp2, whose syntax is .NET's.
// translatePattern writes one as the other. What the two do not share and is
// not translated is refused, so that no pattern means something else here.
// (^ and $ are line ends in Ruby: regexp2's Multiline is set.)

// Ruby's \w: outside a set the classic superscripts and fractions of Latin-1
// count too.
const (
	wordSet  = `\p{L}\p{M}\p{Nd}\p{Nl}\p{Pc}` + "\u24b6-\u24e9\U0001f130-\U0001f149\U0001f150-\U0001f169\U0001f170-\U0001f189"
	wordChar = `[` + wordSet + "\u00b2\u00b3\u00b9\u00bc-\u00be]"
	wordEdge = `(?:(?<=` + wordChar + `)(?!` + wordChar + `)|(?<!` + wordChar + `)(?=` + wordChar + `))`
	wordRest = `(?:(?<=` + wordChar + `)(?=` + wordChar + `)|(?<!` + wordChar + `)(?!` + wordChar + `))`
)

// translator reads in from at on, and writes out.
type translator struct {
	in  string
	at  int
	out strings.Builder

	atom   int   // where in out the last atom begins; -1: there is none to repeat
	groups []int // where the open groups begin
}

func translatePattern(in string) (string, error) {
	t := &translator{in: in, atom: -1}
	for t.at < len(t.in) {
		if err := t.next(); err != nil {
			return "", err
		}
	}
	if len(t.groups) > 0 {
		return "", t.refuse("a group that does not end")
	}
	return t.out.String(), nil
}

func (t *translator) refuse(what string) error {
	return fmt.Errorf("%w: pattern %q at byte %d: %s", ErrUnsupported, t.in, t.at, what)
}

// put writes an atom.
func (t *translator) put(atom string) {
	t.atom = t.out.Len()
	t.out.WriteString(atom)
}

func (t *translator) has(prefix string) bool { return strings.HasPrefix(t.in[t.at:], prefix) }

// next translates one atom, quantifier, or end of a group.
func (t *translator) next() error {
	switch c := t.in[t.at]; c {
	case '\\':
		text, err := t.escape(false)
		if err != nil {
			return err
		}
		t.put(text)
	case '[':
		text, err := t.set()
		if err != nil {
			return err
		}
		t.put(text)
	case '(':
		return t.open()
	case ')':
		if len(t.groups) == 0 {
			return t.refuse("a ) without (")
		}
		t.atom = t.groups[len(t.groups)-1]
		t.groups = t.groups[:len(t.groups)-1]
		t.out.WriteByte(c)
		t.at++
	case '|', '^', '$':
		t.atom = -1
		t.out.WriteByte(c)
		t.at++
	case '*', '+', '?':
		t.at++
		return t.quantifier(string(c), true)
	case '{':
		return t.interval()
	default:
		n := 1
		for n < len(t.in)-t.at && t.in[t.at+n]&0xc0 == 0x80 {
			n++
		}
		t.put(t.in[t.at : t.at+n])
		t.at += n
	}
	return nil
}

// quantifier writes a quantifier and its mode: lazy, or possessive where Ruby
// knows that.
func (t *translator) quantifier(text string, possessive bool) error {
	if t.atom < 0 {
		return t.refuse("a quantifier after nothing or after a quantifier")
	}
	switch {
	case t.has("?"):
		text += "?"
		t.at++
	case t.has("+") && possessive:
		text += "+"
		t.at++
	case t.has("+"): // {n,m}+ repeats the interval
		out := t.out.String()
		t.out.Reset()
		t.out.WriteString(out[:t.atom] + "(?:" + out[t.atom:] + text + ")")
		text = "+"
		t.at++
	}
	t.out.WriteString(text)
	t.atom = -1
	return nil
}

// interval translates {n}, {n,}, {n,m} and {,m}; any other { is itself.
func (t *translator) interval() error {
	end := strings.IndexByte(t.in[t.at:], '}')
	low, high, comma := "", "", false
	if end > 0 {
		low, high, comma = strings.Cut(t.in[t.at+1:t.at+end], ",")
	}
	if end < 0 || low+high == "" || strings.Trim(low+high, "0123456789") != "" {
		t.put(`\{`)
		t.at++
		return nil
	}
	for _, n := range []string{low, high} {
		if v, err := strconv.Atoi(n); n != "" && (err != nil || v > 1000) {
			return t.refuse("a repetition of more than 1000")
		}
	}
	if low == "" {
		low = "0"
	}
	t.at += end + 1
	if !comma {
		if t.has("?") {
			return t.refuse("{n}?")
		}
		return t.quantifier("{"+low+"}", false)
	}
	return t.quantifier("{"+low+","+high+"}", false)
}

// open translates the beginning of a group.
func (t *translator) open() error {
	t.groups = append(t.groups, t.out.Len())
	t.atom = -1
	for _, same := range []string{"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>"} {
		if t.has(same) {
			t.out.WriteString(same)
			t.at += len(same)
			return nil
		}
	}
	switch {
	case t.has("(?i:") || t.has("(?i)"):
		t.out.WriteString(t.in[t.at : t.at+4])
		if t.at += 4; t.in[t.at-1] == ')' {
			t.groups = t.groups[:len(t.groups)-1]
		}
	case t.has("(?m:"): // Ruby's m is .NET's s
		t.out.WriteString("(?s:")
		t.at += 4
	case t.has("(?") || t.has("(*"):
		return t.refuse("this kind of group")
	default:
		t.out.WriteByte('(')
		t.at++
	}
	return nil
}

// escape translates a backslash and what belongs to it.
func (t *translator) escape(inSet bool) (string, error) {
	if t.at+1 >= len(t.in) {
		return "", t.refuse("a backslash at the end")
	}
	c := t.in[t.at+1]
	switch {
	case strings.IndexByte("dDsStnrfvae", c) >= 0, c == '0' && (t.at+2 == len(t.in) || t.in[t.at+2] < '0' || t.in[t.at+2] > '9'):
		t.at += 2
		return `\` + string(c), nil
	case c == 'p' || c == 'P':
		return t.property(c)
	case c == 'u' || c == 'x':
		return t.codePoint(c)
	case c == 'h':
		t.at += 2
		if inSet {
			return "0-9a-fA-F", nil
		}
		return "[0-9a-fA-F]", nil
	case c == 'w' && inSet:
		t.at += 2
		return wordSet, nil
	case inSet && (c < '!' || c >= 0x7f || isAlphanumeric(c)):
		return "", t.refuse("this escape inside a set")
	case c == 'w' || c == 'W' || c == 'b' || c == 'B':
		t.at += 2
		return map[byte]string{'w': wordChar, 'W': "[^" + wordChar[1:], 'b': wordEdge, 'B': wordRest}[c], nil
	case c == 'A' || c == 'z' || c == 'Z', c >= '1' && c <= '9':
		t.at += 2
		return `\` + string(c), nil
	case c >= 0x7f || isAlphanumeric(c):
		return "", t.refuse("this escape")
	}
	t.at += 2
	return literal(rune(c)), nil
}

// literal escapes a character for both inside and outside of sets.
func literal(r rune) string {
	if r < 0x80 && strings.ContainsRune(`\*+?|{}[]()^$.#-`, r) {
		return `\` + string(r)
	}
	return string(r)
}

func isAlphanumeric(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

// property translates \p{Name}, \P{Name} and \p{^Name}.
func (t *translator) property(c byte) (string, error) {
	end := strings.IndexByte(t.in[t.at:], '}')
	if !strings.HasPrefix(t.in[t.at+2:], "{") || end < 0 {
		return "", t.refuse("a property without {}")
	}
	name := t.in[t.at+3 : t.at+end]
	if strings.HasPrefix(name, "^") {
		name = name[1:]
		c ^= 'p' ^ 'P'
	}
	t.at += end + 1
	return `\` + string(c) + "{" + name + "}", nil
}

// codePoint translates \uHHHH, \xHH and \x{H...} to the character.
func (t *translator) codePoint(c byte) (string, error) {
	digits, after := "", t.at+2
	switch rest := t.in[after:]; {
	case c == 'x' && strings.HasPrefix(rest, "{"):
		end := strings.IndexByte(rest, '}')
		if end < 0 {
			return "", t.refuse("a code point that does not end")
		}
		digits, after = rest[1:end], after+end+1
	case c == 'u' && len(rest) >= 4:
		digits, after = rest[:4], after+4
	case c == 'x' && len(rest) >= 2:
		digits, after = rest[:2], after+2
	}
	v, err := strconv.ParseUint(digits, 16, 32)
	if err != nil || v > 0x10ffff || v >= 0xd800 && v < 0xe000 || c == 'x' && len(digits) == 2 && v >= 0x80 {
		return "", t.refuse("a code point that is none")
	}
	t.at = after
	return literal(rune(v)), nil
}

// set translates [...]. Sets within a set are part of it; an intersection with
// a negated set at the end is .NET's subtraction.
func (t *translator) set() (string, error) {
	var b strings.Builder
	b.WriteByte('[')
	t.at++
	if t.has("^") {
		b.WriteByte('^')
		t.at++
	}
	if err := t.members(&b); err != nil {
		return "", err
	}
	b.WriteByte(']')
	return b.String(), nil
}

// members translates what stands in a set, up to its ].
func (t *translator) members(b *strings.Builder) error {
	for first := true; ; first = false {
		switch {
		case t.at >= len(t.in):
			return t.refuse("a set that does not end")
		case t.has("]") && !first:
			t.at++
			return nil
		case t.has("&&[^"):
			t.at += len("&&[^")
			b.WriteString("-[")
			if err := t.members(b); err != nil {
				return err
			}
			b.WriteByte(']')
			if !t.has("]") {
				return t.refuse("an intersection before the end of a set")
			}
			t.at++
			return nil
		case t.has("&&"), t.has("[:"), t.has("[^"):
			return t.refuse("this inside a set")
		case t.has("["):
			if strings.HasSuffix(b.String(), "-") {
				return t.refuse("a set after a -")
			}
			t.at++
			if err := t.members(b); err != nil {
				return err
			}
		case t.has(`\`):
			text, err := t.escape(true)
			if err != nil {
				return err
			}
			b.WriteString(text)
		case t.has("]"): // the first member
			b.WriteString(`\]`)
			t.at++
		default:
			b.WriteByte(t.in[t.at])
			t.at++
		}
	}
}
