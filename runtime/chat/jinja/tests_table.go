package jinja

import (
	"math/big"
	"strings"
)

// tests are those of jinja2/tests.py.
var tests = map[string]*builtin{
	"odd":         {name: "odd", call: remainder(2, 1)},
	"even":        {name: "even", call: remainder(2, 0)},
	"divisibleby": {name: "divisibleby", parameters: []string{"num"}, required: 1, call: testDivisible},
	"defined":     predicate("defined", func(v Value) bool { _, missing := v.(*undefined); return !missing }),
	"undefined":   predicate("undefined", func(v Value) bool { _, missing := v.(*undefined); return missing }),
	"filter":      {name: "filter", call: func(m *machine, self Value, _ arguments) (Value, error) { return named(m.filters, self), nil }},
	"test":        {name: "test", call: func(m *machine, self Value, _ arguments) (Value, error) { return named(m.tests, self), nil }},
	"none":        predicate("none", func(v Value) bool { return v == nil }),
	"boolean":     predicate("boolean", func(v Value) bool { _, ok := v.(bool); return ok }),
	"false":       predicate("false", func(v Value) bool { return v == false }),
	"true":        predicate("true", func(v Value) bool { return v == true }),
	"integer":     predicate("integer", isInteger),
	"float":       predicate("float", func(v Value) bool { _, ok := v.(float64); return ok }),
	"lower":       {name: "lower", call: testCase(stringMethods["islower"])},
	"upper":       {name: "upper", call: testCase(stringMethods["isupper"])},
	"string":      predicate("string", func(v Value) bool { _, ok := text(v); return ok }),
	"mapping":     predicate("mapping", func(v Value) bool { _, ok := v.(*Dict); return ok }),
	"number":      predicate("number", isNumber),
	"sequence":    predicate("sequence", isSequence),
	"iterable":    predicate("iterable", iterable),
	"callable":    predicate("callable", isCallable),
	"sameas":      {name: "sameas", parameters: []string{"other"}, required: 1, call: testSame},
	"escaped":     predicate("escaped", func(v Value) bool { _, ok := v.(Markup); return ok }),
	"in":          {name: "in", parameters: []string{"seq"}, required: 1, call: comparing("in")},

	"==": ordering("=="), "eq": ordering("=="), "equalto": ordering("=="),
	"!=": ordering("!="), "ne": ordering("!="),
	">": ordering(">"), "gt": ordering(">"), "greaterthan": ordering(">"),
	">=": ordering(">="), "ge": ordering(">="),
	"<": ordering("<"), "lt": ordering("<"), "lessthan": ordering("<"),
	"<=": ordering("<="), "le": ordering("<="),
}

func predicate(name string, holds func(Value) bool) *builtin {
	return &builtin{name: name, call: func(_ *machine, self Value, _ arguments) (Value, error) { return holds(self), nil }}
}

func comparing(operator string) method {
	return func(m *machine, self Value, a arguments) (Value, error) {
		return m.compareWith(operator, self, a.values[0])
	}
}

func ordering(operator string) *builtin {
	return &builtin{name: operator, parameters: []string{"other"}, required: 1, only: true, call: comparing(operator)}
}

func named(table map[string]*builtin, v Value) bool {
	name, ok := text(v)
	_, found := table[name]
	return ok && found
}

func remainder(divisor, rest int64) method {
	return func(m *machine, self Value, _ arguments) (Value, error) {
		value, err := m.arithmetic("%", self, divisor)
		if err != nil {
			return nil, err
		}
		return m.equal(value, rest)
	}
}

func testDivisible(m *machine, self Value, a arguments) (Value, error) {
	value, err := m.arithmetic("%", self, a.values[0])
	if err != nil {
		return nil, err
	}
	return m.equal(value, int64(0))
}

func testCase(holds *builtin) method {
	return func(m *machine, self Value, _ arguments) (Value, error) {
		s, err := m.str(self)
		if err != nil {
			return nil, err
		}
		return holds.call(m, s, arguments{})
	}
}

func isInteger(v Value) bool {
	switch v.(type) {
	case int64, *big.Int:
		return true
	}
	return false
}

func isSequence(v Value) bool {
	switch v.(type) {
	case string, Markup, *List, *Tuple, *Dict, rangeValue, *undefined:
		return true
	}
	return false
}

func iterable(v Value) bool {
	switch v.(type) {
	case *List, *Tuple, *Dict, string, Markup, rangeValue, dictView, *iterator, *loopState, *undefined:
		return true
	}
	return false
}

func isCallable(v Value) bool {
	switch v.(type) {
	case *function, *macroValue, *loopState, *joiner, *undefined:
		return true
	}
	return false
}

// testSame is "is": small things are one object in Python, containers are
// themselves alone.
func testSame(_ *machine, self Value, a arguments) (Value, error) {
	other := a.values[0]
	switch v := self.(type) {
	case string, Markup, float64, *big.Int:
		s, ok := text(self)
		t, also := text(other)
		if ok && also {
			return strings.Compare(s, t) == 0, nil
		}
		return self == other, nil
	case dictView:
		return false, nil
	default:
		return v == other, nil
	}
}
