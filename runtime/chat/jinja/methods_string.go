package jinja

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/cases"
	"golang.org/x/text/language"
)

func trimSpace(s string) string { return strings.TrimFunc(s, isSpace) }

type method = func(m *machine, self Value, a arguments) (Value, error)

// onText makes a method of a function from string to string.
func onText(name string, change func(string) string) *builtin {
	return &builtin{name: name, call: func(m *machine, self Value, _ arguments) (Value, error) {
		s, _ := text(self)
		if err := m.churn(len(s)); err != nil {
			return nil, err
		}
		return like(self, change(s)), nil
	}}
}

// asks makes a method of a predicate on strings.
func asks(name string, holds func(string) bool) *builtin {
	return &builtin{name: name, call: func(m *machine, self Value, _ arguments) (Value, error) {
		s, _ := text(self)
		if err := m.scan(len(s)); err != nil {
			return nil, err
		}
		return holds(s), nil
	}}
}

func strip(name string, left, right bool) *builtin {
	return &builtin{name: name, parameters: []string{"chars"}, only: true, call: func(m *machine, self Value, a arguments) (Value, error) {
		s, _ := text(self)
		if err := m.scan(len(s)); err != nil {
			return nil, err
		}
		in := isSpace
		if chars := a.or(0, nil); chars != nil {
			set, ok := text(chars)
			if !ok {
				return nil, typeError("%s arg must be None or str", name)
			}
			in = func(r rune) bool { return strings.ContainsRune(set, r) }
		}
		if left {
			s = strings.TrimLeftFunc(s, in)
		}
		if right {
			s = strings.TrimRightFunc(s, in)
		}
		return like(self, s), nil
	}}
}

