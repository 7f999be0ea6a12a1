package jinja

import (
	"errors"
	"math"
	"math/big"
	"strings"
	"unicode/utf8"
)

// attribute is object.name: a method or field first, then an item.
func (m *machine) attribute(object Value, name string) (Value, error) {
	value, ok, err := m.field(object, name)
	if err != nil || ok {
		return value, err
	}
	if d, isDict := object.(*Dict); isDict {
		if value, ok := d.GetText(name); ok {
			return value, nil
		}
	}
	return undefinedField(object, name), nil
}

// index is object[key]: an item first, then a method or field.
func (m *machine) index(object, key Value) (Value, error) {
	value, ok, err := m.item(object, key)
	if err != nil || ok {
		return value, err
	}
	if name, isText := text(key); isText {
		if value, ok, err := m.field(object, name); err != nil || ok {
			return value, err
		}
		return undefinedField(object, name), nil
	}
	shown, err := m.repr(key)
	if err != nil {
		return nil, err
	}
	return undefinedHint("%s has no element %s", objectName(object), shown), nil
}

// item is object[key] without the fallback.
func (m *machine) item(object, key Value) (Value, bool, error) {
	if u, ok := object.(*undefined); ok {
		return nil, false, u.fail()
	}
	if d, ok := object.(*Dict); ok {
		value, ok, err := m.get(d, key)
		if errors.Is(err, ErrLimit) {
			return nil, false, err
		}
		return value, ok && err == nil, nil // an unhashable key is a TypeError, which Jinja swallows
	}
	at, ok := integer(key)
	if !ok {
		return nil, false, nil
	}
	place := func(n int64) bool {
		if at < 0 {
			at += n
		}
		return at >= 0 && at < n
	}
	switch o := object.(type) {
	case *List:
		if place(int64(len(o.Items))) {
			return o.Items[at], true, nil
		}
	case *Tuple:
		if place(int64(len(o.Items))) {
			return o.Items[at], true, nil
		}
	case rangeValue:
		if place(o.length()) {
			return o.at(at), true, nil
		}
	case string, Markup:
		s, _ := text(o)
		if err := m.scan(len(s)); err != nil {
			return nil, false, err
		}
		if isASCII(s) {
			if place(int64(len(s))) {
				return like(o, s[at:at+1]), true, nil
			}
			return nil, false, nil
		}
		if place(int64(utf8.RuneCountInString(s))) {
			start := byteOffset(s, at)
			_, size := utf8.DecodeRuneInString(s[start:])
			return like(o, s[start:start+size]), true, nil
		}
	}
	return nil, false, nil
}

// byteOffset tells where code point n of s begins.
func byteOffset(s string, n int64) int {
	at := 0
	for ; n > 0 && at < len(s); n-- {
		_, size := utf8.DecodeRuneInString(s[at:])
		at += size
	}
	return at
}

// field is getattr(object, name) in the sandbox.
func (m *machine) field(object Value, name string) (Value, bool, error) {
	if u, ok := object.(*undefined); ok && !dunders[name] {
		return nil, false, u.fail()
	}
	if strings.HasPrefix(name, "__") && strings.HasSuffix(name, "__") && len(name) > 4 {
		if _, ok := object.(*namespace); !ok && dunders[name] {
			return unsafe(object, name), true, nil
		}
		return nil, false, nil
	}
	switch o := object.(type) {
	case *loopState:
		return o.attribute(name)
	case *namespace:
		value, ok := o.fields.GetText(name)
		return value, ok, nil
	case *macroValue:
		value, ok := o.attribute(name)
		return value, ok, nil
	case *cycler:
		value, ok := o.attribute(name)
		return value, ok, nil
	case *function:
		if o.builtin.name == "dict" && name == "fromkeys" {
			return &function{builtin: dictFromKeys, method: true}, true, nil
		}
		return nil, false, nil
	case int64, bool, float64, *big.Int:
		return m.numberField(o, name)
	}
	kind := typeName(object)
	if kind == "Markup" {
		kind = "str"
	}
	if mutators[kind][name] {
		return unsafe(object, name), true, nil
	}
	if method, ok := m.methods[kind][name]; ok {
		return &function{builtin: method, self: object, method: true}, true, nil
	}
	return nil, false, nil
}

// unsafe is what the sandbox gives for what it hides.
func unsafe(object Value, name string) *undefined {
	return &undefined{unsafe: true, object: object, name: name}
}

// dunders are the double-underscore fields that every Python object has.
var dunders = map[string]bool{
	"__class__": true, "__init__": true, "__doc__": true, "__dict__": true, "__module__": true,
	"__str__": true, "__repr__": true, "__hash__": true, "__eq__": true, "__ne__": true,
	"__getattribute__": true, "__setattr__": true, "__delattr__": true, "__dir__": true,
	"__new__": true, "__reduce__": true, "__reduce_ex__": true, "__sizeof__": true,
	"__subclasshook__": true, "__init_subclass__": true, "__format__": true,
	"__lt__": true, "__le__": true, "__gt__": true, "__ge__": true,
}

