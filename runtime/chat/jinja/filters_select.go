package jinja

// filterMap is map(attribute=..., default=...) or map('filter', arguments).
func filterMap(m *machine, self Value, a arguments) (Value, error) {
	var it *iterator
	var change getter
	return generate(func() (Value, bool, error) {
		if it == nil {
			if !truth(self) {
				return nil, false, nil
			}
			var err error
			if change, err = m.mapping(a); err != nil {
				return nil, false, err
			}
			if it, err = m.iterate(self); err != nil {
				return nil, false, err
			}
		}
		item, ok, err := it.next()
		if err != nil || !ok {
			return nil, false, err
		}
		value, err := change(m, item)
		return value, err == nil, err
	}), nil
}

func (m *machine) mapping(a arguments) (getter, error) {
	if len(a.rest) == 0 {
		var path, fallback Value
		found := false
		for _, keyword := range a.keywords {
			switch keyword.name {
			case "attribute":
				path, found = keyword.value, true
			case "default":
				fallback = keyword.value
			default:
				return nil, raise("FilterArgumentError", "Unexpected keyword argument %s", quote(keyword.name))
			}
		}
		if !found {
			return nil, raise("FilterArgumentError", "map requires a filter argument")
		}
		return makeGetter(path, fallback)
	}
	name, _ := text(a.rest[0])
	given := callArguments{positional: a.rest[1:], keywords: a.keywords}
	return func(m *machine, item Value) (Value, error) {
		filter, ok := m.filters[name]
		if !ok {
			return nil, raise("TemplateRuntimeError", "No filter named %s.", quote(name))
		}
		return filter.invoke(m, item, given)
	}, nil
}

// choose is select, reject, selectattr and rejectattr.
func choose(byAttribute, keep bool) method {
	return func(m *machine, self Value, a arguments) (Value, error) {
		var it *iterator
		var holds func(item Value) (bool, error)
		return generate(func() (Value, bool, error) {
			if it == nil {
				if !truth(self) {
					return nil, false, nil
				}
				var err error
				if holds, err = m.condition(a, byAttribute); err != nil {
					return nil, false, err
				}
				if it, err = m.iterate(self); err != nil {
					return nil, false, err
				}
			}
			for {
				item, ok, err := it.next()
				if err != nil || !ok {
					return nil, false, err
				}
				held, err := holds(item)
				if err != nil || held == keep {
					return item, err == nil, err
				}
			}
		}), nil
	}
}

func (m *machine) condition(a arguments, byAttribute bool) (func(item Value) (bool, error), error) {
	get, err := makeGetter(nil, nil)
	rest := a.rest
	if byAttribute {
		if len(rest) == 0 {
			return nil, raise("FilterArgumentError", "Missing parameter for attribute name")
		}
		get, err = makeGetter(rest[0], nil)
		rest = rest[1:]
	}
	if err != nil {
		return nil, err
	}
	if len(rest) == 0 {
		return func(item Value) (bool, error) {
			value, err := get(m, item)
			return truth(value), err
		}, nil
	}
	name, _ := text(rest[0])
	given := callArguments{positional: rest[1:], keywords: a.keywords}
	return func(item Value) (bool, error) {
		value, err := get(m, item)
		if err != nil {
			return false, err
		}
		test, ok := m.tests[name]
		if !ok {
			return false, raise("TemplateRuntimeError", "No test named %s.", quote(name))
		}
		held, err := test.invoke(m, value, given)
		return truth(held), err
	}, nil
}
