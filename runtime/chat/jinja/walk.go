package jinja

// Walk calls visit with every node below the statements, outermost first.
// It goes on below a node while visit gives true.
func walk(body []statement, visit func(node any) bool) {
	for _, s := range body {
		if !visit(s) {
			continue
		}
		below := func(parts ...expression) {
			for _, part := range parts {
				walkExpression(part, visit)
			}
		}
		switch s := s.(type) {
		case output:
			below(s.value)
		case assign:
			below(s.value)
		case *assignBlock:
			if s.filter != nil {
				below(s.filter)
			}
			walk(s.body, visit)
		case *conditionalBlock:
			for _, branch := range s.branches {
				below(branch.test)
				walk(branch.body, visit)
			}
			walk(s.otherwise, visit)
		case *forLoop:
			below(s.iterable, s.filter)
			walk(s.body, visit)
			walk(s.otherwise, visit)
		case *macro:
			walkMacro(s, visit)
		case callBlock:
			if s.call != nil {
				below(s.call)
			}
			walkMacro(s.body, visit)
		case *filterBlock:
			below(s.filter)
			walk(s.body, visit)
		case *with:
			below(s.values...)
			walk(s.body, visit)
		case *block:
			walk(s.body, visit)
		}
	}
}

func walkMacro(m *macro, visit func(node any) bool) {
	for _, parameter := range m.parameters {
		walkExpression(parameter.defaultValue, visit)
	}
	walk(m.body, visit)
}

func walkExpression(e expression, visit func(node any) bool) {
	if e == nil || !visit(e) {
		return
	}
	children(e, func(child expression) { walkExpression(child, visit) })
}

// uses tells whether a macro's body reads a name that the call gives it, before
// it sets one of that name: jinja2.compiler.find_undeclared, in the order in
// which that visits.
func uses(m *macro, wanted string) bool {
	u := &usage{wanted: wanted}
	u.body(m.body)
	return u.found
}

type usage struct {
	wanted string
	found  bool
	set    bool
}

func (u *usage) read(parts ...expression) {
	for _, part := range parts {
		walkExpression(part, func(node any) bool {
			if n, ok := node.(name); ok && n.name == u.wanted && !u.set {
				u.found = true
			}
			return true
		})
	}
}

func (u *usage) write(to target) { u.set = u.set || assigns(to, u.wanted) }

func (u *usage) signature(m *macro) {
	for _, parameter := range m.parameters {
		u.set = u.set || parameter.name == u.wanted
	}
	for _, parameter := range m.parameters {
		u.read(parameter.defaultValue)
	}
	u.body(m.body)
}

func (u *usage) body(body []statement) {
	for _, s := range body {
		switch s := s.(type) {
		case output:
			u.read(s.value)
		case assign:
			u.write(s.target)
			u.read(s.value)
		case *assignBlock:
			u.write(s.target)
			if s.filter != nil {
				u.read(s.filter)
			}
			u.body(s.body)
		case *conditionalBlock:
			for _, branch := range s.branches {
				u.read(branch.test)
				u.body(branch.body)
			}
			u.body(s.otherwise)
		case *forLoop:
			u.write(s.target)
			u.read(s.iterable)
			u.body(s.body)
			u.body(s.otherwise)
			u.read(s.filter)
		case *macro:
			u.signature(s)
		case callBlock:
			if s.call != nil {
				u.read(s.call)
			}
			u.signature(s.body)
		case *filterBlock:
			u.body(s.body)
			u.read(s.filter)
		case *with:
			for _, to := range s.targets {
				u.write(to)
			}
			u.read(s.values...)
			u.body(s.body)
		}
	}
}