var stringMethods = map[string]*builtin{
	"upper":      onText("upper", upper),
	"lower":      onText("lower", lower),
	"casefold":   onText("casefold", func(s string) string { return cases.Fold().String(s) }),
	"title":      onText("title", titleWords),
	"capitalize": onText("capitalize", capitalize),
	"swapcase":   onText("swapcase", swapCase),
	"strip":      strip("strip", true, true),
	"lstrip":     strip("lstrip", true, false),
	"rstrip":     strip("rstrip", false, true),

	"isspace":      asks("isspace", every(isSpace)),
	"isdigit":      asks("isdigit", every(unicode.IsDigit)),
	"isdecimal":    asks("isdecimal", every(unicode.IsDigit)),
	"isnumeric":    asks("isnumeric", every(unicode.IsNumber)),
	"isalpha":      asks("isalpha", every(unicode.IsLetter)),
	"isalnum":      asks("isalnum", every(func(r rune) bool { return unicode.IsLetter(r) || unicode.IsNumber(r) })),
	"isascii":      asks("isascii", isASCII),
	"isupper":      asks("isupper", func(s string) bool { return s == strings.ToUpper(s) && s != strings.ToLower(s) }),
	"islower":      asks("islower", func(s string) bool { return s == strings.ToLower(s) && s != strings.ToUpper(s) }),
	"istitle":      asks("istitle", func(s string) bool { return s == titleWords(s) && strings.ContainsFunc(s, unicode.IsLetter) }),
	"isidentifier": asks("isidentifier", func(s string) bool { return s != "" && nameLength(s) == len(s) }),
	"isprintable": asks("isprintable", func(s string) bool {
		return !strings.ContainsFunc(s, func(r rune) bool { return r != ' ' && !isPrintable(r) })
	}),

	"split":        {name: "split", parameters: []string{"sep", "maxsplit"}, call: split(false)},
	"rsplit":       {name: "rsplit", parameters: []string{"sep", "maxsplit"}, call: split(true)},
	"splitlines":   {name: "splitlines", parameters: []string{"keepends"}, call: splitLines},
	"partition":    {name: "partition", parameters: []string{"sep"}, required: 1, only: true, call: partition(false)},
	"rpartition":   {name: "rpartition", parameters: []string{"sep"}, required: 1, only: true, call: partition(true)},
	"join":         {name: "join", parameters: []string{"iterable"}, required: 1, only: true, call: joinMethod},
	"replace":      {name: "replace", parameters: []string{"old", "new", "count"}, required: 2, only: true, call: replaceMethod},
	"startswith":   {name: "startswith", parameters: []string{"prefix", "start", "end"}, required: 1, only: true, call: affix("startswith", strings.HasPrefix)},
	"endswith":     {name: "endswith", parameters: []string{"suffix", "start", "end"}, required: 1, only: true, call: affix("endswith", strings.HasSuffix)},
	"removeprefix": {name: "removeprefix", parameters: []string{"prefix"}, required: 1, only: true, call: remove(strings.TrimPrefix)},
	"removesuffix": {name: "removesuffix", parameters: []string{"suffix"}, required: 1, only: true, call: remove(strings.TrimSuffix)},
	"find":         {name: "find", parameters: []string{"sub", "start", "end"}, required: 1, only: true, call: find(strings.Index, false)},
	"rfind":        {name: "rfind", parameters: []string{"sub", "start", "end"}, required: 1, only: true, call: find(strings.LastIndex, false)},
	"index":        {name: "index", parameters: []string{"sub", "start", "end"}, required: 1, only: true, call: find(strings.Index, true)},
	"rindex":       {name: "rindex", parameters: []string{"sub", "start", "end"}, required: 1, only: true, call: find(strings.LastIndex, true)},
	"count":        {name: "count", parameters: []string{"sub", "start", "end"}, required: 1, only: true, call: countMethod},
	"format":       {name: "format", variadic: true, call: formatMethod},
	"zfill":        {name: "zfill", parameters: []string{"width"}, required: 1, only: true, call: zeroFill},
	"center":       {name: "center", parameters: []string{"width", "fillchar"}, required: 1, only: true, call: pad("center")},
	"ljust":        {name: "ljust", parameters: []string{"width", "fillchar"}, required: 1, only: true, call: pad("ljust")},
	"rjust":        {name: "rjust", parameters: []string{"width", "fillchar"}, required: 1, only: true, call: pad("rjust")},
	"format_map":   {name: "format_map", parameters: []string{"mapping"}, required: 1, only: true, call: formatMapMethod},
	"encode":       refused("encode", "templates have no use for bytes"),
	"translate":    refused("translate", "use replace"),
	"maketrans":    refused("maketrans", "use replace"),
	"expandtabs":   {name: "expandtabs", parameters: []string{"tabsize"}, call: expandTabs},
}

func every(holds func(rune) bool) func(string) bool {
	return func(s string) bool {
		return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return !holds(r) })
	}
}

// titleWords is str.title: what follows a letter is lower, else upper.
func titleWords(s string) string {
	inWord := false
	return strings.Map(func(r rune) rune {
		cased := unicode.IsUpper(r) || unicode.IsLower(r) || unicode.IsTitle(r)
		changed := unicode.ToTitle(r)
		if inWord {
			changed = unicode.ToLower(r)
		}
		inWord = cased
		return changed
	}, s)
}

func capitalize(s string) string {
	r, size := utf8.DecodeRuneInString(s)
	if size == 0 {
		return ""
	}
	return string(unicode.ToTitle(r)) + lower(s[size:])
}

// upper is str.upper: one code point may become several.
func upper(s string) string {
	if isASCII(s) {
		return strings.ToUpper(s)
	}
	return cases.Upper(language.Und).String(s)
}

// lower is str.lower, which knows the sigma at a word's end.
func lower(s string) string {
	if isASCII(s) {
		return strings.ToLower(s)
	}
	return cases.Lower(language.Und).String(s)
}

func swapCase(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsUpper(r) {
			return unicode.ToLower(r)
		}
		return unicode.ToUpper(r)
	}, s)
}

