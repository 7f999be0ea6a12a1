package jinja

// loopState is the loop variable: jinja2.runtime.LoopContext. It reads one item
// ahead only when asked for the next one or whether this is the last.
type loopState struct {
	machine  *machine
	source   *iterator
	buffered []Value // read ahead
	all      int64   // number of items where it is known, else -1
	index    int     // of current, from 0
	depth    int
	previous Value
	current  Value
	last     *List // what changed was called with last
	run      func(iterable Value, depth int) (Value, error)
}

func (l *loopState) advance() (Value, bool, error) {
	item, ok, err := l.peek(0)
	if err != nil || !ok {
		return nil, false, err
	}
	l.buffered = l.buffered[1:]
	l.index++
	l.previous = l.current
	l.current = item
	if l.index == 0 {
		l.previous = undefinedHint("there is no previous item")
	}
	return item, true, nil
}

// peek gives the item that comes n after the next.
func (l *loopState) peek(n int) (Value, bool, error) {
	for len(l.buffered) <= n {
		item, ok, err := l.source.next()
		if err != nil || !ok {
			return nil, false, err
		}
		if err := l.machine.churn(valueBytes); err != nil {
			return nil, false, err
		}
		l.buffered = append(l.buffered, item)
	}
	return l.buffered[n], true, nil
}

func (l *loopState) length() (int64, error) {
	if l.all < 0 {
		for {
			if _, ok, err := l.peek(len(l.buffered)); err != nil || !ok {
				if err != nil {
					return 0, err
				}
				break
			}
		}
		l.all = int64(l.index + 1 + len(l.buffered))
	}
	return l.all, nil
}

// attribute is loop.name; false when a loop has no such thing.
func (l *loopState) attribute(name string) (Value, bool, error) {
	switch name {
	case "index":
		return int64(l.index + 1), true, nil
	case "index0":
		return int64(l.index), true, nil
	case "first":
		return l.index == 0, true, nil
	case "depth":
		return int64(l.depth), true, nil
	case "depth0":
		return int64(l.depth - 1), true, nil
	case "previtem":
		return l.previous, true, nil
	case "last":
		_, more, err := l.peek(0)
		return !more, true, err
	case "nextitem":
		item, more, err := l.peek(0)
		if err == nil && !more {
			item = undefinedHint("there is no next item")
		}
		return item, true, err
	case "length", "revindex", "revindex0":
		n, err := l.length()
		switch name {
		case "revindex":
			n -= int64(l.index)
		case "revindex0":
			n -= int64(l.index + 1)
		}
		return n, true, err
	case "cycle":
		return &function{builtin: loopCycle, self: l, method: true}, true, nil
	case "changed":
		return &function{builtin: loopChanged, self: l, method: true}, true, nil
	}
	return nil, false, nil
}

var loopCycle = &builtin{name: "cycle", variadic: true, call: func(m *machine, self Value, a arguments) (Value, error) {
	l := self.(*loopState)
	if len(a.rest) == 0 {
		return nil, typeError("no items for cycling given")
	}
	return a.rest[max(l.index, 0)%len(a.rest)], nil
}}

var loopChanged = &builtin{name: "changed", variadic: true, call: func(m *machine, self Value, a arguments) (Value, error) {
	l := self.(*loopState)
	if l.last != nil {
		same, err := m.equalItems(l.last.Items, a.rest, 0)
		if err != nil || same {
			return false, err
		}
	}
	l.last = &List{Items: a.rest}
	return true, nil
}}

// recurse is loop(iterable) in a recursive loop.
func (l *loopState) recurse(m *machine, a callArguments) (Value, error) {
	if l.run == nil {
		return nil, typeError("The loop must have the 'recursive' marker to be called recursively.")
	}
	if len(a.positional) != 1 || len(a.keywords) > 0 {
		return nil, typeError("loop() takes 1 positional argument but %d were given", len(a.positional)+len(a.keywords))
	}
	if err := m.deeper(); err != nil {
		return nil, err
	}
	defer m.shallower()
	return l.run(a.positional[0], l.depth+1)
}

func (m *machine) executeFor(node *forLoop, s *scope, out *buffer) (control, error) {
	iterable, err := m.evaluate(node.iterable, s)
	if err != nil {
		return controlNone, err
	}
	return m.runLoop(node, iterable, 1, s, out)
}

func (m *machine) runLoop(node *forLoop, iterable Value, depth int, s *scope, out *buffer) (control, error) {
	source, err := m.iterate(iterable)
	if err != nil {
		return controlNone, err
	}
	loop := &loopState{machine: m, source: source, all: -1, index: -1, depth: depth}
	if n, err := length(iterable); err == nil && node.filter == nil {
		loop.all = n
	}
	if node.filter != nil {
		loop.source = m.filtered(node, source, s)
	}
	if node.recursive {
		loop.run = func(iterable Value, depth int) (Value, error) {
			captured := &buffer{machine: m}
			_, err := m.runLoop(node, iterable, depth, s, captured)
			return captured.text.String(), err
		}
	}
	// As in Jinja, only an iteration that reaches the body's end keeps the else
	// part from running: not one that break or continue cut short.
	completed := false
	for {
		item, ok, err := loop.advance()
		if err != nil {
			return controlNone, err
		}
		if !ok {
			break
		}
		inner := s.frame(node.unset)
		inner.declare("loop", loop)
		if err := m.assign(node.target, item, inner); err != nil {
			return controlNone, err
		}
		ended, err := m.execute(node.body, inner, out)
		if err != nil {
			return controlNone, err
		}
		completed = completed || ended == controlNone
		if ended == controlBreak {
			break
		}
	}
	if completed || node.otherwise == nil {
		return controlNone, nil
	}
	// break and continue in here belong to the loop around.
	return m.execute(node.otherwise, s.frame(node.otherwiseUnset), out)
}

// filtered is "for x in y if test": the test sees the target and not the loop.
func (m *machine) filtered(node *forLoop, source *iterator, s *scope) *iterator {
	return generate(func() (Value, bool, error) {
		for {
			item, ok, err := source.next()
			if err != nil || !ok {
				return nil, false, err
			}
			inner := s.child()
			if err := m.assign(node.target, item, inner); err != nil {
				return nil, false, err
			}
			keep, err := m.evaluate(node.filter, inner)
			if err != nil {
				return nil, false, err
			}
			if truth(keep) {
				return item, true, nil
			}
		}
	})
}
