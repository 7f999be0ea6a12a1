package jinja

import (
	"math"
	"math/big"
	"strconv"
)

// methods are those of Python's own types that read and don't write.
var methods = map[string]map[string]*builtin{
	"str":   stringMethods,
	"list":  sequenceMethods,
	"tuple": sequenceMethods,
	"dict": {
		"keys":   {name: "keys", call: view("dict_keys")},
		"values": {name: "values", call: view("dict_values")},
		"items":  {name: "items", call: view("dict_items")},
		"get":    {name: "get", parameters: []string{"key", "default"}, required: 1, only: true, call: dictGet},
		"copy": {name: "copy", call: func(m *machine, self Value, _ arguments) (Value, error) {
			return self, nil // nothing changes a dict, so it is its own copy
		}},
	},
	"range": sequenceMethods,
	"int": {
		"bit_length": {name: "bit_length", call: func(_ *machine, self Value, _ arguments) (Value, error) {
			i, _ := bigInteger(self)
			return int64(i.BitLen()), nil
		}},
		"conjugate": {name: "conjugate", call: itself},
	},
	"float": {
		"is_integer": {name: "is_integer", call: func(_ *machine, self Value, _ arguments) (Value, error) {
			f := self.(float64)
			return f == math.Trunc(f) && !math.IsInf(f, 0), nil
		}},
		"conjugate": {name: "conjugate", call: itself},
	},
}

func itself(_ *machine, self Value, _ arguments) (Value, error) { return self, nil }

func view(kind string) func(*machine, Value, arguments) (Value, error) {
	return func(_ *machine, self Value, _ arguments) (Value, error) {
		return dictView{kind: kind, dict: self.(*Dict)}, nil
	}
}

func dictGet(m *machine, self Value, a arguments) (Value, error) {
	value, ok, err := m.get(self.(*Dict), a.values[0])
	if err != nil || ok {
		return value, err
	}
	return a.or(1, nil), nil
}

var sequenceMethods = map[string]*builtin{
	"count": {name: "count", parameters: []string{"value"}, required: 1, only: true, call: func(m *machine, self Value, a arguments) (Value, error) {
		items, err := m.items(self)
		if err != nil {
			return nil, err
		}
		n := int64(0)
		for _, item := range items {
			same, err := m.equal(item, a.values[0])
			if err != nil {
				return nil, err
			}
			if same {
				n++
			}
		}
		return n, nil
	}},
	"index": {name: "index", parameters: []string{"value", "start", "stop"}, required: 1, only: true, call: sequenceIndex},
	"copy":  {name: "copy", call: itself},
}

func sequenceIndex(m *machine, self Value, a arguments) (Value, error) {
	items, err := m.items(self)
	if err != nil {
		return nil, err
	}
	start, stop, err := a.window(1, int64(len(items)))
	if err != nil {
		return nil, err
	}
	for i := start; i < stop; i++ {
		same, err := m.equal(items[i], a.values[0])
		if err != nil {
			return nil, err
		}
		if same {
			return i, nil
		}
	}
	shown, err := m.repr(a.values[0])
	if err != nil {
		return nil, err
	}
	return nil, valueError("%s is not in list", shown)
}

// window reads the optional start and stop of find, count and index.
func (a arguments) window(i int, n int64) (start, stop int64, err error) {
	var ends [3]int64
	var given [3]bool
	for k := range 2 {
		if !a.has(i+k) || a.values[i+k] == nil {
			continue
		}
		given[k] = true
		if ends[k], err = a.integer(i+k, 0); err != nil {
			return 0, 0, err
		}
	}
	ends[2] = 1
	start, stop, _ = clampLoose(n, ends, given)
	return start, stop, nil
}

// clampLoose is clamp, but a start beyond the end stays there: "".find("", 1)
// is -1 in Python.
func clampLoose(n int64, ends [3]int64, given [3]bool) (start, stop, step int64) {
	start, stop, step = clamp(n, ends, given)
	if given[0] && ends[0] > n {
		start = ends[0]
	}
	return start, stop, step
}

// parseInteger is int(text, base).
func parseInteger(s string, base int) (Value, bool) {
	digits := trimSpace(s)
	if len(digits) > 4300 {
		return nil, false
	}
	clean, ok := dropUnderscores(digits)
	if !ok {
		return nil, false
	}
	i, ok := new(big.Int).SetString(prefixed(clean, base))
	if !ok {
		return nil, false
	}
	return normalInteger(i), true
}

// prefixed takes away the 0x, 0o or 0b that Python allows before digits of that
// base.
func prefixed(s string, base int) (string, int) {
	sign := ""
	body := s
	if body != "" && (body[0] == '-' || body[0] == '+') {
		sign, body = body[:1], body[1:]
	}
	if body == "" || body[0] == '-' || body[0] == '+' {
		return "", 10
	}
	marks := map[int]byte{2: 'b', 8: 'o', 16: 'x'}
	if len(body) > 2 && body[0] == '0' && marks[base] != 0 && body[1]|32 == marks[base] {
		body = body[2:]
	}
	return sign + body, base
}

// dropUnderscores takes away single underscores between digits.
func dropUnderscores(s string) (string, bool) {
	clean := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '_' {
			clean = append(clean, s[i])
			continue
		}
		if i == 0 || i+1 == len(s) || s[i-1] == '_' || !isAlphanumeric(s[i-1]) || !isAlphanumeric(s[i+1]) {
			return "", false
		}
	}
	return string(clean), true
}

func isAlphanumeric(c byte) bool { return isDigit(c) || c|32 >= 'a' && c|32 <= 'z' }

// parseFloat is float(text).
func parseFloat(s string) (float64, bool) {
	clean, ok := dropUnderscores(trimSpace(s))
	if !ok || clean == "" {
		return 0, false
	}
	for i := 0; i < len(clean); i++ {
		if c := clean[i] | 32; c == 'x' || c == 'p' { // Go reads hexadecimal floats, Python doesn't
			return 0, false
		}
	}
	f, err := strconv.ParseFloat(clean, 64)
	if err != nil && !math.IsInf(f, 0) {
		return 0, false
	}
	return f, true
}
