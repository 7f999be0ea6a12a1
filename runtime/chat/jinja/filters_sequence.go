package jinja

import (
	"sort"
	"strings"
)

func filterFirst(m *machine, self Value, _ arguments) (Value, error) {
	it, err := m.iterate(self)
	if err != nil {
		return nil, err
	}
	item, ok, err := it.next()
	if err == nil && !ok {
		return undefinedHint("No first item, sequence was empty."), nil
	}
	return item, err
}

// reversible is what reversed() takes.
func (m *machine) reversible(v Value) ([]Value, bool, error) {
	switch v.(type) {
	case *List, *Tuple, *Dict, rangeValue, dictView, string, Markup, *undefined:
		items, err := m.items(v)
		return items, true, err
	}
	return nil, false, nil
}

func filterLast(m *machine, self Value, _ arguments) (Value, error) {
	items, ok, err := m.reversible(self)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, typeError("'%s' object is not reversible", typeName(self))
	}
	if len(items) == 0 {
		return undefinedHint("No last item, sequence was empty."), nil
	}
	return items[len(items)-1], nil
}

func filterReverse(m *machine, self Value, _ arguments) (Value, error) {
	if s, ok := text(self); ok {
		points := []rune(s)
		reverse(points)
		return like(self, string(points)), m.churn(4 * len(s))
	}
	items, direct, err := m.reversible(self)
	if err != nil {
		return nil, err
	}
	if !direct {
		if items, err = m.items(self); err != nil {
			if !iterable(self) {
				return nil, raise("FilterArgumentError", "argument must be iterable")
			}
			return nil, err
		}
	}
	reversed := append([]Value(nil), items...)
	reverse(reversed)
	if err := m.churn(valueBytes * len(items)); err != nil {
		return nil, err
	}
	if !direct {
		return &List{Items: reversed}, nil
	}
	it := generateList(func() ([]Value, error) { return reversed, nil })
	it.kind = typeName(self) + "_reverseiterator"
	return it, nil
}

func filterList(m *machine, self Value, _ arguments) (Value, error) {
	items, err := m.items(self)
	if err != nil {
		return nil, err
	}
	return &List{Items: items}, nil
}

func filterItems(m *machine, self Value, _ arguments) (Value, error) {
	return generateList(func() ([]Value, error) {
		switch d := self.(type) {
		case *undefined:
			return nil, nil
		case *Dict:
			return m.items(dictView{kind: "dict_items", dict: d})
		}
		return nil, typeError("Can only get item pairs from a mapping.")
	}), nil
}

func filterJoin(m *machine, self Value, a arguments) (Value, error) {
	separator, err := m.str(a.or(0, ""))
	if err != nil {
		return nil, err
	}
	getter, err := makeGetter(a.or(1, nil), nil)
	if err != nil {
		return nil, err
	}
	items, err := m.items(self)
	if err != nil {
		return nil, err
	}
	parts := make([]string, len(items))
	size := 0
	for i, item := range items {
		if item, err = getter(m, item); err != nil {
			return nil, err
		}
		if parts[i], err = m.str(item); err != nil {
			return nil, err
		}
		size += len(parts[i]) + len(separator)
	}
	return m.joinTexts(parts, separator, size)
}

// getter reads an attribute path such as "function.name" or "0.id".
type getter func(m *machine, item Value) (Value, error)

func makeGetter(path Value, fallback Value) (getter, error) {
	var parts []Value
	switch path := path.(type) {
	case nil:
	case string, Markup:
		s, _ := text(path)
		for _, part := range strings.Split(s, ".") {
			if stringIsDigits(part) {
				i, ok := parseInteger(part, 10)
				if ok {
					parts = append(parts, i)
					continue
				}
			}
			parts = append(parts, part)
		}
	default:
		parts = []Value{path}
	}
	return func(m *machine, item Value) (Value, error) {
		for _, part := range parts {
			var err error
			if item, err = m.index(item, part); err != nil {
				return nil, err
			}
			if _, missing := item.(*undefined); missing && fallback != nil {
				item = fallback
			}
		}
		return item, nil
	}, nil
}

func stringIsDigits(s string) bool {
	for i := 0; i < len(s); i++ {
		if !isDigit(s[i]) {
			return false
		}
	}
	return s != ""
}