// texts makes a list of strings of the object's kind.
func (m *machine) texts(self Value, parts []string, size int) (Value, error) {
	if err := m.churn(size + valueBytes*len(parts)); err != nil {
		return nil, err
	}
	items := make([]Value, len(parts))
	for i, part := range parts {
		items[i] = like(self, part)
	}
	return &List{Items: items}, nil
}

func split(fromRight bool) method {
	return func(m *machine, self Value, a arguments) (Value, error) {
		s, _ := text(self)
		limit, err := a.integer(1, -1)
		if err != nil {
			return nil, err
		}
		if limit < 0 || limit > int64(len(s)) {
			limit = int64(len(s)) + 1
		}
		if a.or(0, nil) == nil {
			return m.texts(self, splitSpace(s, int(limit), fromRight), len(s))
		}
		separator, err := a.text(0, "")
		if err != nil {
			return nil, typeError("must be str or None, not %s", typeName(a.values[0]))
		}
		if separator == "" {
			return nil, valueError("empty separator")
		}
		if !fromRight {
			return m.texts(self, strings.SplitN(s, separator, int(limit)+1), len(s))
		}
		var parts []string
		for ; limit > 0; limit-- {
			at := strings.LastIndex(s, separator)
			if at < 0 {
				break
			}
			parts = append(parts, s[at+len(separator):])
			s = s[:at]
		}
		parts = append(parts, s)
		reverse(parts)
		return m.texts(self, parts, len(s))
	}
}

func reverse[T any](items []T) {
	for i, j := 0, len(items)-1; i < j; i, j = i+1, j-1 {
		items[i], items[j] = items[j], items[i]
	}
}

// splitSpace splits at runs of whitespace, at most limit times.
func splitSpace(s string, limit int, fromRight bool) []string {
	var parts []string
	if fromRight {
		for s = strings.TrimRightFunc(s, isSpace); s != ""; s = strings.TrimRightFunc(s, isSpace) {
			at := strings.LastIndexFunc(s, isSpace)
			if at < 0 || len(parts) == limit {
				parts = append(parts, s)
				break
			}
			_, size := utf8.DecodeRuneInString(s[at:])
			parts = append(parts, s[at+size:])
			s = s[:at]
		}
		reverse(parts)
		return parts
	}
	for s = strings.TrimLeftFunc(s, isSpace); s != ""; s = strings.TrimLeftFunc(s, isSpace) {
		at := strings.IndexFunc(s, isSpace)
		if at < 0 || len(parts) == limit {
			parts = append(parts, s)
			break
		}
		parts = append(parts, s[:at])
		s = s[at:]
	}
	return parts
}

func splitLines(m *machine, self Value, a arguments) (Value, error) {
	s, _ := text(self)
	keep := truth(a.or(0, false))
	isBreak := func(r rune) bool {
		return r >= '\n' && r <= '\r' || r >= 0x1c && r <= 0x1e || r == 0x85 || r == 0x2028 || r == 0x2029
	}
	size := len(s)
	var lines []string
	for s != "" {
		at := strings.IndexFunc(s, isBreak)
		if at < 0 {
			lines = append(lines, s)
			break
		}
		_, width := utf8.DecodeRuneInString(s[at:])
		if strings.HasPrefix(s[at:], "\r\n") {
			width = 2
		}
		end := at
		if keep {
			end += width
		}
		lines = append(lines, s[:end])
		s = s[at+width:]
	}
	return m.texts(self, lines, size)
}

func partition(last bool) method {
	return func(m *machine, self Value, a arguments) (Value, error) {
		s, _ := text(self)
		separator, err := a.text(0, "")
		if err != nil {
			return nil, err
		}
		if separator == "" {
			return nil, valueError("empty separator")
		}
		at := strings.Index(s, separator)
		parts := []string{s, "", ""}
		if last {
			at = strings.LastIndex(s, separator)
			parts = []string{"", "", s}
		}
		if at >= 0 {
			parts = []string{s[:at], separator, s[at+len(separator):]}
		}
		made, err := m.texts(self, parts, len(s))
		if err != nil {
			return nil, err
		}
		return &Tuple{Items: made.(*List).Items}, nil
	}
}

