package jinja

import "strings"

// globalFunctions are the names that every template has: Jinja's own and those
// that transformers adds.
var globalFunctions = map[string]Value{
	"range":           &function{builtin: &builtin{name: "range", parameters: []string{"start", "stop", "step"}, required: 1, only: true, call: makeRange}},
	"dict":            &function{builtin: &builtin{name: "dict", parameters: []string{"mapping"}, only: true, variadic: true, call: makeDict}},
	"namespace":       &function{builtin: &builtin{name: "namespace", parameters: []string{"mapping"}, only: true, variadic: true, call: makeNamespace}},
	"cycler":          &function{builtin: &builtin{name: "cycler", variadic: true, call: makeCycler}},
	"joiner":          &function{builtin: &builtin{name: "joiner", parameters: []string{"sep"}, call: makeJoiner}},
	"lipsum":          &function{builtin: &builtin{name: "lipsum", variadic: true, call: refuseLipsum}},
	"raise_exception": &function{builtin: &builtin{name: "raise_exception", parameters: []string{"message"}, required: 1, call: raiseException}},
	"strftime_now":    &function{builtin: &builtin{name: "strftime_now", parameters: []string{"format"}, required: 1, call: strftimeNow}},
}

func makeRange(_ *machine, _ Value, a arguments) (Value, error) {
	r := rangeValue{step: 1}
	var err error
	if r.stop, err = a.integer(0, 0); err != nil {
		return nil, err
	}
	if a.has(1) {
		r.start = r.stop
		if r.stop, err = a.integer(1, 0); err != nil {
			return nil, err
		}
	}
	if r.step, err = a.integer(2, 1); err != nil {
		return nil, err
	}
	if r.step == 0 {
		return nil, valueError("range() arg 3 must not be zero")
	}
	const far = 1 << 60 // beyond it differences overflow
	if r.start > far || r.start < -far || r.stop > far || r.stop < -far || r.step > far || r.step < -far || r.length() > maxRange {
		return nil, raise("OverflowError", "Range too big. The sandbox blocks ranges larger than MAX_RANGE (%d).", maxRange)
	}
	return r, nil
}

// makeDict is dict(mapping or pairs, **keywords).
func makeDict(m *machine, _ Value, a arguments) (Value, error) {
	d := NewDict(len(a.keywords))
	if len(a.rest) > 0 {
		return nil, typeError("dict expected at most 1 argument, got %d", 1+len(a.rest))
	}
	switch given := a.or(0, nil).(type) {
	case *Dict:
		if err := m.churn(4 * valueBytes * given.Len()); err != nil {
			return nil, err
		}
		d = given.Copy()
	default:
		if !a.has(0) {
			break
		}
		items, err := m.items(given)
		if err != nil {
			return nil, err
		}
		for i, item := range items {
			entry, err := m.items(item)
			if err != nil {
				return nil, typeError("cannot convert dictionary update sequence element #%d to a sequence", i)
			}
			if len(entry) != 2 {
				return nil, valueError("dictionary update sequence element #%d has length %d; 2 is required", i, len(entry))
			}
			if err := m.set(d, entry[0], entry[1]); err != nil {
				return nil, err
			}
		}
	}
	for _, keyword := range a.keywords {
		d.SetText(keyword.name, keyword.value)
	}
	return d, nil
}

var dictFromKeys = &builtin{name: "fromkeys", parameters: []string{"iterable", "value"}, required: 1, only: true,
	call: func(m *machine, _ Value, a arguments) (Value, error) {
		keys, err := m.items(a.values[0])
		if err != nil {
			return nil, err
		}
		d := NewDict(len(keys))
		for _, key := range keys {
			if err := m.set(d, key, a.or(1, nil)); err != nil {
				return nil, err
			}
		}
		return d, m.churn(4 * valueBytes * len(keys))
	}}

func makeNamespace(m *machine, self Value, a arguments) (Value, error) {
	made, err := makeDict(m, self, a)
	if err != nil {
		return nil, err
	}
	fields := made.(*Dict)
	for _, key := range fields.keys {
		if field, ok := text(key); ok {
			if err := checkField(field); err != nil {
				return nil, err
			}
		}
	}
	return &namespace{fields: fields}, nil
}

type cycler struct {
	items    []Value
	position int
}

func makeCycler(_ *machine, _ Value, a arguments) (Value, error) {
	if len(a.rest) == 0 {
		return nil, raise("RuntimeError", "at least one item has to be provided")
	}
	return &cycler{items: a.rest}, nil
}

func (c *cycler) attribute(name string) (Value, bool) {
	method := func(name string, do func() Value) (Value, bool) {
		return &function{method: true, builtin: &builtin{name: name, call: func(*machine, Value, arguments) (Value, error) {
			return do(), nil
		}}}, true
	}
	switch name {
	case "current":
		return c.items[c.position], true
	case "next":
		return method(name, func() Value {
			item := c.items[c.position]
			c.position = (c.position + 1) % len(c.items)
			return item
		})
	case "reset":
		return method(name, func() Value {
			c.position = 0
			return nil
		})
	}
	return nil, false
}

type joiner struct {
	separator Value
	used      bool
}

func makeJoiner(_ *machine, _ Value, a arguments) (Value, error) {
	return &joiner{separator: a.or(0, ", ")}, nil
}

func (j *joiner) next() Value {
	if !j.used {
		j.used = true
		return ""
	}
	return j.separator
}

func refuseLipsum(*machine, Value, arguments) (Value, error) {
	return nil, raise("TemplateRuntimeError", "lipsum is not supported: a prompt has no random text")
}

func raiseException(m *machine, _ Value, a arguments) (Value, error) {
	message, err := m.str(a.values[0])
	if err != nil {
		return nil, err
	}
	return nil, &Error{Class: "TemplateError", Message: message, Raised: true}
}

func strftimeNow(m *machine, _ Value, a arguments) (Value, error) {
	format, err := a.text(0, "")
	if err != nil {
		return nil, err
	}
	var b strings.Builder
	strftime(&b, m.now, format)
	return b.String(), m.churn(b.Len())
}
