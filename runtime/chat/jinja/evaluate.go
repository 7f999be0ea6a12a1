package jinja

// evaluate gives an expression's value.
func (m *machine) evaluate(e expression, s *scope) (Value, error) {
	if err := m.deeper(); err != nil {
		return nil, err
	}
	defer m.shallower()
	switch e := e.(type) {
	case constant:
		return e.value, nil
	case name:
		if value, ok := s.lookup(e.name); ok {
			return value, nil
		}
		return undefinedName(e.name), nil
	case attribute:
		object, err := m.evaluate(e.object, s)
		if err != nil {
			return nil, err
		}
		return m.attribute(object, e.name)
	case index:
		return m.evaluateIndex(e, s)
	case *call:
		return m.evaluateCall(e, s, nil)
	case *filterCall:
		return m.evaluateFilter(e, s)
	case *testCall:
		return m.evaluateTest(e, s)
	case concat:
		return m.evaluateConcat(e, s)
	case compare:
		return m.evaluateCompare(e, s)
	case logical:
		left, err := m.evaluate(e.left, s)
		if err != nil || truth(left) != e.and {
			return left, err
		}
		return m.evaluate(e.right, s)
	case not:
		value, err := m.evaluate(e.operand, s)
		return !truth(value), err
	case conditional:
		return m.evaluateConditional(e, s)
	case binary:
		return m.evaluateBinary(e, s)
	case unary:
		value, err := m.evaluate(e.operand, s)
		if err != nil {
			return nil, err
		}
		return negate(value, e.operator)
	case list:
		items, err := m.evaluateAll(e.items, s)
		return &List{Items: items}, err
	case tuple:
		items, err := m.evaluateAll(e.items, s)
		return &Tuple{Items: items}, err
	case dict:
		return m.evaluateDict(e, s)
	}
	return nil, raise("TemplateRuntimeError", "an expression of type %T", e)
}

func (m *machine) evaluateAll(expressions []expression, s *scope) ([]Value, error) {
	if err := m.churn(valueBytes * len(expressions)); err != nil {
		return nil, err
	}
	values := make([]Value, len(expressions))
	for i, e := range expressions {
		var err error
		if values[i], err = m.evaluate(e, s); err != nil {
			return nil, err
		}
	}
	return values, nil
}

func (m *machine) evaluateDict(e dict, s *scope) (Value, error) {
	if err := m.churn(4 * valueBytes * len(e.pairs)); err != nil {
		return nil, err
	}
	d := NewDict(len(e.pairs))
	for _, p := range e.pairs {
		key, err := m.evaluate(p.key, s)
		if err != nil {
			return nil, err
		}
		value, err := m.evaluate(p.value, s)
		if err != nil {
			return nil, err
		}
		if err := m.set(d, key, value); err != nil {
			return nil, err
		}
	}
	return d, nil
}

func (m *machine) evaluateBinary(e binary, s *scope) (Value, error) {
	left, err := m.evaluate(e.left, s)
	if err != nil {
		return nil, err
	}
	right, err := m.evaluate(e.right, s)
	if err != nil {
		return nil, err
	}
	return m.arithmetic(e.operator, left, right)
}

func (m *machine) evaluateConditional(e conditional, s *scope) (Value, error) {
	test, err := m.evaluate(e.test, s)
	if err != nil {
		return nil, err
	}
	if truth(test) {
		return m.evaluate(e.then, s)
	}
	if e.otherwise == nil {
		return undefinedHint("the inline if-expression on line %d evaluated to false and no else section was defined.", e.line), nil
	}
	return m.evaluate(e.otherwise, s)
}

func (m *machine) evaluateConcat(e concat, s *scope) (Value, error) {
	var parts []string
	size := 0
	for _, part := range e.parts {
		value, err := m.evaluate(part, s)
		if err != nil {
			return nil, err
		}
		text, err := m.str(value)
		if err != nil {
			return nil, err
		}
		parts = append(parts, text)
		size += len(text)
	}
	return m.joinTexts(parts, "", size)
}

func (m *machine) evaluateCompare(e compare, s *scope) (Value, error) {
	left, err := m.evaluate(e.first, s)
	if err != nil {
		return nil, err
	}
	for _, link := range e.rest {
		right, err := m.evaluate(link.operand, s)
		if err != nil {
			return nil, err
		}
		if holds, err := m.compareWith(link.operator, left, right); err != nil || !holds {
			return false, err
		}
		left = right
	}
	return true, nil
}