// folded makes a getter that ignores case unless it is told not to.
func folded(get getter, caseSensitive bool) getter {
	if caseSensitive {
		return get
	}
	return func(m *machine, item Value) (Value, error) {
		value, err := get(m, item)
		if err != nil {
			return nil, err
		}
		if s, ok := text(value); ok {
			return lower(s), m.churn(len(s))
		}
		return value, nil
	}
}

// sortBy sorts items by their keys, keeping the order of equal ones.
func (m *machine) sortBy(items []Value, key getter, descending bool) ([]Value, error) {
	type entry struct{ key, item Value }
	if err := m.churn(3 * valueBytes * len(items)); err != nil {
		return nil, err
	}
	entries := make([]entry, len(items))
	for i, item := range items {
		k, err := key(m, item)
		if err != nil {
			return nil, err
		}
		entries[i] = entry{k, item}
	}
	var failed error
	sort.SliceStable(entries, func(i, j int) bool {
		if failed != nil {
			return false
		}
		a, b := entries[i].key, entries[j].key
		if descending {
			a, b = b, a
		}
		order, _, err := m.order("<", a, b, 0)
		failed = err
		return order < 0
	})
	sorted := make([]Value, len(items))
	for i, e := range entries {
		sorted[i] = e.item
	}
	return sorted, failed
}

func filterSort(m *machine, self Value, a arguments) (Value, error) {
	items, err := m.items(self)
	if err != nil {
		return nil, err
	}
	var paths []Value
	if s, ok := text(a.or(2, nil)); ok {
		for _, path := range strings.Split(s, ",") {
			paths = append(paths, path)
		}
	} else {
		paths = []Value{a.or(2, nil)}
	}
	getters := make([]getter, len(paths))
	for i, path := range paths {
		get, err := makeGetter(path, nil)
		if err != nil {
			return nil, err
		}
		getters[i] = folded(get, truth(a.or(1, false)))
	}
	sorted, err := m.sortBy(items, func(m *machine, item Value) (Value, error) {
		keys := make([]Value, len(getters))
		for i, get := range getters {
			var err error
			if keys[i], err = get(m, item); err != nil {
				return nil, err
			}
		}
		return &List{Items: keys}, nil
	}, truth(a.or(0, false)))
	return &List{Items: sorted}, err
}

func filterDictsort(m *machine, self Value, a arguments) (Value, error) {
	by, err := a.text(1, "key")
	if err != nil {
		return nil, err
	}
	place := map[string]int{"key": 0, "value": 1}
	at, ok := place[by]
	if !ok {
		return nil, raise("FilterArgumentError", "You can only sort by either \"key\" or \"value\"")
	}
	d, ok := self.(*Dict)
	if !ok {
		if u, missing := self.(*undefined); missing {
			return nil, u.fail()
		}
		return nil, raise("AttributeError", "'%s' object has no attribute 'items'", typeName(self))
	}
	items, err := m.items(dictView{kind: "dict_items", dict: d})
	if err != nil {
		return nil, err
	}
	key := folded(func(_ *machine, item Value) (Value, error) {
		return item.(*Tuple).Items[at], nil
	}, truth(a.or(0, false)))
	sorted, err := m.sortBy(items, key, truth(a.or(2, false)))
	return &List{Items: sorted}, err
}

func filterUnique(m *machine, self Value, a arguments) (Value, error) {
	get, err := makeGetter(a.or(1, nil), nil)
	if err != nil {
		return nil, err
	}
	key := folded(get, truth(a.or(0, false)))
	var it *iterator
	seen := map[any]bool{}
	return generate(func() (Value, bool, error) {
		if it == nil {
			var err error
			if it, err = m.iterate(self); err != nil {
				return nil, false, err
			}
		}
		for {
			item, ok, err := it.next()
			if err != nil || !ok {
				return nil, false, err
			}
			k, err := key(m, item)
			if err != nil {
				return nil, false, err
			}
			hash, err := m.hash(k)
			if err != nil {
				return nil, false, err
			}
			if err := m.churn(4 * valueBytes); err != nil {
				return nil, false, err
			}
			if !seen[hash] {
				seen[hash] = true
				return item, true, nil
			}
		}
	}), nil
}

