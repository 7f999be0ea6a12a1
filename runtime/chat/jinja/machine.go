package jinja

import (
	"strings"
	"time"
)

// bytesPerStep is what counts as one step of reading or copying.
const bytesPerStep = 64

// machine is one rendering: what it has used up, and the functions that need
// to count it.
type machine struct {
	limits Limits
	now    time.Time
	// The package's tables: through these fields the functions in them can call
	// one another.
	filters map[string]*builtin
	tests   map[string]*builtin
	methods map[string]map[string]*builtin
	steps   int64
	bytes   int64
	depth   int
}

// spend counts n steps of work.
func (m *machine) spend(n int) error {
	m.steps += int64(n)
	if m.steps > m.limits.Steps {
		return limitError("rendering took more than %d steps", m.limits.Steps)
	}
	return nil
}

// churn counts n bytes of a new string or list. It is asked before they are
// made wherever n can be large.
func (m *machine) churn(n int) error {
	m.bytes += int64(n)
	if int64(n) > m.limits.OutputBytes {
		return limitError("a value of more than %d bytes", m.limits.OutputBytes)
	}
	if m.bytes > m.limits.ChurnBytes {
		return limitError("rendering made more than %d bytes", m.limits.ChurnBytes)
	}
	return m.spend(n / bytesPerStep)
}

// scan counts the reading of n bytes. It is asked before.
func (m *machine) scan(n int) error { return m.spend(n / bytesPerStep) }

// deeper counts one level of evaluation; the caller calls shallower after.
func (m *machine) deeper() error {
	m.depth++
	if m.depth > m.limits.Depth {
		return raise("RecursionError", "maximum recursion depth exceeded")
	}
	return m.spend(1)
}

func (m *machine) shallower() { m.depth-- }

// buffer collects output of the template, a macro or a block.
type buffer struct {
	machine *machine
	text    strings.Builder
}

func (b *buffer) write(s string) error {
	if int64(b.text.Len()+len(s)) > b.machine.limits.OutputBytes {
		return limitError("output of more than %d bytes", b.machine.limits.OutputBytes)
	}
	if err := b.machine.churn(len(s)); err != nil {
		return err
	}
	b.text.WriteString(s)
	return nil
}

// scope holds the names of one frame. A name is looked up outwards; assigning
// makes it in the innermost frame.
type scope struct {
	names  map[string]Value
	parent *scope
	root   bool // names set here are what blocks see
}

func (s *scope) child() *scope { return &scope{parent: s} }

// unsetMark is the value of a name that is its frame's own but not set yet.
type unsetMark struct{}

// frame gives an inner scope whose own names begin unset.
func (s *scope) frame(unset []string) *scope {
	inner := s.child()
	for _, name := range unset {
		inner.declare(name, unsetMark{})
	}
	return inner
}

func (s *scope) declare(name string, value Value) {
	if s.names == nil {
		s.names = make(map[string]Value)
	}
	s.names[name] = value
}

func (s *scope) lookup(name string) (Value, bool) {
	for ; s != nil; s = s.parent {
		if value, ok := s.names[name]; ok {
			_, unset := value.(unsetMark)
			return value, !unset
		}
	}
	return nil, false
}

// visible gives a scope of all that is set from here out to the template's own
// names, below the context.
func (s *scope) visible() *scope {
	if s.root {
		all := s.parent.child()
		all.root = true
		for name, value := range s.names {
			if _, unset := value.(unsetMark); !unset {
				all.declare(name, value)
			}
		}
		return all
	}
	all := s.parent.visible()
	for name, value := range s.names {
		if _, unset := value.(unsetMark); !unset {
			all.declare(name, value)
		}
	}
	return all
}

// items gives all values of an iterable; a generator is used up.
func (m *machine) items(v Value) ([]Value, error) {
	switch v := v.(type) {
	case *List:
		return v.Items, nil
	case *Tuple:
		return v.Items, nil
	}
	it, err := m.iterate(v)
	if err != nil {
		return nil, err
	}
	var items []Value
	for {
		item, ok, err := it.next()
		if err != nil || !ok {
			return items, err
		}
		if err := m.churn(valueBytes); err != nil {
			return nil, err
		}
		if err := m.spend(1); err != nil {
			return nil, err
		}
		items = append(items, item)
	}
}

// iterate is iter(v).
func (m *machine) iterate(v Value) (*iterator, error) {
	at := 0
	count := func(n int, value func(i int) Value) (*iterator, error) {
		return &iterator{kind: typeName(v) + "_iterator", next: func() (Value, bool, error) {
			if at >= n {
				return nil, false, nil
			}
			at++
			return value(at - 1), true, nil
		}}, nil
	}
	switch v := v.(type) {
	case *iterator:
		return v, nil
	case string:
		return runes(v), nil
	case Markup:
		return runes(string(v)), nil
	case *List:
		return count(len(v.Items), func(i int) Value { return v.Items[i] })
	case *Tuple:
		return count(len(v.Items), func(i int) Value { return v.Items[i] })
	case *Dict:
		return count(v.Len(), func(i int) Value { return v.keys[i] })
	case rangeValue:
		return count(int(v.length()), func(i int) Value { return v.at(int64(i)) })
	case dictView:
		return count(v.dict.Len(), v.at)
	case *undefined:
		return count(0, nil)
	case *loopState:
		return &iterator{kind: "LoopContext", next: func() (Value, bool, error) {
			item, ok, err := v.advance()
			return &Tuple{Items: []Value{item, v}}, ok, err
		}}, nil
	}
	return nil, typeError("'%s' object is not iterable", typeName(v))
}

func (v dictView) at(i int) Value {
	switch v.kind {
	case "dict_keys":
		return v.dict.keys[i]
	case "dict_values":
		return v.dict.values[i]
	}
	return &Tuple{Items: []Value{v.dict.keys[i], v.dict.values[i]}}
}

func runes(s string) *iterator {
	return &iterator{kind: "str_iterator", next: func() (Value, bool, error) {
		for i := range s {
			if i > 0 {
				r := s[:i]
				s = s[i:]
				return r, true, nil
			}
		}
		r := s
		s = ""
		return r, r != "", nil
	}}
}

// generate makes a generator of a function that gives the next value.
func generate(next func() (Value, bool, error)) *iterator {
	return &iterator{kind: "generator", next: next}
}

// generateList makes a generator of values that are made when first asked.
func generateList(values func() ([]Value, error)) *iterator {
	var items []Value
	started := false
	return generate(func() (Value, bool, error) {
		if !started {
			started = true
			var err error
			if items, err = values(); err != nil {
				return nil, false, err
			}
		}
		if len(items) == 0 {
			return nil, false, nil
		}
		item := items[0]
		items = items[1:]
		return item, true, nil
	})
}
