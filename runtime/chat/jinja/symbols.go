package jinja

// Jinja's compiler decides for each frame, before anything runs, where a name
// comes from (jinja2/idtracking.py). A name that a frame sets, and has not read
// before, is the frame's own from its start: until it is set it is undefined,
// even where the context has one of that name. symbols finds those names; all
// else follows from looking names up outwards.

type symbolSource uint8

const (
	fromResolve   symbolSource = iota + 1 // the template's context
	fromAlias                             // the frame around
	fromParameter                         // a parameter or a loop's target
	fromNowhere                           // undefined until it is set
)

type symbols struct {
	parent *symbols
	source map[string]symbolSource
	stored map[string]bool
}

func newSymbols(parent *symbols) *symbols {
	return &symbols{parent: parent, source: map[string]symbolSource{}, stored: map[string]bool{}}
}

func (s *symbols) knows(name string) bool {
	for ; s != nil; s = s.parent {
		if _, ok := s.source[name]; ok {
			return true
		}
	}
	return false
}

func (s *symbols) load(name string) {
	if !s.knows(name) {
		s.source[name] = fromResolve
	}
}

func (s *symbols) store(name string) {
	s.stored[name] = true
	if _, ok := s.source[name]; ok {
		return
	}
	s.source[name] = fromNowhere
	if s.parent.knows(name) {
		s.source[name] = fromAlias
	}
}

func (s *symbols) declare(name string) {
	s.stored[name] = true
	s.source[name] = fromParameter
}

func (s *symbols) copy() *symbols {
	c := newSymbols(s.parent)
	for name, source := range s.source {
		c.source[name] = source
	}
	for name := range s.stored {
		c.stored[name] = true
	}
	return c
}

// merge takes in what the branches of a condition did: what only some of them
// set comes from outside where they don't.
func (s *symbols) merge(branches ...*symbols) {
	var fresh []string
	for _, branch := range branches {
		for name := range branch.stored {
			if !s.stored[name] {
				fresh = append(fresh, name)
			}
		}
	}
	for _, branch := range branches {
		for name, source := range branch.source {
			s.source[name] = source
		}
		for name := range branch.stored {
			s.stored[name] = true
		}
	}
	for _, name := range fresh {
		s.source[name] = fromResolve
		if s.parent.knows(name) {
			s.source[name] = fromAlias
		}
	}
}

// unset gives the names that are undefined when the frame begins.
func (s *symbols) unset() []string {
	var names []string
	for name, source := range s.source {
		if source == fromNowhere {
			names = append(names, name)
		}
	}
	return names
}

func (s *symbols) read(e expression) {
	walkExpression(e, func(node any) bool {
		if n, ok := node.(name); ok {
			s.load(n.name)
		}
		return true
	})
}

func (s *symbols) write(to target, use func(name string)) {
	switch to := to.(type) {
	case targetName:
		use(to.name)
	case targetField:
		s.load(to.namespace)
	case targetTuple:
		for _, item := range to.items {
			s.write(item, use)
		}
	}
}

// visit notes what one statement of the frame reads and sets. It does not enter
// frames within.
func (s *symbols) visit(body []statement) {
	for _, next := range body {
		switch next := next.(type) {
		case output:
			s.read(next.value)
		case assign:
			s.read(next.value)
			s.write(next.target, s.store)
		case *assignBlock:
			s.write(next.target, s.store)
		case *conditionalBlock:
			s.visitBranches(next)
		case *forLoop:
			s.read(next.iterable)
		case *macro:
			s.store(next.name)
		case callBlock:
			if next.call != nil {
				s.read(next.call)
			}
		case *filterBlock:
			s.read(next.filter)
		case *with:
			for _, value := range next.values {
				s.read(value)
			}
		}
	}
}

func (s *symbols) visitBranches(node *conditionalBlock) {
	s.read(node.branches[0].test)
	first := s.copy()
	first.visit(node.branches[0].body)
	others := s.copy()
	for _, branch := range node.branches[1:] { // each an "if" of its own
		others.read(branch.test)
		inner := others.copy()
		inner.visit(branch.body)
		others.merge(inner)
	}
	last := s.copy()
	last.visit(node.otherwise)
	s.merge(first, others, last)
}

// resolve fills in what is unset at the start of each frame inside a body.
func (s *symbols) resolve(body []statement) {
	for _, next := range body {
		switch next := next.(type) {
		case *conditionalBlock:
			for _, branch := range next.branches {
				s.resolve(branch.body)
			}
			s.resolve(next.otherwise)
		case *forLoop:
			inner := newSymbols(s)
			inner.declare("loop")
			inner.write(next.target, inner.declare)
			next.unset = inner.frame(next.body)
			next.otherwiseUnset = newSymbols(s).frame(next.otherwise)
		case *macro:
			s.resolveMacro(next)
		case callBlock:
			s.resolveMacro(next.body)
		case *with:
			inner := newSymbols(s)
			for _, to := range next.targets {
				inner.write(to, inner.declare)
			}
			next.unset = inner.frame(next.body)
		case *assignBlock:
			next.unset = newSymbols(s).frame(next.body)
		case *filterBlock:
			next.unset = newSymbols(s).frame(next.body)
		case *block:
			next.unset = newSymbols(nil).frame(next.body)
		}
	}
}

func (s *symbols) frame(body []statement) []string {
	s.visit(body)
	s.resolve(body)
	return s.unset()
}

func (s *symbols) resolveMacro(m *macro) {
	inner := newSymbols(s)
	for _, parameter := range m.parameters {
		inner.declare(parameter.name)
	}
	for _, special := range []struct {
		used bool
		name string
	}{{m.usesCaller, "caller"}, {m.usesKeywords, "kwargs"}, {m.usesVariadic, "varargs"}} {
		if special.used {
			inner.declare(special.name)
		}
	}
	for _, parameter := range m.parameters {
		if parameter.defaultValue != nil {
			inner.read(parameter.defaultValue)
		}
	}
	m.unset = inner.frame(m.body)
}
