package jinja

import (
	"fmt"
	"math"
	"math/big"
	"unicode/utf8"
)

// Value is a Python value: nil (None), bool, int64, *big.Int (what int64 does
// not hold), float64, string, Markup, *List, *Tuple, *Dict, or one of the
// types below that only a template makes.
type Value any

// Markup is a string that the escape or safe filter has made: adding to it
// escapes what is added.
type Markup string

// List is Python's list. The sandbox forbids changing one, so it never is.
type List struct{ Items []Value }

// Tuple is Python's tuple.
type Tuple struct{ Items []Value }

// rangeValue is what range() gives.
type rangeValue struct{ start, stop, step int64 }

func (r rangeValue) length() int64 {
	if r.step > 0 && r.start < r.stop {
		return (r.stop-r.start-1)/r.step + 1
	}
	if r.step < 0 && r.start > r.stop {
		return (r.start-r.stop-1)/(-r.step) + 1
	}
	return 0
}

func (r rangeValue) at(i int64) int64 { return r.start + i*r.step }

// dictView is what a dict's keys, values or items method gives.
type dictView struct {
	kind string // dict_keys, dict_values, dict_items
	dict *Dict
}

// namespace is the one value that a template can change.
type namespace struct{ fields *Dict }

// iterator is a generator: it gives each value once.
type iterator struct {
	kind string // its Python type
	next func() (Value, bool, error)
}

// undefined is the value of a name that has none. Almost all that is done with
// one fails, and says which name it was.
type undefined struct {
	hint   string // what there is to say, when it is not that a name or field is missing
	object Value  // that lacks the field
	field  bool
	name   string
	unsafe bool // the sandbox hides it
}

func undefinedName(name string) *undefined { return &undefined{name: name} }

func undefinedHint(format string, args ...any) *undefined {
	return &undefined{hint: fmt.Sprintf(format, args...)}
}

func undefinedField(object Value, field string) *undefined {
	return &undefined{object: object, field: true, name: field}
}

func (u *undefined) fail() error {
	switch {
	case u.hint != "":
		return raise("UndefinedError", "%s", u.hint)
	case u.unsafe:
		return raise("SecurityError", "access to attribute %s of %s object is unsafe.", quote(u.name), quote(typeName(u.object)))
	case u.field:
		return raise("UndefinedError", "%s has no attribute %s", quote(objectName(u.object)), quote(u.name))
	}
	return raise("UndefinedError", "%s is undefined", quote(u.name))
}

// absent marks an argument that was not given.
type absent struct{}

// typeName is type(v).__name__.
func typeName(v Value) string {
	switch v := v.(type) {
	case nil:
		return "NoneType"
	case bool:
		return "bool"
	case int64, *big.Int:
		return "int"
	case float64:
		return "float"
	case string:
		return "str"
	case Markup:
		return "Markup"
	case *List:
		return "list"
	case *Tuple:
		return "tuple"
	case *Dict:
		return "dict"
	case rangeValue:
		return "range"
	case dictView:
		return v.kind
	case *iterator:
		return v.kind
	case *namespace:
		return "TemplateNamespace"
	case *undefined:
		return "Undefined"
	case *function:
		return v.kind()
	case *macroValue:
		return "Macro"
	case *loopState:
		return "LoopContext"
	case *cycler:
		return "Cycler"
	case *joiner:
		return "Joiner"
	}
	return "object"
}

// objectName is jinja2.utils.object_type_repr.
func objectName(v Value) string {
	switch v.(type) {
	case nil:
		return "None"
	case *namespace:
		return "transformers.utils.chat_template_utils.TemplateNamespace object"
	case *undefined, *macroValue, *loopState:
		return "jinja2.runtime." + typeName(v) + " object"
	case *cycler, *joiner:
		return "jinja2.utils." + typeName(v) + " object"
	case Markup:
		return "markupsafe.Markup object"
	}
	return typeName(v) + " object"
}

// text gives the string that v is.
func text(v Value) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, true
	case Markup:
		return string(v), true
	}
	return "", false
}

// integer gives the int64 that v is; a bool is one.
func integer(v Value) (int64, bool) {
	switch v := v.(type) {
	case int64:
		return v, true
	case bool:
		if v {
			return 1, true
		}
		return 0, true
	}
	return 0, false
}

// normalInteger keeps integers in int64 whenever they fit.
func normalInteger(i *big.Int) Value {
	if i.IsInt64() {
		return i.Int64()
	}
	return i
}

// truth is bool(v).
func truth(v Value) bool {
	switch v := v.(type) {
	case nil:
		return false
	case bool:
		return v
	case int64:
		return v != 0
	case *big.Int:
		return v.Sign() != 0
	case float64:
		return v != 0
	case string:
		return v != ""
	case Markup:
		return v != ""
	case *List:
		return len(v.Items) > 0
	case *Tuple:
		return len(v.Items) > 0
	case *Dict:
		return v.Len() > 0
	case rangeValue:
		return v.length() > 0
	case dictView:
		return v.dict.Len() > 0
	case *loopState:
		n, err := v.length()
		return err != nil || n > 0
	case *undefined:
		return false
	}
	return true
}

