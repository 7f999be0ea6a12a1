package jinja

import (
	"math"
	"math/big"
	"strings"
	"unicode"
)

// filters are those of jinja2/filters.py, with transformers' tojson.
var filters = map[string]*builtin{
	"abs":            {name: "abs", call: filterAbs},
	"attr":           {name: "attr", parameters: []string{"name"}, required: 1, call: filterAttr},
	"batch":          {name: "batch", parameters: []string{"linecount", "fill_with"}, required: 1, call: filterBatch},
	"capitalize":     softText("capitalize", capitalize),
	"center":         {name: "center", parameters: []string{"width"}, call: filterCenter},
	"count":          {name: "count", call: filterLength},
	"d":              {name: "default", parameters: []string{"default_value", "boolean"}, call: filterDefault},
	"default":        {name: "default", parameters: []string{"default_value", "boolean"}, call: filterDefault},
	"dictsort":       {name: "dictsort", parameters: []string{"case_sensitive", "by", "reverse"}, call: filterDictsort},
	"e":              {name: "escape", call: filterEscape},
	"escape":         {name: "escape", call: filterEscape},
	"filesizeformat": {name: "filesizeformat", parameters: []string{"binary"}, call: filterFileSize},
	"first":          {name: "first", call: filterFirst},
	"float":          {name: "float", parameters: []string{"default"}, call: filterFloat},
	"forceescape":    {name: "forceescape", call: filterForceEscape},
	"format":         {name: "format", variadic: true, call: filterFormat},
	"groupby":        {name: "groupby", parameters: []string{"attribute", "default", "case_sensitive"}, required: 1, call: filterGroupBy},
	"indent":         {name: "indent", parameters: []string{"width", "first", "blank"}, call: filterIndent},
	"int":            {name: "int", parameters: []string{"default", "base"}, call: filterInt},
	"items":          {name: "items", call: filterItems},
	"join":           {name: "join", parameters: []string{"d", "attribute"}, call: filterJoin},
	"last":           {name: "last", call: filterLast},
	"length":         {name: "length", call: filterLength},
	"list":           {name: "list", call: filterList},
	"lower":          softText("lower", lower),
	"map":            {name: "map", variadic: true, call: filterMap},
	"max":            {name: "max", parameters: []string{"case_sensitive", "attribute"}, call: extreme("max", ">")},
	"min":            {name: "min", parameters: []string{"case_sensitive", "attribute"}, call: extreme("min", "<")},
	"pprint":         refused("pprint", "tojson prints values"),
	"random":         refused("random", "a prompt must not change by chance"),
	"reject":         {name: "reject", variadic: true, call: choose(false, false)},
	"rejectattr":     {name: "rejectattr", variadic: true, call: choose(true, false)},
	"replace":        {name: "replace", parameters: []string{"old", "new", "count"}, required: 2, call: filterReplace},
	"reverse":        {name: "reverse", call: filterReverse},
	"round":          {name: "round", parameters: []string{"precision", "method"}, call: filterRound},
	"safe":           {name: "safe", call: filterSafe},
	"select":         {name: "select", variadic: true, call: choose(false, true)},
	"selectattr":     {name: "selectattr", variadic: true, call: choose(true, true)},
	"slice":          {name: "slice", parameters: []string{"slices", "fill_with"}, required: 1, call: filterSlice},
	"sort":           {name: "sort", parameters: []string{"reverse", "case_sensitive", "attribute"}, call: filterSort},
	"string":         {name: "string", call: filterString},
	"striptags":      {name: "striptags", call: filterStripTags},
	"sum":            {name: "sum", parameters: []string{"attribute", "start"}, call: filterSum},
	"title":          softText("title", titleFilter),
	"tojson":         {name: "tojson", parameters: []string{"ensure_ascii", "indent", "separators", "sort_keys"}, call: filterToJSON},
	"trim":           {name: "trim", parameters: []string{"chars"}, call: filterTrim},
	"truncate":       {name: "truncate", parameters: []string{"length", "killwords", "end", "leeway"}, call: filterTruncate},
	"unique":         {name: "unique", parameters: []string{"case_sensitive", "attribute"}, call: filterUnique},
	"upper":          softText("upper", upper),
	"urlencode":      {name: "urlencode", call: filterURLEncode},
	"urlize":         refused("urlize", "a prompt is not HTML"),
	"wordcount":      {name: "wordcount", call: filterWordCount},
	"wordwrap":       {name: "wordwrap", parameters: []string{"width", "break_long_words", "wrapstring", "break_on_hyphens"}, call: filterWordWrap},
	"xmlattr":        {name: "xmlattr", parameters: []string{"autospace"}, call: filterXMLAttr},
}