func extreme(name, operator string) method {
	return func(m *machine, self Value, a arguments) (Value, error) {
		get, err := makeGetter(a.or(1, nil), nil)
		if err != nil {
			return nil, err
		}
		key := folded(get, truth(a.or(0, false)))
		items, err := m.items(self)
		if err != nil {
			return nil, err
		}
		if len(items) == 0 {
			return undefinedHint("No aggregated item, sequence was empty."), nil
		}
		best, bestKey := items[0], Value(nil)
		for i, item := range items {
			k, err := key(m, item)
			if err != nil {
				return nil, err
			}
			if i == 0 {
				bestKey = k
				continue
			}
			better, err := m.compareWith(operator, k, bestKey)
			if err != nil {
				return nil, err
			}
			if better {
				best, bestKey = item, k
			}
		}
		return best, nil
	}
}

func filterSum(m *machine, self Value, a arguments) (Value, error) {
	get, err := makeGetter(a.or(0, nil), nil)
	if err != nil {
		return nil, err
	}
	items, err := m.items(self)
	if err != nil {
		return nil, err
	}
	total := a.or(1, int64(0))
	if _, ok := text(total); ok {
		return nil, typeError("sum() can't sum strings [use ''.join(seq) instead]")
	}
	for _, item := range items {
		if item, err = get(m, item); err != nil {
			return nil, err
		}
		if total, err = m.arithmetic("+", total, item); err != nil {
			return nil, err
		}
	}
	return total, nil
}

func filterBatch(m *machine, self Value, a arguments) (Value, error) {
	size, err := a.integer(0, 0)
	if err != nil {
		return nil, err
	}
	return generateList(func() ([]Value, error) {
		items, err := m.items(self)
		if err != nil {
			return nil, err
		}
		if size <= 0 { // Python would give nothing but the whole, after an empty batch
			size = max(int64(len(items)), 1)
		}
		var batches []Value
		for len(items) > 0 {
			n := min(size, int64(len(items)))
			batch := append([]Value(nil), items[:n]...)
			items = items[n:]
			if fill := a.or(1, nil); fill != nil && n < size {
				if err := m.churn(valueBytes * int(min(size, m.limits.OutputBytes))); err != nil {
					return nil, err
				}
				for int64(len(batch)) < size {
					batch = append(batch, fill)
				}
			}
			batches = append(batches, &List{Items: batch})
		}
		return batches, nil
	}), nil
}

func filterSlice(m *machine, self Value, a arguments) (Value, error) {
	slices, err := a.integer(0, 0)
	if err != nil {
		return nil, err
	}
	return generateList(func() ([]Value, error) {
		items, err := m.items(self)
		if err != nil {
			return nil, err
		}
		if slices == 0 {
			return nil, raise("ZeroDivisionError", "integer division or modulo by zero")
		}
		n := int64(len(items))
		if slices > maxRange {
			return nil, limitError("more than %d slices", maxRange)
		}
		var parts []Value
		at := int64(0)
		for i := range max(slices, 0) {
			size := n / slices
			if i < n%slices {
				size++
			}
			part := append([]Value(nil), items[at:at+size]...)
			at += size
			if fill := a.or(1, nil); fill != nil && i >= n%slices {
				part = append(part, fill)
			}
			parts = append(parts, &List{Items: part})
		}
		return parts, m.churn(valueBytes * (len(items) + len(parts)))
	}), nil
}

func filterGroupBy(m *machine, self Value, a arguments) (Value, error) {
	get, err := makeGetter(a.values[0], a.or(1, nil))
	if err != nil {
		return nil, err
	}
	caseSensitive := truth(a.or(2, false))
	key := folded(get, caseSensitive)
	items, err := m.items(self)
	if err != nil {
		return nil, err
	}
	sorted, err := m.sortBy(items, key, false)
	if err != nil {
		return nil, err
	}
	var groups []Value
	var members *List
	var last Value
	for _, item := range sorted {
		k, err := key(m, item)
		if err != nil {
			return nil, err
		}
		same := false
		if members != nil {
			if same, err = m.equal(k, last); err != nil {
				return nil, err
			}
		}
		if !same {
			shown, err := get(m, item)
			if err != nil {
				return nil, err
			}
			members = &List{}
			groups = append(groups, &groupTuple{Tuple: Tuple{Items: []Value{shown, members}}})
			last = k
		}
		members.Items = append(members.Items, item)
	}
	for i, group := range groups {
		groups[i] = &group.(*groupTuple).Tuple
	}
	return &List{Items: groups}, m.churn(2 * valueBytes * len(items))
}

type groupTuple struct{ Tuple }