func (m *machine) evaluateIndex(e index, s *scope) (Value, error) {
	object, err := m.evaluate(e.object, s)
	if err != nil {
		return nil, err
	}
	if bounds, ok := e.key.(slice); ok {
		return m.evaluateSlice(object, bounds, s)
	}
	if keys, ok := e.key.(tuple); ok {
		for _, key := range keys.items {
			if _, ok := key.(slice); ok { // a tuple of slices indexes nothing in Python's own types
				return undefinedHint("%s has no element with several slices", objectName(object)), nil
			}
		}
	}
	key, err := m.evaluate(e.key, s)
	if err != nil {
		return nil, err
	}
	return m.index(object, key)
}

// argumentValues evaluates the arguments of a call, a filter or a test.
func (m *machine) argumentValues(a *argumentList, s *scope) (callArguments, error) {
	var values callArguments
	var err error
	if len(a.positional) > 0 {
		if values.positional, err = m.evaluateAll(a.positional, s); err != nil {
			return values, err
		}
	}
	for _, keyword := range a.keywords {
		value, err := m.evaluate(keyword.value, s)
		if err != nil {
			return values, err
		}
		values.keywords = append(values.keywords, namedValue{name: keyword.name, value: value})
	}
	if a.spread != nil {
		value, err := m.evaluate(a.spread, s)
		if err != nil {
			return values, err
		}
		items, err := m.items(value)
		if err != nil {
			return values, err
		}
		values.positional = append(values.positional, items...)
	}
	if a.spreadKeywords != nil {
		value, err := m.evaluate(a.spreadKeywords, s)
		if err != nil {
			return values, err
		}
		named, ok := value.(*Dict)
		if !ok {
			return values, typeError("argument after ** must be a mapping, not %s", typeName(value))
		}
		for i, key := range named.keys {
			name, ok := text(key)
			if !ok {
				return values, typeError("keywords must be strings")
			}
			values.keywords = append(values.keywords, namedValue{name: name, value: named.values[i]})
		}
	}
	return values, values.checkNames()
}

func (m *machine) evaluateCall(e *call, s *scope, caller Value) (Value, error) {
	callee, err := m.evaluate(e.callee, s)
	if err != nil {
		return nil, err
	}
	arguments, err := m.argumentValues(&e.arguments, s)
	if err != nil {
		return nil, err
	}
	if caller != nil {
		arguments.keywords = append(arguments.keywords, namedValue{name: "caller", value: caller})
	}
	return m.call(callee, arguments)
}

// call calls a value.
func (m *machine) call(callee Value, arguments callArguments) (Value, error) {
	switch callee := callee.(type) {
	case *function:
		return callee.invoke(m, arguments)
	case *macroValue:
		return callee.invoke(m, arguments)
	case *undefined:
		return nil, callee.fail()
	case *loopState:
		return callee.recurse(m, arguments)
	case *joiner:
		return callee.next(), nil
	}
	return nil, typeError("'%s' object is not callable", typeName(callee))
}

func (m *machine) evaluateFilter(e *filterCall, s *scope) (Value, error) {
	input, err := m.evaluate(e.input, s)
	if err != nil {
		return nil, err
	}
	return m.applyFilter(e, input, s)
}

func (m *machine) applyFilter(e *filterCall, input Value, s *scope) (Value, error) {
	filter, ok := m.filters[e.name]
	if !ok {
		return nil, atLine(raise("TemplateRuntimeError", "No filter named %s found.", quote(e.name)), e.line)
	}
	arguments, err := m.argumentValues(&e.arguments, s)
	if err != nil {
		return nil, err
	}
	value, err := filter.invoke(m, input, arguments)
	return value, atLine(err, e.line)
}

func (m *machine) evaluateTest(e *testCall, s *scope) (Value, error) {
	input, err := m.evaluate(e.input, s)
	if err != nil {
		return nil, err
	}
	test, ok := m.tests[e.name]
	if !ok {
		return nil, atLine(raise("TemplateRuntimeError", "No test named %s found.", quote(e.name)), e.line)
	}
	arguments, err := m.argumentValues(&e.arguments, s)
	if err != nil {
		return nil, err
	}
	return test.invoke(m, input, arguments)
}