func refused(name, why string) *builtin {
	return &builtin{name: name, variadic: true, call: func(*machine, Value, arguments) (Value, error) {
		return nil, raise("TemplateRuntimeError", "%s is not supported: %s", quote(name), why)
	}}
}

// soft is markupsafe.soft_str: a string of v that stays Markup if it is one.
func (m *machine) soft(v Value) (Value, error) {
	if _, ok := text(v); ok {
		return v, nil
	}
	return m.str(v)
}

func softText(name string, change func(string) string) *builtin {
	return &builtin{name: name, call: func(m *machine, self Value, _ arguments) (Value, error) {
		soft, err := m.soft(self)
		if err != nil {
			return nil, err
		}
		s, _ := text(soft)
		if err := m.churn(len(s)); err != nil {
			return nil, err
		}
		return like(soft, change(s)), nil
	}}
}

// titleFilter is Jinja's own, which unlike str.title begins words only after
// space, hyphens and opening brackets.
func titleFilter(s string) string {
	inWord := false
	var b strings.Builder
	for _, r := range s {
		switch {
		case isSpace(r) || strings.ContainsRune("-({[<", r):
			inWord = false
			b.WriteRune(r)
		case inWord:
			b.WriteString(lower(string(r)))
		default:
			inWord = true
			b.WriteString(upper(string(r)))
		}
	}
	return b.String()
}

func filterAbs(_ *machine, self Value, _ arguments) (Value, error) {
	switch v := self.(type) {
	case float64:
		return math.Abs(v), nil
	case *undefined:
		return nil, typeError("bad operand type for abs(): 'Undefined'")
	}
	i, ok := bigInteger(self)
	if !ok {
		return nil, typeError("bad operand type for abs(): '%s'", typeName(self))
	}
	return normalInteger(new(big.Int).Abs(i)), nil
}

func filterAttr(m *machine, self Value, a arguments) (Value, error) {
	name, err := a.text(0, "")
	if err != nil {
		return nil, err
	}
	if value, ok, err := m.field(self, name); err != nil || ok {
		return value, err
	}
	return undefinedField(self, name), nil
}

func filterCenter(m *machine, self Value, a arguments) (Value, error) {
	soft, err := m.soft(self)
	if err != nil {
		return nil, err
	}
	return pad("center")(m, soft, arguments{values: []Value{a.or(0, int64(80)), absent{}}})
}

func filterLength(m *machine, self Value, _ arguments) (Value, error) {
	s, _ := text(self)
	if err := m.scan(len(s)); err != nil {
		return nil, err
	}
	return length(self)
}

func filterDefault(_ *machine, self Value, a arguments) (Value, error) {
	if _, missing := self.(*undefined); missing || truth(a.or(1, false)) && !truth(self) {
		return a.or(0, ""), nil
	}
	return self, nil
}

func filterEscape(m *machine, self Value, _ arguments) (Value, error) { return m.escape(self) }

func filterForceEscape(m *machine, self Value, _ arguments) (Value, error) {
	s, err := m.str(self)
	if err != nil {
		return nil, err
	}
	return m.escape(s)
}

func filterSafe(m *machine, self Value, _ arguments) (Value, error) {
	s, err := m.str(self)
	return Markup(s), err
}

func filterString(m *machine, self Value, _ arguments) (Value, error) { return m.soft(self) }

func filterFloat(_ *machine, self Value, a arguments) (Value, error) {
	if s, ok := text(self); ok {
		if f, ok := parseFloat(s); ok {
			return f, nil
		}
		return a.or(0, 0.0), nil
	}
	if u, ok := self.(*undefined); ok {
		return nil, u.fail()
	}
	if isNumber(self) {
		return float(self)
	}
	return a.or(0, 0.0), nil
}