// mutators are the methods that ImmutableSandboxedEnvironment hides.
var mutators = map[string]map[string]bool{
	"list": {"append": true, "clear": true, "pop": true, "reverse": true, "insert": true, "sort": true, "extend": true, "remove": true},
	"dict": {"clear": true, "pop": true, "popitem": true, "setdefault": true, "update": true},
}

func (m *machine) numberField(v Value, name string) (Value, bool, error) {
	_, isFloat := v.(float64)
	switch name {
	case "real":
		return v, true, nil
	case "imag":
		if isFloat {
			return 0.0, true, nil
		}
		return int64(0), true, nil
	case "numerator":
		return v, !isFloat, nil
	case "denominator":
		return int64(1), !isFloat, nil
	}
	kind := "int"
	if isFloat {
		kind = "float"
	}
	if method, ok := m.methods[kind][name]; ok {
		return &function{builtin: method, self: v, method: true}, true, nil
	}
	return nil, false, nil
}

func (v *macroValue) attribute(name string) (Value, bool) {
	switch name {
	case "name":
		return v.macro.name, true
	case "arguments":
		names := make([]Value, len(v.macro.parameters))
		for i, parameter := range v.macro.parameters {
			names[i] = parameter.name
		}
		return &Tuple{Items: names}, true
	case "caller":
		return v.macro.usesCaller, true
	case "catch_kwargs":
		return v.macro.usesKeywords, true
	case "catch_varargs":
		return v.macro.usesVariadic, true
	}
	return nil, false
}

// evaluateSlice is object[start:stop:step]. Unlike an index it has no fallback:
// what can't be sliced is an error, as the compiled template's would be.
func (m *machine) evaluateSlice(object Value, e slice, s *scope) (Value, error) {
	var ends [3]int64
	var given [3]bool
	var bounds [3]Value
	for i, part := range []expression{e.start, e.stop, e.step} {
		if part == nil {
			continue
		}
		var err error
		if bounds[i], err = m.evaluate(part, s); err != nil {
			return nil, err
		}
	}
	switch o := object.(type) {
	case string, Markup, *List, *Tuple, rangeValue:
	case *undefined:
		return nil, o.fail()
	case *Dict:
		return nil, typeError("unhashable type: 'slice'")
	default:
		return nil, typeError("'%s' object is not subscriptable", typeName(object))
	}
	for i, bound := range bounds {
		if bound == nil {
			continue
		}
		given[i] = true
		switch b := bound.(type) {
		case bool, int64:
			ends[i], _ = integer(b)
		case *big.Int:
			ends[i] = math.MaxInt32
			if b.Sign() < 0 {
				ends[i] = -math.MaxInt32
			}
		default:
			return nil, typeError("slice indices must be integers or None or have an __index__ method")
		}
	}
	if given[2] && ends[2] == 0 {
		return nil, valueError("slice step cannot be zero")
	}
	if !given[2] {
		ends[2] = 1
	}
	return m.slice(object, ends, given)
}

// clamp is Python's slice.indices.
func clamp(n int64, ends [3]int64, given [3]bool) (start, stop, step int64) {
	step = ends[2]
	low, high := int64(0), n
	if step < 0 {
		low, high = -1, n-1
	}
	place := func(i int, unset int64) int64 {
		if !given[i] {
			return unset
		}
		v := ends[i]
		if v < 0 {
			v = max(v+n, low)
		}
		return min(v, high)
	}
	if step < 0 {
		return place(0, high), place(1, low), step
	}
	return place(0, low), place(1, high), step
}

func (m *machine) slice(object Value, ends [3]int64, given [3]bool) (Value, error) {
	if s, ok := text(object); ok {
		if err := m.churn(len(s)); err != nil {
			return nil, err
		}
	}
	n, err := length(object)
	if err != nil {
		return nil, err
	}
	start, stop, step := clamp(n, ends, given)
	picked := rangeValue{start: start, stop: stop, step: step}
	count := picked.length()
	pick := func(items []Value) ([]Value, error) {
		if step == 1 {
			if count == 0 {
				return nil, nil
			}
			return items[start:stop:stop], m.churn(0)
		}
		if err := m.churn(valueBytes * int(count)); err != nil {
			return nil, err
		}
		some := make([]Value, count)
		for i := range some {
			some[i] = items[picked.at(int64(i))]
		}
		return some, nil
	}
	switch o := object.(type) {
	case *List:
		items, err := pick(o.Items)
		return &List{Items: items}, err
	case *Tuple:
		items, err := pick(o.Items)
		return &Tuple{Items: items}, err
	case rangeValue:
		return rangeValue{start: o.at(start), stop: o.at(start) + count*o.step*step, step: o.step * step}, nil
	}
	s, _ := text(object)
	if step == 1 {
		if count == 0 {
			return like(object, ""), nil
		}
		if int(n) == len(s) {
			return like(object, s[start:stop]), nil
		}
		from := byteOffset(s, start)
		return like(object, s[from:from+byteOffset(s[from:], stop-start)]), nil
	}
	points := []rune(s)
	var b strings.Builder
	for i := range count {
		b.WriteRune(points[picked.at(i)])
	}
	return like(object, b.String()), nil
}
