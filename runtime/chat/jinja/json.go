package jinja

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/big"
	"sort"
	"strconv"
	"strings"
)

// DecodeJSON reads one JSON value as Python's json.loads does: objects keep the
// order of their keys, integers stay whole at any size.
func DecodeJSON(raw []byte) (Value, error) {
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.UseNumber()
	value, err := decodeValue(decoder, 0)
	if err != nil {
		return nil, err
	}
	if _, err := decoder.Token(); err != io.EOF {
		return nil, fmt.Errorf("more than one JSON value")
	}
	return value, nil
}

const maxJSONDepth = 200

func decodeValue(decoder *json.Decoder, depth int) (Value, error) {
	if depth > maxJSONDepth {
		return nil, fmt.Errorf("JSON nested deeper than %d", maxJSONDepth)
	}
	t, err := decoder.Token()
	if err != nil {
		return nil, err
	}
	switch t := t.(type) {
	case json.Number:
		return decodeNumber(t.String())
	case json.Delim:
		if t == '[' {
			return decodeList(decoder, depth)
		}
		return decodeDict(decoder, depth)
	case bool:
		return t, nil
	case string:
		return t, nil
	}
	return nil, nil
}

func decodeList(decoder *json.Decoder, depth int) (Value, error) {
	l := &List{}
	for decoder.More() {
		item, err := decodeValue(decoder, depth+1)
		if err != nil {
			return nil, err
		}
		l.Items = append(l.Items, item)
	}
	_, err := decoder.Token()
	return l, err
}

func decodeDict(decoder *json.Decoder, depth int) (Value, error) {
	d := NewDict(0)
	for decoder.More() {
		key, err := decoder.Token()
		if err != nil {
			return nil, err
		}
		value, err := decodeValue(decoder, depth+1)
		if err != nil {
			return nil, err
		}
		d.SetText(key.(string), value) // Token gives nothing but a string before a value
	}
	_, err := decoder.Token()
	return d, err
}

func decodeNumber(s string) (Value, error) {
	if strings.ContainsAny(s, ".eE") {
		f, err := strconv.ParseFloat(s, 64)
		if err != nil && !math.IsInf(f, 0) {
			return nil, err
		}
		return f, nil
	}
	if len(s) > 4300 { // sys.int_info.default_max_str_digits
		return nil, fmt.Errorf("an integer of more than 4300 digits")
	}
	i, ok := new(big.Int).SetString(s, 10)
	if !ok {
		return nil, fmt.Errorf("invalid number %q", s)
	}
	return normalInteger(i), nil
}

// jsonStyle is the arguments of json.dumps.
type jsonStyle struct {
	ascii       bool
	indent      string
	lines       bool // indent was given
	item, colon string
	sorted      bool
}

// encodeJSON is json.dumps: with ensure_ascii off and no HTML escapes.
func (m *machine) encodeJSON(b *strings.Builder, v Value, style jsonStyle, level int) error {
	if level > maxValueDepth {
		return raise("RecursionError", "maximum recursion depth exceeded while encoding a JSON object")
	}
	if err := m.spend(1); err != nil {
		return err
	}
	if int64(b.Len()) > m.limits.OutputBytes {
		return limitError("a string of more than %d bytes", m.limits.OutputBytes)
	}
	switch v := v.(type) {
	case nil:
		b.WriteString("null")
	case bool:
		b.WriteString(strconv.FormatBool(v))
	case int64:
		b.WriteString(strconv.FormatInt(v, 10))
	case *big.Int:
		b.WriteString(v.String())
	case float64:
		b.WriteString(jsonFloat(v))
	case string:
		return m.encodeText(b, v, style)
	case Markup:
		return m.encodeText(b, string(v), style)
	case *List:
		return m.encodeItems(b, v.Items, style, level)
	case *Tuple:
		return m.encodeItems(b, v.Items, style, level)
	case *Dict:
		return m.encodeDict(b, v, style, level)
	default:
		return typeError("Object of type %s is not JSON serializable", typeName(v))
	}
	return nil
}

func jsonFloat(f float64) string {
	switch s := floatText(f); s {
	case "nan":
		return "NaN"
	case "inf":
		return "Infinity"
	case "-inf":
		return "-Infinity"
	default:
		return s
	}
}

func (s jsonStyle) newline(b *strings.Builder, level int) {
	if s.lines {
		b.WriteByte('\n')
		for range level {
			b.WriteString(s.indent)
		}
	}
}

func (m *machine) encodeItems(b *strings.Builder, items []Value, style jsonStyle, level int) error {
	if len(items) == 0 {
		b.WriteString("[]")
		return nil
	}
	b.WriteByte('[')
	for i, item := range items {
		if i > 0 {
			b.WriteString(style.item)
		}
		style.newline(b, level+1)
		if err := m.encodeJSON(b, item, style, level+1); err != nil {
			return err
		}
	}
	style.newline(b, level)
	b.WriteByte(']')
	return nil
}

func (m *machine) encodeDict(b *strings.Builder, d *Dict, style jsonStyle, level int) error {
	if d.Len() == 0 {
		b.WriteString("{}")
		return nil
	}
	places := make([]int, d.Len())
	for i := range places {
		places[i] = i
	}
	if style.sorted {
		var failed error
		sort.SliceStable(places, func(i, j int) bool {
			order, _, err := m.order("<", d.keys[places[i]], d.keys[places[j]], 0)
			if err != nil && failed == nil {
				failed = err
			}
			return order < 0
		})
		if failed != nil {
			return failed
		}
	}
	b.WriteByte('{')
	for i, place := range places {
		if i > 0 {
			b.WriteString(style.item)
		}
		style.newline(b, level+1)
		key, err := jsonKey(d.keys[place])
		if err != nil {
			return err
		}
		if err := m.encodeText(b, key, style); err != nil {
			return err
		}
		b.WriteString(style.colon)
		if err := m.encodeJSON(b, d.values[place], style, level+1); err != nil {
			return err
		}
	}
	style.newline(b, level)
	b.WriteByte('}')
	return nil
}

func jsonKey(key Value) (string, error) {
	switch key := key.(type) {
	case string:
		return key, nil
	case Markup:
		return string(key), nil
	case nil:
		return "null", nil
	case bool:
		return strconv.FormatBool(key), nil
	case int64:
		return strconv.FormatInt(key, 10), nil
	case *big.Int:
		return key.String(), nil
	case float64:
		return jsonFloat(key), nil
	}
	return "", typeError("keys must be str, int, float, bool or None, not %s", typeName(key))
}

func (m *machine) encodeText(b *strings.Builder, s string, style jsonStyle) error {
	if err := m.churn(len(s)); err != nil {
		return err
	}
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString("\\n")
		case r == '\r':
			b.WriteString("\\r")
		case r == '\t':
			b.WriteString("\\t")
		case r == '\b':
			b.WriteString("\\b")
		case r == '\f':
			b.WriteString("\\f")
		case r < 0x20 || style.ascii && r > 0x7e && r < 0x10000 || style.ascii && r == 0x7f:
			fmt.Fprintf(b, "\\u%04x", r)
		case style.ascii && r >= 0x10000:
			r -= 0x10000
			fmt.Fprintf(b, "\\u%04x\\u%04x", 0xd800+r>>10, 0xdc00+r&0x3ff)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return nil
}
