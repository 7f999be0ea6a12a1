package token

import (
	"fmt"
	"unicode/utf16"
	"unicode/utf8"
)

// cursor reads JSON where encoding/json is too slow: vocabularies and merges of
// hundreds of thousands of strings. It allocates nothing but what the caller
// appends to.
type cursor struct {
	data []byte
	at   int
}

// maxJSONDepth bounds nesting, as serde_json's default does.
const maxJSONDepth = 128

func (c *cursor) fail(what string) error {
	return fmt.Errorf("%w: tokenizer.json at byte %d: %s", ErrMalformed, c.at, what)
}

// peek gives the next byte that is not white space, 0 at the end.
func (c *cursor) peek() byte {
	for c.at < len(c.data) {
		switch b := c.data[c.at]; b {
		case ' ', '\t', '\n', '\r':
			c.at++
		default:
			return b
		}
	}
	return 0
}

func (c *cursor) expect(b byte) error {
	if c.peek() != b {
		return c.fail(fmt.Sprintf("%q expected", b))
	}
	c.at++
	return nil
}

// object calls member with each key, the cursor standing before its value. The
// key is valid until member returns; member reads the value.
func (c *cursor) object(member func(key []byte) error) error {
	if err := c.expect('{'); err != nil {
		return err
	}
	if c.peek() == '}' {
		c.at++
		return nil
	}
	var key []byte
	for {
		var err error
		if key, err = c.text(key[:0]); err != nil {
			return err
		}
		if err = c.expect(':'); err != nil {
			return err
		}
		if err = member(key); err != nil {
			return err
		}
		if c.peek() != ',' {
			return c.expect('}')
		}
		c.at++
	}
}

// array calls element with the cursor before each element; element reads it.
func (c *cursor) array(element func() error) error {
	if err := c.expect('['); err != nil {
		return err
	}
	if c.peek() == ']' {
		c.at++
		return nil
	}
	for {
		if err := element(); err != nil {
			return err
		}
		if c.peek() != ',' {
			return c.expect(']')
		}
		c.at++
	}
}

// text appends the string at the cursor to dst.
func (c *cursor) text(dst []byte) ([]byte, error) {
	if c.peek() != '"' {
		return dst, c.fail("a string expected")
	}
	c.at++
	start, from := c.at, len(dst)
	for c.at < len(c.data) {
		switch b := c.data[c.at]; {
		case b == '"':
			dst = append(dst, c.data[start:c.at]...)
			c.at++
			if !utf8.Valid(dst[from:]) {
				return dst, c.fail("a string that is not UTF-8")
			}
			return dst, nil
		case b == '\\':
			dst = append(dst, c.data[start:c.at]...)
			var err error
			if dst, err = c.escape(dst); err != nil {
				return dst, err
			}
			start = c.at
		case b < ' ':
			return dst, c.fail("a control character inside a string")
		default:
			c.at++
		}
	}
	return dst, c.fail("a string that does not end")
}

// escape appends the character of the escape sequence at the cursor.
func (c *cursor) escape(dst []byte) ([]byte, error) {
	if c.at+1 >= len(c.data) {
		return dst, c.fail("a string that does not end")
	}
	b := c.data[c.at+1]
	c.at += 2
	switch b {
	case '"', '\\', '/':
		return append(dst, b), nil
	case 'b':
		return append(dst, '\b'), nil
	case 'f':
		return append(dst, '\f'), nil
	case 'n':
		return append(dst, '\n'), nil
	case 'r':
		return append(dst, '\r'), nil
	case 't':
		return append(dst, '\t'), nil
	case 'u':
		r, err := c.hex4()
		if err != nil {
			return dst, err
		}
		if utf16.IsSurrogate(r) {
			if c.at+1 >= len(c.data) || c.data[c.at] != '\\' || c.data[c.at+1] != 'u' {
				return dst, c.fail("half a surrogate pair")
			}
			c.at += 2
			second, err := c.hex4()
			if err != nil {
				return dst, err
			}
			if r = utf16.DecodeRune(r, second); r == utf8.RuneError {
				return dst, c.fail("half a surrogate pair")
			}
		}
		return utf8.AppendRune(dst, r), nil
	}
	return dst, c.fail("an unknown escape")
}

func (c *cursor) hex4() (rune, error) {
	if c.at+4 > len(c.data) {
		return 0, c.fail("a string that does not end")
	}
	var r rune
	for _, b := range c.data[c.at : c.at+4] {
		d := hexDigit(b)
		if d < 0 {
			return 0, c.fail("an unknown escape")
		}
		r = r<<4 | rune(d)
	}
	c.at += 4
	return r, nil
}

// integer reads a number without fraction or exponent, of at most 18 digits.
func (c *cursor) integer() (int64, error) {
	negative := c.peek() == '-'
	if negative {
		c.at++
	}
	start, v := c.at, int64(0)
	for c.at < len(c.data) && c.data[c.at] >= '0' && c.data[c.at] <= '9' && c.at-start < 18 {
		v = v*10 + int64(c.data[c.at]-'0')
		c.at++
	}
	if c.at == start || c.at < len(c.data) && !isJSONEnd(c.data[c.at]) {
		return 0, c.fail("an integer expected")
	}
	if negative {
		v = -v
	}
	return v, nil
}

func isJSONEnd(b byte) bool {
	switch b {
	case ',', ']', '}', ' ', '\t', '\n', '\r':
		return true
	}
	return false
}

// skip steps over a value and gives its bytes. It checks brackets and strings
// alone; who decodes the bytes checks the rest.
func (c *cursor) skip() ([]byte, error) {
	c.peek()
	start := c.at
	var open [maxJSONDepth]byte
	depth := 0
	for c.at < len(c.data) {
		switch b := c.data[c.at]; b {
		case '"':
			if err := c.skipText(); err != nil {
				return nil, err
			}
		case '{', '[':
			if depth == maxJSONDepth {
				return nil, c.fail("nested too deeply")
			}
			open[depth] = b + 2 // '}' and ']' come two after '{' and '['
			depth++
			c.at++
		case '}', ']':
			if depth == 0 {
				return c.data[start:c.at], nil
			}
			depth--
			if open[depth] != b {
				return nil, c.fail("brackets that do not match")
			}
			c.at++
			if depth == 0 {
				return c.data[start:c.at], nil
			}
		case ',':
			if depth == 0 {
				return c.data[start:c.at], nil
			}
			c.at++
		default:
			c.at++
		}
	}
	if depth > 0 {
		return nil, c.fail("the file ends inside a value")
	}
	return c.data[start:c.at], nil
}

func (c *cursor) skipText() error {
	for c.at++; c.at < len(c.data); c.at++ {
		switch c.data[c.at] {
		case '"':
			c.at++
			return nil
		case '\\':
			c.at++
		}
	}
	return c.fail("a string that does not end")
}
