package jinja

import (
	"math"
	"math/big"
	"strings"
)

// equal is a == b.
func (m *machine) equal(a, b Value) (bool, error) { return m.equalAt(a, b, 0) }

func (m *machine) equalAt(a, b Value, depth int) (bool, error) {
	if depth > maxValueDepth {
		return false, raise("RecursionError", "maximum recursion depth exceeded in comparison")
	}
	if err := m.spend(1); err != nil {
		return false, err
	}
	if isNumber(a) && isNumber(b) {
		order, ordered := compareNumbers(a, b)
		return ordered && order == 0, nil
	}
	s, aText := text(a)
	t, bText := text(b)
	if aText || bText {
		if err := m.scan(min(len(s), len(t))); err != nil {
			return false, err
		}
		return aText && bText && s == t, nil
	}
	switch x := a.(type) {
	case nil:
		return b == nil, nil
	case *undefined:
		_, same := b.(*undefined)
		return same, nil
	case *List:
		y, same := b.(*List)
		if !same {
			return false, nil
		}
		return m.equalItems(x.Items, y.Items, depth)
	case *Tuple:
		y, same := b.(*Tuple)
		if !same {
			return false, nil
		}
		return m.equalItems(x.Items, y.Items, depth)
	case *Dict:
		y, same := b.(*Dict)
		if !same {
			return false, nil
		}
		return m.equalDicts(x, y, depth)
	case rangeValue:
		y, same := b.(rangeValue)
		if !same || x.length() != y.length() {
			return false, nil
		}
		n := x.length()
		return n == 0 || x.start == y.start && (n == 1 || x.step == y.step), nil
	case dictView:
		y, same := b.(dictView)
		return same && x.dict == y.dict && x.kind == y.kind, nil
	}
	return a == b, nil
}

func (m *machine) equalItems(a, b []Value, depth int) (bool, error) {
	if len(a) != len(b) {
		return false, nil
	}
	for i := range a {
		if same, err := m.equalAt(a[i], b[i], depth+1); err != nil || !same {
			return false, err
		}
	}
	return true, nil
}

func (m *machine) equalDicts(a, b *Dict, depth int) (bool, error) {
	if a.Len() != b.Len() {
		return false, nil
	}
	for i, key := range a.keys {
		other, ok, err := m.get(b, key)
		if err != nil || !ok {
			return false, err
		}
		if same, err := m.equalAt(a.values[i], other, depth+1); err != nil || !same {
			return false, err
		}
	}
	return true, nil
}

// compareNumbers orders two numbers; NaN has no order.
func compareNumbers(a, b Value) (order int, ordered bool) {
	x, xWhole := bigInteger(a)
	y, yWhole := bigInteger(b)
	if xWhole && yWhole {
		return x.Cmp(y), true
	}
	f, g := new(big.Float).SetPrec(256), new(big.Float).SetPrec(256)
	for _, side := range []struct {
		to    *big.Float
		value Value
	}{{f, a}, {g, b}} {
		if v, ok := side.value.(float64); ok {
			if math.IsNaN(v) {
				return 0, false
			}
			side.to.SetFloat64(v)
			continue
		}
		i, _ := bigInteger(side.value)
		side.to.SetInt(i)
	}
	return f.Cmp(g), true
}

// order is a < b and its like: it gives -1, 0 or 1, and false where there is
// none (NaN).
func (m *machine) order(operator string, a, b Value, depth int) (int, bool, error) {
	if depth > maxValueDepth {
		return 0, false, raise("RecursionError", "maximum recursion depth exceeded in comparison")
	}
	if err := m.spend(1); err != nil {
		return 0, false, err
	}
	for _, v := range []Value{a, b} {
		if u, ok := v.(*undefined); ok {
			return 0, false, u.fail()
		}
	}
	if isNumber(a) && isNumber(b) {
		order, ordered := compareNumbers(a, b)
		return order, ordered, nil
	}
	s, aText := text(a)
	t, bText := text(b)
	if aText && bText {
		return strings.Compare(s, t), true, m.scan(min(len(s), len(t)))
	}
	var x, y []Value
	switch v := a.(type) {
	case *List:
		if w, ok := b.(*List); ok {
			x, y = v.Items, w.Items
			return m.orderItems(operator, x, y, depth)
		}
	case *Tuple:
		if w, ok := b.(*Tuple); ok {
			x, y = v.Items, w.Items
			return m.orderItems(operator, x, y, depth)
		}
	}
	return 0, false, typeError("'%s' not supported between instances of '%s' and '%s'", operator, typeName(a), typeName(b))
}

func (m *machine) orderItems(operator string, a, b []Value, depth int) (int, bool, error) {
	for i := range min(len(a), len(b)) {
		same, err := m.equalAt(a[i], b[i], depth+1)
		if err != nil {
			return 0, false, err
		}
		if !same {
			return m.order(operator, a[i], b[i], depth+1)
		}
	}
	switch {
	case len(a) < len(b):
		return -1, true, nil
	case len(a) > len(b):
		return 1, true, nil
	}
	return 0, true, nil
}

// contains is item in container.
func (m *machine) contains(container, item Value) (bool, error) {
	if s, ok := text(container); ok {
		part, ok := text(item)
		if !ok {
			return false, typeError("'in <string>' requires string as left operand, not %s", typeName(item))
		}
		return strings.Contains(s, part), m.scan(len(s))
	}
	switch c := container.(type) {
	case *Dict:
		_, ok, err := m.get(c, item)
		return ok, err
	case dictView:
		if c.kind == "dict_keys" {
			_, ok, err := m.get(c.dict, item)
			return ok, err
		}
	case nil, bool, int64, *big.Int, float64, *function, *macroValue, *namespace, *cycler, *joiner:
		return false, typeError("argument of type '%s' is not iterable", typeName(container))
	}
	it, err := m.iterate(container)
	if err != nil {
		return false, err
	}
	for {
		candidate, ok, err := it.next()
		if err != nil || !ok {
			return false, err
		}
		if same, err := m.equal(candidate, item); err != nil || same {
			return same, err
		}
	}
}

// compareWith is one link of a chain of comparisons.
func (m *machine) compareWith(operator string, a, b Value) (bool, error) {
	switch operator {
	case "==":
		return m.equal(a, b)
	case "!=":
		same, err := m.equal(a, b)
		return !same, err
	case "in":
		return m.contains(b, a)
	case "not in":
		found, err := m.contains(b, a)
		return !found, err
	}
	order, ordered, err := m.order(operator, a, b, 0)
	if err != nil || !ordered {
		return false, err
	}
	switch operator {
	case "<":
		return order < 0, nil
	case "<=":
		return order <= 0, nil
	case ">":
		return order > 0, nil
	}
	return order >= 0, nil
}
