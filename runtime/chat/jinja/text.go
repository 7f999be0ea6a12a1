package jinja

import (
	"math/big"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// isSpace is str.isspace for one rune, and \s of Python's re.
func isSpace(r rune) bool {
	return r >= 0x1c && r <= 0x1f || unicode.IsSpace(r)
}

// quote is repr of a string.
func quote(s string) string {
	mark := byte('\'')
	if strings.Contains(s, "'") && !strings.Contains(s, "\"") {
		mark = '"'
	}
	var b strings.Builder
	b.WriteByte(mark)
	for _, r := range s {
		switch {
		case r == rune(mark) || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString("\\n")
		case r == '\r':
			b.WriteString("\\r")
		case r == '\t':
			b.WriteString("\\t")
		case r == ' ' || isPrintable(r):
			b.WriteRune(r)
		default:
			b.WriteString(asciiEscape(r))
		}
	}
	b.WriteByte(mark)
	return b.String()
}

func isPrintable(r rune) bool {
	return r != ' ' && unicode.IsPrint(r)
}

// str is Python's str(v).
func (m *machine) str(v Value) (string, error) {
	switch v := v.(type) {
	case string:
		return v, nil
	case Markup:
		return string(v), nil
	case *undefined:
		return "", nil
	}
	return m.repr(v)
}

// repr is Python's repr(v).
func (m *machine) repr(v Value) (string, error) {
	var b strings.Builder
	err := m.writeRepr(&b, v, 0)
	return b.String(), err
}

func (m *machine) writeRepr(b *strings.Builder, v Value, depth int) error {
	if depth > maxValueDepth {
		return raise("RecursionError", "maximum recursion depth exceeded while getting the repr of an object")
	}
	if err := m.spend(1); err != nil {
		return err
	}
	if int64(b.Len()) > m.limits.OutputBytes {
		return limitError("a string of more than %d bytes", m.limits.OutputBytes)
	}
	switch v := v.(type) {
	case nil:
		b.WriteString("None")
	case bool:
		if v {
			b.WriteString("True")
		} else {
			b.WriteString("False")
		}
	case int64:
		b.WriteString(strconv.FormatInt(v, 10))
	case *big.Int:
		b.WriteString(v.String())
	case float64:
		b.WriteString(floatText(v))
	case string:
		if err := m.churn(len(v)); err != nil {
			return err
		}
		b.WriteString(quote(v))
	case Markup:
		b.WriteString("Markup(" + quote(string(v)) + ")")
	case *undefined:
		b.WriteString("Undefined")
	case *List:
		return m.writeItems(b, "[", v.Items, "]", depth)
	case *Tuple:
		if len(v.Items) == 1 {
			return m.writeItems(b, "(", v.Items, ",)", depth)
		}
		return m.writeItems(b, "(", v.Items, ")", depth)
	case *Dict:
		return m.writeDict(b, v, depth)
	case *namespace:
		b.WriteString("<Namespace ")
		if err := m.writeDict(b, v.fields, depth); err != nil {
			return err
		}
		b.WriteString(">")
	case rangeValue:
		b.WriteString("range(" + strconv.FormatInt(v.start, 10) + ", " + strconv.FormatInt(v.stop, 10))
		if v.step != 1 {
			b.WriteString(", " + strconv.FormatInt(v.step, 10))
		}
		b.WriteString(")")
	case dictView:
		b.WriteString(v.kind)
		items, err := m.items(v)
		if err != nil {
			return err
		}
		return m.writeItems(b, "([", items, "])", depth)
	case *loopState:
		n, err := v.length()
		if err != nil {
			return err
		}
		b.WriteString("<LoopContext " + strconv.Itoa(v.index+1) + "/" + strconv.FormatInt(n, 10) + ">")
	case *macroValue:
		b.WriteString("<Macro " + quote(v.macro.name) + ">")
	default:
		b.WriteString("<" + typeName(v) + " object>")
	}
	return nil
}

func (m *machine) writeItems(b *strings.Builder, open string, items []Value, end string, depth int) error {
	b.WriteString(open)
	for i, item := range items {
		if i > 0 {
			b.WriteString(", ")
		}
		if err := m.writeRepr(b, item, depth+1); err != nil {
			return err
		}
	}
	b.WriteString(end)
	return nil
}

func (m *machine) writeDict(b *strings.Builder, d *Dict, depth int) error {
	b.WriteString("{")
	for i, key := range d.keys {
		if i > 0 {
			b.WriteString(", ")
		}
		if err := m.writeRepr(b, key, depth+1); err != nil {
			return err
		}
		b.WriteString(": ")
		if err := m.writeRepr(b, d.values[i], depth+1); err != nil {
			return err
		}
	}
	b.WriteString("}")
	return nil
}

var htmlEscapes = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", "'", "&#39;", "\"", "&#34;")

// escape is markupsafe.escape.
func (m *machine) escape(v Value) (Markup, error) {
	if markup, ok := v.(Markup); ok {
		return markup, nil
	}
	s, err := m.str(v)
	if err != nil {
		return "", err
	}
	return Markup(htmlEscapes.Replace(s)), m.churn(6 * len(s))
}

// add is a + b of sequences.
func (m *machine) add(a, b Value) (Value, error) {
	s, aText := text(a)
	t, bText := text(b)
	_, aMarkup := a.(Markup)
	_, bMarkup := b.(Markup)
	if aMarkup && bText || bMarkup && aText {
		left, err := m.escape(a)
		if err != nil {
			return nil, err
		}
		right, err := m.escape(b)
		if err != nil {
			return nil, err
		}
		return left + right, m.churn(len(left) + len(right))
	}
	switch {
	case aText && bText:
		if err := m.churn(len(s) + len(t)); err != nil {
			return nil, err
		}
		return s + t, nil
	case aText:
		return nil, typeError("can only concatenate str (not \"%s\") to str", typeName(b))
	}
	if x, ok := a.(*List); ok {
		y, ok := b.(*List)
		if !ok {
			return nil, typeError("can only concatenate list (not \"%s\") to list", typeName(b))
		}
		items, err := m.join(x.Items, y.Items)
		return &List{Items: items}, err
	}
	if x, ok := a.(*Tuple); ok {
		y, ok := b.(*Tuple)
		if !ok {
			return nil, typeError("can only concatenate tuple (not \"%s\") to tuple", typeName(b))
		}
		items, err := m.join(x.Items, y.Items)
		return &Tuple{Items: items}, err
	}
	return nil, typeError("unsupported operand type(s) for +: '%s' and '%s'", typeName(a), typeName(b))
}

const valueBytes = 16

func (m *machine) join(a, b []Value) ([]Value, error) {
	if err := m.churn(valueBytes * (len(a) + len(b))); err != nil {
		return nil, err
	}
	return append(append(make([]Value, 0, len(a)+len(b)), a...), b...), nil
}

// repeat is v * n.
func (m *machine) repeat(v Value, n int64) (Value, error) {
	n = max(n, 0)
	size := int64(0)
	switch v := v.(type) {
	case string:
		size = int64(len(v))
	case Markup:
		size = int64(len(v))
	case *List:
		size = int64(len(v.Items)) * valueBytes
	case *Tuple:
		size = int64(len(v.Items)) * valueBytes
	}
	if size > 0 && n > m.limits.OutputBytes/size {
		return nil, limitError("a value of more than %d bytes", m.limits.OutputBytes)
	}
	if size == 0 {
		n = 0
	}
	if err := m.churn(int(size * n)); err != nil {
		return nil, err
	}
	times := func(items []Value) []Value {
		all := make([]Value, 0, len(items)*int(n))
		for range n {
			all = append(all, items...)
		}
		return all
	}
	switch v := v.(type) {
	case string:
		return strings.Repeat(v, int(n)), nil
	case Markup:
		return Markup(strings.Repeat(string(v), int(n))), nil
	case *List:
		return &List{Items: times(v.Items)}, nil
	case *Tuple:
		return &Tuple{Items: times(v.Items)}, nil
	}
	return nil, nil
}

func isASCII(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// like gives s the string type that the original had.
func like(original Value, s string) Value {
	if _, ok := original.(Markup); ok {
		return Markup(s)
	}
	return s
}