func joinMethod(m *machine, self Value, a arguments) (Value, error) {
	separator, _ := text(self)
	items, err := m.items(a.values[0])
	if err != nil {
		return nil, typeError("can only join an iterable")
	}
	_, markup := self.(Markup)
	parts := make([]string, len(items))
	size := 0
	for i, item := range items {
		s, ok := text(item)
		if markup {
			escaped, err := m.escape(item)
			if err != nil {
				return nil, err
			}
			s, ok = string(escaped), true
		}
		if !ok {
			return nil, typeError("sequence item %d: expected str instance, %s found", i, typeName(item))
		}
		parts[i] = s
		size += len(s) + len(separator)
	}
	joined, err := m.joinTexts(parts, separator, size)
	return like(self, joined), err
}

func (m *machine) joinTexts(parts []string, separator string, size int) (string, error) {
	if err := m.churn(size); err != nil {
		return "", err
	}
	return strings.Join(parts, separator), nil
}

// replaceText is str.replace, counted before it is done.
func (m *machine) replaceText(s, old, by string, count int64) (string, error) {
	if err := m.scan(len(s)); err != nil {
		return "", err
	}
	n := int64(strings.Count(s, old))
	if count < 0 || count > n {
		count = n
	}
	if count > 0 && int64(len(by)) > m.limits.OutputBytes/count {
		return "", limitError("a string of more than %d bytes", m.limits.OutputBytes)
	}
	if err := m.churn(len(s) + int(count)*len(by)); err != nil {
		return "", err
	}
	return strings.Replace(s, old, by, int(count)), nil
}

func replaceMethod(m *machine, self Value, a arguments) (Value, error) {
	s, _ := text(self)
	var sides [2]string
	for i := range sides {
		side, ok := text(a.values[i])
		if !ok {
			return nil, typeError("replace() argument %d must be str, not %s", i+1, typeName(a.values[i]))
		}
		if _, markup := self.(Markup); markup {
			escaped, err := m.escape(a.values[i])
			if err != nil {
				return nil, err
			}
			side = string(escaped)
		}
		sides[i] = side
	}
	count, err := a.integer(2, -1)
	if err != nil {
		return nil, err
	}
	replaced, err := m.replaceText(s, sides[0], sides[1], count)
	return like(self, replaced), err
}

// part cuts the window of find, count, startswith and their like.
func (a arguments) part(m *machine, s string, i int) (cut string, start int64, ok bool, err error) {
	if !a.has(i) && !a.has(i+1) {
		return s, 0, true, nil
	}
	if err := m.scan(2 * len(s)); err != nil {
		return "", 0, false, err
	}
	n := int64(utf8.RuneCountInString(s))
	start, stop, err := a.window(i, n)
	if err != nil || start > stop || start > n {
		return "", 0, false, err
	}
	from := byteOffset(s, start)
	return s[from : from+byteOffset(s[from:], stop-start)], start, true, nil
}

func affix(name string, has func(s, affix string) bool) method {
	return func(m *machine, self Value, a arguments) (Value, error) {
		s, _ := text(self)
		cut, _, ok, err := a.part(m, s, 1)
		if err != nil {
			return nil, err
		}
		candidates := []Value{a.values[0]}
		if several, isTuple := a.values[0].(*Tuple); isTuple {
			candidates = several.Items
		}
		for _, candidate := range candidates {
			wanted, isText := text(candidate)
			if !isText {
				return nil, typeError("%s first arg must be str or a tuple of str, not %s", name, typeName(candidate))
			}
			if ok && has(cut, wanted) {
				return true, m.scan(len(wanted))
			}
		}
		return false, m.spend(len(candidates))
	}
}

