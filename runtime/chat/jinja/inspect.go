package jinja

// LoopsOver tells whether the template loops over the given field of the items
// of a variable, as in "for part in message['content']" inside of "for message
// in messages". It is the rule by which vLLM tells templates that take a list of
// content parts from those that take text alone (_detect_content_format in
// vllm/renderers/hf.py); where that gives up, so does this.
func (t *Template) LoopsOver(variable, field string) bool {
	var loops []*forLoop
	var assigns []assign
	walk(t.body, func(node any) bool {
		switch node := node.(type) {
		case *forLoop:
			loops = append(loops, node)
		case assign:
			assigns = append(assigns, node)
		}
		return true
	})
	lists := map[string]bool{variable: true}
	for pending := []string{variable}; len(pending) > 0; pending = pending[1:] {
		for _, a := range assigns {
			if !accesses(a.value, pending[0], "") {
				continue
			}
			to, ok := a.target.(targetName)
			if !ok {
				return false
			}
			if !lists[to.name] {
				lists[to.name] = true
				pending = append(pending, to.name)
			}
		}
	}
	items, ok := loopTargets(loops, lists, "")
	if !ok {
		return false
	}
	found, ok := loopTargets(loops, items, field)
	return ok && len(found) > 0
}

// loopTargets gives the names that loops over one of the variables, or over its
// field, bind; false when one binds several.
func loopTargets(loops []*forLoop, variables map[string]bool, field string) (map[string]bool, bool) {
	targets := map[string]bool{}
	for _, loop := range loops {
		for variable := range variables {
			if !accesses(loop.iterable, variable, field) {
				continue
			}
			to, ok := loop.target.(targetName)
			if !ok {
				return nil, false
			}
			targets[to.name] = true
		}
	}
	return targets, true
}

// accesses tells whether an expression is the variable, or the field of it,
// behind any filters, tests and slices.
func accesses(e expression, variable, field string) bool {
	isVariable := func(e expression) bool {
		n, ok := e.(name)
		return ok && n.name == variable
	}
	switch e := e.(type) {
	case *filterCall:
		return e.input != nil && accesses(e.input, variable, field)
	case *testCall:
		return accesses(e.input, variable, field)
	case name:
		return field == "" && isVariable(e)
	case attribute:
		return field != "" && e.name == field && isVariable(e.object)
	case index:
		if _, ok := e.key.(slice); ok {
			return accesses(e.object, variable, field)
		}
		key, ok := e.key.(constant)
		return ok && field != "" && key.value == field && isVariable(e.object)
	}
	return false
}

// Tests tells whether the template uses a test, as in "x is string".
func (t *Template) Tests(wanted string) bool {
	found := false
	walk(t.body, func(node any) bool {
		if test, ok := node.(*testCall); ok && test.name == wanted {
			found = true
		}
		return !found
	})
	return found
}
