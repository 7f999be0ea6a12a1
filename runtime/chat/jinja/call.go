package jinja

type namedValue struct {
	name  string
	value Value
}

const maxKeywords = 255

type callArguments struct {
	positional []Value
	keywords   []namedValue
}

func (a callArguments) checkNames() error {
	if len(a.keywords) > maxKeywords {
		return limitError("a call with more than %d keywords", maxKeywords)
	}
	for i, keyword := range a.keywords {
		for _, other := range a.keywords[:i] {
			if keyword.name == other.name {
				return typeError("got multiple values for keyword argument %s", quote(keyword.name))
			}
		}
	}
	return nil
}

// builtin is a filter, a test, a method or a global function: what it takes,
// and what it does with it. self is the filter's input or the method's object.
type builtin struct {
	name       string
	parameters []string // names that a keyword may use
	required   int      // of parameters
	only       bool     // parameters are positional only
	variadic   bool     // more arguments and keywords are passed on
	call       func(m *machine, self Value, a arguments) (Value, error)
}

// arguments are those of one call of a builtin, in the order of its parameters.
type arguments struct {
	values   []Value // absent{} where none was given
	rest     []Value
	keywords []namedValue
}

func (a arguments) has(i int) bool {
	_, missing := a.values[i].(absent)
	return !missing
}

// or gives argument i, or the default when it was not given.
func (a arguments) or(i int, fallback Value) Value {
	if a.has(i) {
		return a.values[i]
	}
	return fallback
}

// text gives argument i as a string.
func (a arguments) text(i int, fallback string) (string, error) {
	value := a.or(i, fallback)
	if s, ok := text(value); ok {
		return s, nil
	}
	return "", typeError("must be str, not %s", typeName(value))
}

// integer gives argument i as an int.
func (a arguments) integer(i int, fallback int64) (int64, error) {
	value := a.or(i, fallback)
	if n, ok := integer(value); ok {
		return n, nil
	}
	return 0, typeError("'%s' object cannot be interpreted as an integer", typeName(value))
}

func (b *builtin) bind(given callArguments) (arguments, error) {
	a := arguments{values: make([]Value, len(b.parameters))}
	for i := range a.values {
		a.values[i] = absent{}
	}
	n := copy(a.values, given.positional)
	if n < len(given.positional) {
		if !b.variadic {
			return a, typeError("%s() takes at most %d arguments (%d given)", b.name, len(b.parameters), len(given.positional))
		}
		a.rest = given.positional[n:]
	}
	for _, keyword := range given.keywords {
		at := -1
		for i, name := range b.parameters {
			if name == keyword.name && !b.only {
				at = i
			}
		}
		switch {
		case at < 0 && b.variadic:
			a.keywords = append(a.keywords, keyword)
		case at < 0:
			return a, typeError("%s() got an unexpected keyword argument %s", b.name, quote(keyword.name))
		case a.has(at):
			return a, typeError("%s() got multiple values for argument %s", b.name, quote(keyword.name))
		default:
			a.values[at] = keyword.value
		}
	}
	for i := range b.required {
		if !a.has(i) {
			return a, typeError("%s() missing 1 required positional argument: %s", b.name, quote(b.parameters[i]))
		}
	}
	return a, nil
}

func (b *builtin) invoke(m *machine, self Value, given callArguments) (Value, error) {
	a, err := b.bind(given)
	if err != nil {
		return nil, err
	}
	return b.call(m, self, a)
}

// function is a builtin as a value: a global, or a method with its object.
type function struct {
	builtin *builtin
	self    Value
	method  bool
}

func (f *function) kind() string {
	if f.method {
		return "builtin_function_or_method"
	}
	return "function"
}

func (f *function) invoke(m *machine, given callArguments) (Value, error) {
	return f.builtin.invoke(m, f.self, given)
}

// macroValue is a macro with the scope that it was made in.
type macroValue struct {
	macro *macro
	scope *scope
}

// invoke binds the arguments as jinja2.runtime.Macro.__call__ does and runs the
// body.
func (v *macroValue) invoke(m *machine, given callArguments) (Value, error) {
	inner := v.scope.frame(v.macro.unset)
	keywords := given.keywords
	take := func(name string) (Value, bool) {
		for i, keyword := range keywords {
			if keyword.name == name {
				keywords = append(append([]namedValue(nil), keywords[:i]...), keywords[i+1:]...)
				return keyword.value, true
			}
		}
		return nil, false
	}
	callerGiven := false
	missing := make([]bool, len(v.macro.parameters))
	for i, parameter := range v.macro.parameters {
		value, ok := Value(nil), i < len(given.positional)
		if ok {
			value = given.positional[i]
		} else {
			value, ok = take(parameter.name)
		}
		callerGiven = callerGiven || parameter.name == "caller"
		if !ok {
			missing[i] = true
			value = undefinedName(parameter.name)
		}
		inner.declare(parameter.name, value)
	}
	if v.macro.usesCaller && !callerGiven {
		caller, ok := take("caller")
		if !ok {
			caller = undefinedHint("No caller defined")
		}
		inner.declare("caller", caller)
	}
	if err := v.bindRest(inner, keywords, given.positional); err != nil {
		return nil, err
	}
	if err := m.deeper(); err != nil {
		return nil, err
	}
	defer m.shallower()
	if err := v.bindDefaults(m, inner, missing); err != nil {
		return nil, err
	}
	out := &buffer{machine: m}
	if _, err := m.execute(v.macro.body, inner, out); err != nil {
		return nil, err
	}
	return out.text.String(), nil
}

func (v *macroValue) bindRest(inner *scope, keywords []namedValue, positional []Value) error {
	if v.macro.usesKeywords {
		all := NewDict(len(keywords))
		for _, keyword := range keywords {
			all.SetText(keyword.name, keyword.value)
		}
		inner.declare("kwargs", all)
	} else if len(keywords) > 0 {
		for _, keyword := range keywords {
			if keyword.name == "caller" {
				return typeError("macro %s was invoked with two values for the special caller argument. This is most likely a bug.", quote(v.macro.name))
			}
		}
		return typeError("macro %s takes no keyword argument %s", quote(v.macro.name), quote(keywords[0].name))
	}
	count := len(v.macro.parameters)
	if v.macro.usesVariadic {
		inner.declare("varargs", &Tuple{Items: positional[min(count, len(positional)):]})
	} else if len(positional) > count {
		return typeError("macro %s takes not more than %d argument(s)", quote(v.macro.name), count)
	}
	return nil
}

func (v *macroValue) bindDefaults(m *machine, inner *scope, missing []bool) error {
	for i, parameter := range v.macro.parameters {
		if !missing[i] {
			continue
		}
		if parameter.defaultValue == nil {
			inner.declare(parameter.name, undefinedHint("parameter %s was not provided", quote(parameter.name)))
			continue
		}
		value, err := m.evaluate(parameter.defaultValue, inner)
		if err != nil {
			return atLine(err, v.macro.line)
		}
		inner.declare(parameter.name, value)
	}
	return nil
}