// length is len(v).
func length(v Value) (int64, error) {
	switch v := v.(type) {
	case string:
		return int64(utf8.RuneCountInString(v)), nil
	case Markup:
		return int64(utf8.RuneCountInString(string(v))), nil
	case *List:
		return int64(len(v.Items)), nil
	case *Tuple:
		return int64(len(v.Items)), nil
	case *Dict:
		return int64(v.Len()), nil
	case rangeValue:
		return v.length(), nil
	case dictView:
		return int64(v.dict.Len()), nil
	case *loopState:
		return v.length()
	case *undefined:
		return 0, nil
	}
	return 0, typeError("object of type '%s' has no len()", typeName(v))
}

// Dict is Python's dict: it keeps the order of insertion, and 1, 1.0 and True
// are one key. Only its maker adds to it.
type Dict struct {
	keys, values []Value
	places       map[any]int
}

// NewDict gives an empty dict with room for n entries.
func NewDict(n int) *Dict {
	return &Dict{keys: make([]Value, 0, n), values: make([]Value, 0, n), places: make(map[any]int, n)}
}

// Len is the number of entries.
func (d *Dict) Len() int { return len(d.keys) }

// SetText sets the value of a string key.
func (d *Dict) SetText(key string, value Value) { d.put(key, key, value) }

// GetText gives the value of a string key.
func (d *Dict) GetText(key string) (Value, bool) {
	if at, ok := d.places[key]; ok {
		return d.values[at], true
	}
	return nil, false
}

func (d *Dict) put(hash any, key, value Value) {
	if at, ok := d.places[hash]; ok {
		d.values[at] = value
		return
	}
	d.places[hash] = len(d.keys)
	d.keys = append(d.keys, key)
	d.values = append(d.values, value)
}

func (m *machine) set(d *Dict, key, value Value) error {
	hash, err := m.hash(key)
	if err != nil {
		return err
	}
	d.put(hash, key, value)
	return nil
}

func (m *machine) get(d *Dict, key Value) (Value, bool, error) {
	hash, err := m.hash(key)
	if err != nil {
		return nil, false, err
	}
	at, ok := d.places[hash]
	if !ok {
		return nil, false, nil
	}
	return d.values[at], true, nil
}

// Copy gives a dict with the same entries, which may be added to.
func (d *Dict) Copy() *Dict {
	c := NewDict(d.Len() + 1)
	for i, key := range d.keys {
		hash, _ := hashOf(key, 0) // it was hashed when it came in
		c.put(hash, key, d.values[i])
	}
	return c
}

// Without gives the entries but for those that drop names.
func (d *Dict) Without(drop func(key, value Value) bool) *Dict {
	c := NewDict(d.Len())
	for i, key := range d.keys {
		if !drop(key, d.values[i]) {
			hash, _ := hashOf(key, 0)
			c.put(hash, key, d.values[i])
		}
	}
	return c
}

const maxKeyDepth = 50

type (
	noneHash      struct{}
	undefinedHash struct{}
	tupleHash     string
	bigHash       string
)

// hash is hashOf, counted.
func (m *machine) hash(v Value) (any, error) {
	hash, err := hashOf(v, 0)
	if err != nil {
		return nil, err
	}
	switch h := hash.(type) {
	case string:
		err = m.scan(len(h))
	case tupleHash:
		err = m.churn(len(h))
	}
	return hash, err
}

// hashOf gives a Go map key that is equal for values that Python calls equal.
func hashOf(v Value, depth int) (any, error) {
	if depth > maxKeyDepth {
		return nil, limitError("a key of tuples nested deeper than %d", maxKeyDepth)
	}
	switch v := v.(type) {
	case nil:
		return noneHash{}, nil
	case string:
		return v, nil
	case Markup:
		return string(v), nil
	case int64:
		return v, nil
	case bool:
		i, _ := integer(v)
		return i, nil
	case float64:
		if v == math.Trunc(v) && math.Abs(v) < 1<<63 {
			return int64(v), nil
		}
		return v, nil
	case *big.Int:
		return bigHash(v.String()), nil
	case *Tuple:
		key := ""
		for _, item := range v.Items {
			hash, err := hashOf(item, depth+1)
			if err != nil {
				return nil, err
			}
			part := fmt.Sprintf("%T:%v", hash, hash)
			key += fmt.Sprintf("%d:%s,", len(part), part)
			if len(key) > 1<<20 {
				return nil, limitError("a tuple too long to be a key")
			}
		}
		return tupleHash(key), nil
	case *undefined:
		return undefinedHash{}, nil
	case *List, *Dict, dictView, *namespace:
		return nil, typeError("unhashable type: '%s'", typeName(v))
	case rangeValue:
		return v, nil
	}
	return v, nil
}