func filterInt(_ *machine, self Value, a arguments) (Value, error) {
	if u, ok := self.(*undefined); ok {
		return nil, u.fail()
	}
	base, err := a.integer(1, 10)
	if err != nil {
		return nil, err
	}
	f := math.NaN()
	switch v := self.(type) {
	case bool, int64, *big.Int:
		i, _ := bigInteger(v)
		return normalInteger(i), nil
	case float64:
		if math.IsInf(v, 0) {
			return nil, raise("OverflowError", "cannot convert float infinity to integer")
		}
		f = v
	case string, Markup:
		s, _ := text(v)
		if base >= 2 && base <= 36 {
			if i, ok := parseInteger(s, int(base)); ok {
				return i, nil
			}
		}
		if parsed, ok := parseFloat(s); ok {
			f = parsed
		}
	}
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return a.or(0, int64(0)), nil
	}
	whole, _ := big.NewFloat(math.Trunc(f)).Int(nil)
	return normalInteger(whole), nil
}

func filterRound(_ *machine, self Value, a arguments) (Value, error) {
	precision, err := a.integer(0, 0)
	if err != nil {
		return nil, err
	}
	way, err := a.text(1, "common")
	if err != nil {
		return nil, err
	}
	if u, ok := self.(*undefined); ok {
		return nil, u.fail()
	}
	if !isNumber(self) {
		return nil, typeError("type %s doesn't define __round__ method", typeName(self))
	}
	f, err := float(self)
	if err != nil {
		return nil, err
	}
	scale := math.Pow(10, float64(precision))
	switch way {
	case "common":
		if i, whole := bigInteger(self); whole {
			return roundInteger(i, precision), nil
		}
		return roundFloat(f, precision), nil
	case "ceil":
		return math.Ceil(f*scale) / scale, nil
	case "floor":
		return math.Floor(f*scale) / scale, nil
	}
	return nil, raise("FilterArgumentError", "method must be common, ceil or floor")
}

// roundInteger is round(int, precision): to a multiple of ten, half to even.
func roundInteger(i *big.Int, precision int64) Value {
	if precision >= 0 {
		return normalInteger(i)
	}
	if -precision > maxIntegerBits/3 {
		return int64(0)
	}
	unit := new(big.Int).Exp(big.NewInt(10), big.NewInt(-precision), nil)
	quotient, rest := new(big.Int).DivMod(i, unit, new(big.Int))
	twice := new(big.Int).Lsh(rest, 1)
	if order := twice.Cmp(unit); order > 0 || order == 0 && quotient.Bit(0) == 1 {
		quotient.Add(quotient, big.NewInt(1))
	}
	return normalInteger(quotient.Mul(quotient, unit))
}

// roundFloat is round(float, precision): exact, half to even.
func roundFloat(f float64, precision int64) float64 {
	if math.IsNaN(f) || math.IsInf(f, 0) || precision > 323 {
		return f
	}
	if precision < -308 {
		return math.Copysign(0, f)
	}
	if precision >= 0 {
		rounded, _ := new(big.Float).SetString(new(big.Float).SetFloat64(f).Text('f', int(precision)))
		r, _ := rounded.Float64()
		return math.Copysign(r, f)
	}
	unit := math.Pow(10, float64(-precision))
	return math.RoundToEven(f/unit) * unit
}

func filterTrim(m *machine, self Value, a arguments) (Value, error) {
	soft, err := m.soft(self)
	if err != nil {
		return nil, err
	}
	return stringMethods["strip"].call(m, soft, a)
}

func filterReplace(m *machine, self Value, a arguments) (Value, error) {
	var parts [3]string
	for i, v := range []Value{self, a.values[0], a.values[1]} {
		var err error
		if parts[i], err = m.str(v); err != nil {
			return nil, err
		}
	}
	count := int64(-1)
	if a.or(2, nil) != nil {
		var err error
		if count, err = a.integer(2, -1); err != nil {
			return nil, err
		}
	}
	return m.replaceText(parts[0], parts[1], parts[2], count)
}

