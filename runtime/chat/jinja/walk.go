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
		case assignBlock:
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
		case filterBlock:
			below(s.filter)
			walk(s.body, visit)
		case with:
			below(s.values...)
			walk(s.body, visit)
		case block:
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

// uses tells whether a macro's body reads a name that it does not set itself.
func uses(m *macro, wanted string) bool {
	found := false
	walk(m.body, func(node any) bool {
		if n, ok := node.(name); ok && n.name == wanted {
			found = true
		}
		return !found
	})
	return found
}
