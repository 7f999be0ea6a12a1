package jinja

// check finds what Jinja's compiler refuses before anything is rendered, and
// notes which of its special names each macro uses.
func check(body []statement) error {
	c := &checker{}
	c.statements(body, false)
	return c.err
}

type checker struct{ err error }

func (c *checker) fail(line int, format string, args ...any) {
	if c.err == nil {
		c.err = atLine(raise("TemplateAssertionError", format, args...), line)
	}
}

// soft: inside a condition an unknown filter or test only fails when reached.
func (c *checker) statements(body []statement, soft bool) {
	for _, s := range body {
		c.statement(s, soft)
	}
}

func (c *checker) statement(s statement, soft bool) {
	switch s := s.(type) {
	case output:
		c.expression(s.value, soft)
	case assign:
		c.expression(s.value, soft)
	case *assignBlock:
		if s.filter != nil {
			c.expression(s.filter, false)
		}
		c.statements(s.body, false)
	case *conditionalBlock:
		for _, branch := range s.branches {
			c.expression(branch.test, true)
			c.statements(branch.body, true)
		}
		c.statements(s.otherwise, true)
	case *forLoop:
		if assigns(s.target, "loop") || setsLoop(s) {
			c.fail(s.line, "Can't assign to special loop variable in for-loop target")
		}
		c.expression(s.iterable, soft)
		c.expression(s.filter, false)
		c.statements(s.body, false)
		c.statements(s.otherwise, false)
	case *macro:
		c.macro(s)
	case callBlock:
		if s.call != nil {
			c.expression(s.call, soft)
		}
		c.macro(s.body)
	case *filterBlock:
		c.expression(s.filter, false)
		c.statements(s.body, false)
	case *with:
		for _, value := range s.values {
			c.expression(value, soft)
		}
		c.statements(s.body, false)
	case *block:
		c.statements(s.body, false)
	}
}

func (c *checker) macro(m *macro) {
	for _, parameter := range m.parameters {
		if parameter.name == "caller" && parameter.defaultValue == nil {
			c.fail(m.line, "When defining macros or call blocks the special \"caller\" argument must be omitted or be given a default.")
		}
		c.expression(parameter.defaultValue, false)
	}
	c.statements(m.body, false)
	m.usesCaller = uses(m, "caller")
	m.usesKeywords = uses(m, "kwargs")
	m.usesVariadic = uses(m, "varargs")
}

func (c *checker) expression(e expression, soft bool) {
	switch e := e.(type) {
	case nil:
		return
	case *filterCall:
		if _, ok := filters[e.name]; !ok && !soft {
			c.fail(e.line, "No filter named %s.", quote(e.name))
		}
	case *testCall:
		if _, ok := tests[e.name]; !ok && !soft {
			c.fail(e.line, "No test named %s.", quote(e.name))
		}
	case conditional:
		soft = true
	}
	children(e, func(child expression) { c.expression(child, soft) })
}

// children calls visit with the direct parts of an expression.
func children(e expression, visit func(expression)) {
	each := func(parts ...expression) {
		for _, part := range parts {
			if part != nil {
				visit(part)
			}
		}
	}
	given := func(a *argumentList) {
		each(a.positional...)
		for _, keyword := range a.keywords {
			each(keyword.value)
		}
		each(a.spread, a.spreadKeywords)
	}
	switch e := e.(type) {
	case tuple:
		each(e.items...)
	case list:
		each(e.items...)
	case dict:
		for _, p := range e.pairs {
			each(p.key, p.value)
		}
	case unary:
		each(e.operand)
	case not:
		each(e.operand)
	case binary:
		each(e.left, e.right)
	case logical:
		each(e.left, e.right)
	case compare:
		each(e.first)
		for _, link := range e.rest {
			each(link.operand)
		}
	case concat:
		each(e.parts...)
	case conditional:
		each(e.test, e.then, e.otherwise)
	case attribute:
		each(e.object)
	case index:
		each(e.object, e.key)
	case slice:
		each(e.start, e.stop, e.step)
	case *call:
		each(e.callee)
		given(&e.arguments)
	case *filterCall:
		each(e.input)
		given(&e.arguments)
	case *testCall:
		each(e.input)
		given(&e.arguments)
	}
}

// setsLoop tells whether anything inside a loop assigns to its loop variable.
func setsLoop(loop *forLoop) bool {
	found := false
	look := func(node any) bool {
		switch node := node.(type) {
		case assign:
			found = found || assigns(node.target, "loop")
		case *assignBlock:
			found = found || assigns(node.target, "loop")
		case *forLoop:
			found = found || assigns(node.target, "loop")
		}
		return !found
	}
	walk(loop.body, look)
	walk(loop.otherwise, look)
	return found
}

func assigns(to target, name string) bool {
	switch to := to.(type) {
	case targetName:
		return to.name == name
	case targetTuple:
		for _, item := range to.items {
			if assigns(item, name) {
				return true
			}
		}
	}
	return false
}