func filterIndent(m *machine, self Value, a arguments) (Value, error) {
	s, ok := text(self)
	if !ok {
		if u, missing := self.(*undefined); missing {
			return nil, u.fail()
		}
		if _, list := self.(*List); list { // += takes any iterable there
			return nil, raise("AttributeError", "'list' object has no attribute 'splitlines'")
		}
		return nil, typeError("unsupported operand type(s) for +=: '%s' and 'str'", typeName(self))
	}
	indention, isText := text(a.or(0, int64(4)))
	if !isText {
		width, err := a.integer(0, 4)
		if err != nil {
			return nil, err
		}
		blank, err := m.repeat(" ", width)
		if err != nil {
			return nil, err
		}
		indention = blank.(string)
	}
	first, blank := truth(a.or(1, false)), truth(a.or(2, false))
	made, err := splitLines(m, s+"\n", arguments{values: []Value{absent{}}})
	if err != nil {
		return nil, err
	}
	lines := made.(*List).Items
	if n := int64(len(indention)); n > 0 && int64(len(lines)) > m.limits.OutputBytes/n {
		return nil, limitError("a string of more than %d bytes", m.limits.OutputBytes)
	}
	if err := m.churn(len(s) + len(lines)*(len(indention)+1)); err != nil {
		return nil, err
	}
	var b strings.Builder
	if first {
		b.WriteString(indention)
	}
	for i, line := range lines {
		if i > 0 {
			b.WriteByte('\n')
			if blank || line.(string) != "" {
				b.WriteString(indention)
			}
		}
		b.WriteString(line.(string))
	}
	return like(self, b.String()), nil
}

func filterTruncate(m *machine, self Value, a arguments) (Value, error) {
	size, err := a.integer(0, 255)
	if err != nil {
		return nil, err
	}
	end, err := a.text(2, "...")
	if err != nil {
		return nil, err
	}
	leeway := int64(5)
	if a.or(3, nil) != nil {
		if leeway, err = a.integer(3, 5); err != nil {
			return nil, err
		}
	}
	tail, _ := length(end)
	if size < tail {
		return nil, raise("AssertionError", "expected length >= %d, got %d", tail, size)
	}
	if leeway < 0 {
		return nil, raise("AssertionError", "expected leeway >= 0, got %d", leeway)
	}
	if shown, ok := text(self); ok {
		if err := m.scan(len(shown)); err != nil {
			return nil, err
		}
	}
	n, err := length(self)
	if err != nil {
		return nil, err
	}
	if n <= size+leeway {
		return self, nil
	}
	s, ok := text(self)
	if !ok {
		return nil, typeError("'%s' object can't be truncated", typeName(self))
	}
	s = s[:byteOffset(s, size-tail)]
	if !truth(a.or(1, false)) {
		if at := strings.LastIndexByte(s, ' '); at >= 0 {
			s = s[:at]
		}
	}
	return like(self, s+end), m.churn(len(s))
}

func filterWordCount(m *machine, self Value, _ arguments) (Value, error) {
	s, err := m.str(self)
	if err != nil {
		return nil, err
	}
	words := strings.FieldsFunc(s, func(r rune) bool {
		return r != '_' && !unicode.IsLetter(r) && !unicode.IsNumber(r)
	})
	return int64(len(words)), m.scan(len(s))
}

func filterToJSON(m *machine, self Value, a arguments) (Value, error) {
	style := jsonStyle{ascii: truth(a.or(0, false)), item: ", ", colon: ": ", sorted: truth(a.or(3, false))}
	if indent := a.or(1, nil); indent != nil {
		style.lines = true
		style.item = ","
		if s, ok := text(indent); ok {
			style.indent = s
		} else {
			width, err := a.integer(1, 0)
			if err != nil {
				return nil, err
			}
			if width > 1000 {
				return nil, limitError("an indent of %d", width)
			}
			style.indent = strings.Repeat(" ", int(max(width, 0)))
		}
	}
	if separators := a.or(2, nil); separators != nil {
		pair, err := m.unpack(separators, 2)
		if err != nil {
			return nil, err
		}
		var item, colon bool
		if style.item, item = text(pair[0]); item {
			style.colon, colon = text(pair[1])
		}
		if !colon {
			return nil, typeError("separators must be strings")
		}
	}
	var b strings.Builder
	if err := m.encodeJSON(&b, self, style, 0); err != nil {
		return nil, err
	}
	return b.String(), nil
}
