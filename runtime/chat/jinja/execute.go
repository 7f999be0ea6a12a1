package jinja

import "strings"

// control is how a body ended.
type control uint8

const (
	controlNone control = iota
	controlBreak
	controlContinue
)

// execute runs statements in a scope.
func (m *machine) execute(body []statement, s *scope, out *buffer) (control, error) {
	if err := m.deeper(); err != nil {
		return controlNone, err
	}
	defer m.shallower()
	for _, next := range body {
		ended, err := m.executeOne(next, s, out)
		if err != nil || ended != controlNone {
			return ended, err
		}
	}
	return controlNone, nil
}

func (m *machine) executeOne(next statement, s *scope, out *buffer) (control, error) {
	switch next := next.(type) {
	case data:
		return controlNone, out.write(next.text)
	case output:
		return controlNone, atLine(m.print(next.value, s, out), next.line)
	case assign:
		return controlNone, atLine(m.executeAssign(next, s), next.line)
	case *assignBlock:
		return m.executeAssignBlock(next, s)
	case *conditionalBlock:
		return m.executeConditional(next, s, out)
	case *forLoop:
		ended, err := m.executeFor(next, s, out)
		return ended, atLine(err, next.line)
	case loopControl:
		if next.leave {
			return controlBreak, nil
		}
		return controlContinue, nil
	case *macro:
		s.declare(next.name, &macroValue{macro: next, scope: s})
		return controlNone, nil
	case callBlock:
		return controlNone, atLine(m.executeCallBlock(next, s, out), next.line)
	case *filterBlock:
		return m.executeFilterBlock(next, s, out)
	case *with:
		return m.executeWith(next, s, out)
	case *block:
		return m.executeNamedBlock(next, s, out)
	case load:
		return controlNone, atLine(typeError("no loader for this environment specified"), next.line)
	}
	return controlNone, raise("TemplateRuntimeError", "a statement of type %T", next)
}

func (m *machine) print(e expression, s *scope, out *buffer) error {
	value, err := m.evaluate(e, s)
	if err != nil {
		return err
	}
	text, err := m.str(value)
	if err != nil {
		return err
	}
	return out.write(text)
}

func (m *machine) executeAssign(next assign, s *scope) error {
	if err := checkFields(next.target, s); err != nil {
		return err
	}
	value, err := m.evaluate(next.value, s)
	if err != nil {
		return err
	}
	return m.assign(next.target, value, s)
}

// checkFields makes sure, before the value is made, that ns.name targets are
// namespaces.
func checkFields(to target, s *scope) error {
	switch to := to.(type) {
	case targetField:
		object, _ := s.lookup(to.namespace)
		if _, ok := object.(*namespace); !ok {
			return raise("TemplateRuntimeError", "cannot assign attribute on non-namespace object")
		}
	case targetTuple:
		for _, item := range to.items {
			if err := checkFields(item, s); err != nil {
				return err
			}
		}
	}
	return nil
}

// assign writes a value to a target.
func (m *machine) assign(to target, value Value, s *scope) error {
	switch to := to.(type) {
	case targetName:
		s.declare(to.name, value)
	case targetField:
		object, _ := s.lookup(to.namespace)
		holder, ok := object.(*namespace)
		if !ok {
			return raise("TemplateRuntimeError", "cannot assign attribute on non-namespace object")
		}
		if err := checkField(to.field); err != nil {
			return err
		}
		holder.fields.SetText(to.field, value)
	case targetTuple:
		items, err := m.unpack(value, len(to.items))
		if err != nil {
			return err
		}
		for i, item := range to.items {
			if err := m.assign(item, items[i], s); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkField refuses what transformers' namespace refuses.
func checkField(field string) error {
	if strings.HasPrefix(field, "_") {
		return raise("SecurityError", "Chat templates cannot store underscore-prefixed attributes on a namespace, but got %s. Please rename the attribute.", quote(field))
	}
	return nil
}

func (m *machine) unpack(value Value, n int) ([]Value, error) {
	it, err := m.iterate(value)
	if err != nil {
		return nil, typeError("cannot unpack non-iterable %s object", typeName(value))
	}
	var items []Value
	for {
		item, ok, err := it.next()
		if err != nil {
			return nil, err
		}
		if !ok {
			break
		}
		if len(items) == n {
			return nil, valueError("too many values to unpack (expected %d)", n)
		}
		items = append(items, item)
	}
	if len(items) < n {
		return nil, valueError("not enough values to unpack (expected %d, got %d)", n, len(items))
	}
	return items, nil
}

func (m *machine) executeAssignBlock(next *assignBlock, s *scope) (control, error) {
	captured := &buffer{machine: m}
	inner := s.frame(next.unset)
	ended, err := m.execute(next.body, inner, captured)
	if err != nil || ended != controlNone {
		return ended, err
	}
	var value Value = captured.text.String()
	if next.filter != nil {
		if value, err = m.applyFilters(next.filter, value, inner); err != nil {
			return controlNone, atLine(err, next.line)
		}
	}
	return controlNone, atLine(m.assign(next.target, value, s), next.line)
}

// applyFilters runs a chain of filters whose innermost has no input of its own.
func (m *machine) applyFilters(e *filterCall, input Value, s *scope) (Value, error) {
	if inner, ok := e.input.(*filterCall); ok {
		var err error
		if input, err = m.applyFilters(inner, input, s); err != nil {
			return nil, err
		}
	}
	return m.applyFilter(e, input, s)
}

func (m *machine) executeConditional(next *conditionalBlock, s *scope, out *buffer) (control, error) {
	for _, branch := range next.branches {
		test, err := m.evaluate(branch.test, s)
		if err != nil {
			return controlNone, atLine(err, branch.line)
		}
		if truth(test) {
			return m.execute(branch.body, s, out)
		}
	}
	return m.execute(next.otherwise, s, out)
}

func (m *machine) executeCallBlock(next callBlock, s *scope, out *buffer) error {
	caller := &macroValue{macro: next.body, scope: s}
	var value Value
	var err error
	if next.call == nil {
		value, err = caller.invoke(m, callArguments{})
	} else {
		value, err = m.evaluateCall(next.call, s, caller)
	}
	if err != nil {
		return err
	}
	text, err := m.str(value)
	if err != nil {
		return err
	}
	return out.write(text)
}

func (m *machine) executeFilterBlock(next *filterBlock, s *scope, out *buffer) (control, error) {
	captured := &buffer{machine: m}
	inner := s.frame(next.unset)
	ended, err := m.execute(next.body, inner, captured)
	if err != nil || ended != controlNone {
		return ended, err
	}
	value, err := m.applyFilters(next.filter, captured.text.String(), inner)
	if err != nil {
		return controlNone, atLine(err, next.line)
	}
	text, err := m.str(value)
	if err != nil {
		return controlNone, err
	}
	return controlNone, out.write(text)
}

func (m *machine) executeWith(next *with, s *scope, out *buffer) (control, error) {
	inner := s.frame(next.unset)
	for i, to := range next.targets {
		value, err := m.evaluate(next.values[i], s)
		if err == nil {
			err = m.assign(to, value, inner)
		}
		if err != nil {
			return controlNone, atLine(err, next.line)
		}
	}
	return m.execute(next.body, inner, out)
}

// executeNamedBlock runs a block where it stands: without inheritance that is
// all a block does. Unless scoped it sees the template's own names alone.
func (m *machine) executeNamedBlock(next *block, s *scope, out *buffer) (control, error) {
	if !next.scoped {
		for !s.root {
			s = s.parent
		}
	}
	return m.execute(next.body, s.visible().frame(next.unset), out)
}