func remove(trim func(s, affix string) string) method {
	return func(m *machine, self Value, a arguments) (Value, error) {
		s, _ := text(self)
		affix, err := a.text(0, "")
		return like(self, trim(s, affix)), err
	}
}

func find(search func(s, part string) int, mustBe bool) method {
	return func(m *machine, self Value, a arguments) (Value, error) {
		s, _ := text(self)
		wanted, isText := text(a.values[0])
		if !isText {
			return nil, typeError("must be str, not %s", typeName(a.values[0]))
		}
		if err := m.scan(len(s)); err != nil {
			return nil, err
		}
		cut, start, ok, err := a.part(m, s, 1)
		if err != nil {
			return nil, err
		}
		if at := search(cut, wanted); ok && at >= 0 {
			return start + int64(utf8.RuneCountInString(cut[:at])), nil
		}
		if mustBe {
			return nil, valueError("substring not found")
		}
		return int64(-1), nil
	}
}

func countMethod(m *machine, self Value, a arguments) (Value, error) {
	s, _ := text(self)
	wanted, isText := text(a.values[0])
	if !isText {
		return nil, typeError("must be str, not %s", typeName(a.values[0]))
	}
	cut, _, ok, err := a.part(m, s, 1)
	if err != nil || !ok {
		return int64(0), err
	}
	return int64(strings.Count(cut, wanted)), m.scan(len(s))
}

func (m *machine) padding(width int64, s string) (int, error) {
	missing := width - int64(utf8.RuneCountInString(s))
	if missing > m.limits.OutputBytes/utf8.UTFMax {
		return 0, limitError("a string of more than %d bytes", m.limits.OutputBytes)
	}
	missing = max(missing, 0)
	return int(missing), m.churn(len(s) + int(missing)*utf8.UTFMax)
}

func zeroFill(m *machine, self Value, a arguments) (Value, error) {
	s, _ := text(self)
	width, err := a.integer(0, 0)
	if err != nil {
		return nil, err
	}
	n, err := m.padding(width, s)
	if err != nil {
		return nil, err
	}
	sign := ""
	if s != "" && (s[0] == '-' || s[0] == '+') {
		sign, s = s[:1], s[1:]
	}
	return like(self, sign+strings.Repeat("0", n)+s), nil
}

func pad(name string) method {
	return func(m *machine, self Value, a arguments) (Value, error) {
		s, _ := text(self)
		width, err := a.integer(0, 0)
		if err != nil {
			return nil, err
		}
		fill, err := a.text(1, " ")
		if err != nil {
			return nil, err
		}
		if utf8.RuneCountInString(fill) != 1 {
			return nil, typeError("The fill character must be exactly one character long")
		}
		n, err := m.padding(width, s)
		if err != nil {
			return nil, err
		}
		left := 0
		switch name {
		case "rjust":
			left = n
		case "center": // CPython puts the odd one left when the width is odd
			left = n/2 + n&int(width)&1
		}
		return like(self, strings.Repeat(fill, left)+s+strings.Repeat(fill, n-left)), nil
	}
}

func expandTabs(m *machine, self Value, a arguments) (Value, error) {
	s, _ := text(self)
	size, err := a.integer(0, 8)
	if err != nil {
		return nil, err
	}
	tabs := int64(strings.Count(s, "\t"))
	if size > 0 && tabs > m.limits.OutputBytes/size {
		return nil, limitError("a string of more than %d bytes", m.limits.OutputBytes)
	}
	if err := m.churn(len(s) + int(tabs*max(size, 0))); err != nil {
		return nil, err
	}
	var b strings.Builder
	column := int64(0)
	for _, r := range s {
		switch r {
		case '\t':
			if size > 0 {
				n := size - column%size
				b.WriteString(strings.Repeat(" ", int(n)))
				column += n
			}
			continue
		case '\n', '\r':
			column = -1
		}
		b.WriteRune(r)
		column++
	}
	return like(self, b.String()), nil
}
