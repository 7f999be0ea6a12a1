package jinja

import (
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

// filterFormat is soft_str(value) % arguments.
func filterFormat(m *machine, self Value, a arguments) (Value, error) {
	format, err := m.str(self)
	if err != nil {
		return nil, err
	}
	if len(a.rest) > 0 && len(a.keywords) > 0 {
		return nil, raise("FilterArgumentError", "can't handle positional and keyword arguments at the same time")
	}
	if len(a.keywords) == 0 {
		return m.formatPercent(format, &Tuple{Items: a.rest})
	}
	named := NewDict(len(a.keywords))
	for _, keyword := range a.keywords {
		named.SetText(keyword.name, keyword.value)
	}
	return m.formatPercent(format, named)
}

func filterFileSize(m *machine, self Value, a arguments) (Value, error) {
	var f float64
	if s, ok := text(self); ok {
		parsed, ok := parseFloat(s)
		if !ok {
			return nil, valueError("could not convert string to float: %s", quote(s))
		}
		f = parsed
	} else if isNumber(self) {
		var err error
		if f, err = float(self); err != nil {
			return nil, err
		}
	} else {
		if u, missing := self.(*undefined); missing {
			return nil, u.fail()
		}
		return nil, typeError("float() argument must be a string or a real number, not '%s'", typeName(self))
	}
	base, suffix := 1000.0, "B"
	prefixes := []string{"k", "M", "G", "T", "P", "E", "Z", "Y"}
	if truth(a.or(0, false)) {
		base, suffix, prefixes[0] = 1024, "iB", "K"
	}
	switch {
	case f == 1:
		return "1 Byte", nil
	case f < base:
		return strconv.FormatFloat(math.Trunc(f), 'f', 0, 64) + " Bytes", nil
	}
	unit := base
	for i, prefix := range prefixes {
		unit *= base
		if f < unit || i == len(prefixes)-1 {
			return strconv.FormatFloat(base*f/unit, 'f', 1, 64) + " " + prefix + suffix, nil
		}
	}
	return nil, nil
}

// filterStripTags takes away tags and comments and folds white space.
func filterStripTags(m *machine, self Value, _ arguments) (Value, error) {
	s, err := m.str(self)
	if err != nil {
		return nil, err
	}
	cut := func(s, open, end string) string {
		var b strings.Builder
		for {
			from := strings.Index(s, open)
			if from < 0 {
				break
			}
			to := strings.Index(s[from:], end)
			if to < 0 {
				break
			}
			b.WriteString(s[:from])
			s = s[from+to+len(end):]
		}
		return b.String() + s
	}
	s = cut(cut(s, "<!--", "-->"), "<", ">")
	s = strings.Join(strings.FieldsFunc(s, isSpace), " ")
	for _, entity := range [][2]string{{"&lt;", "<"}, {"&gt;", ">"}, {"&#39;", "'"}, {"&#34;", "\""}, {"&quot;", "\""}, {"&amp;", "&"}} {
		s = strings.ReplaceAll(s, entity[0], entity[1])
	}
	return s, m.churn(len(s))
}

// quoteURL is urllib.parse.quote with Jinja's choice of safe characters.
func quoteURL(s string, query bool) string {
	const digits = "0123456789ABCDEF"
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case isAlphanumeric(c) || strings.IndexByte("_.-~", c) >= 0 || c == '/' && !query:
			b.WriteByte(c)
		case c == ' ' && query:
			b.WriteByte('+')
		default:
			b.Write([]byte{'%', digits[c>>4], digits[c&15]})
		}
	}
	return b.String()
}

func filterURLEncode(m *machine, self Value, _ arguments) (Value, error) {
	quoted := func(v Value, query bool) (string, error) {
		s, err := m.str(v)
		if err != nil {
			return "", err
		}
		return quoteURL(s, query), m.churn(3 * len(s))
	}
	if _, ok := text(self); ok || isNumber(self) || self == nil {
		return quoted(self, false)
	}
	pairs := self
	if d, ok := self.(*Dict); ok {
		pairs = dictView{kind: "dict_items", dict: d}
	}
	items, err := m.items(pairs)
	if err != nil {
		return nil, err
	}
	var parts []string
	for _, item := range items {
		pair, err := m.unpack(item, 2)
		if err != nil {
			return nil, err
		}
		key, err := quoted(pair[0], true)
		if err != nil {
			return nil, err
		}
		value, err := quoted(pair[1], true)
		if err != nil {
			return nil, err
		}
		parts = append(parts, key+"="+value)
	}
	return strings.Join(parts, "&"), nil
}

func filterXMLAttr(m *machine, self Value, a arguments) (Value, error) {
	d, ok := self.(*Dict)
	if !ok {
		return nil, raise("AttributeError", "'%s' object has no attribute 'items'", typeName(self))
	}
	var parts []string
	for i, key := range d.keys {
		if _, missing := d.values[i].(*undefined); missing || d.values[i] == nil {
			continue
		}
		name, ok := text(key)
		if !ok {
			return nil, typeError("expected string or bytes-like object, got '%s'", typeName(key))
		}
		if strings.ContainsAny(name, " \t\n\r\f\v/>=") {
			return nil, valueError("Invalid character in attribute name: %s", quote(name))
		}
		escapedName, err := m.escape(key)
		if err != nil {
			return nil, err
		}
		escaped, err := m.escape(d.values[i])
		if err != nil {
			return nil, err
		}
		parts = append(parts, string(escapedName)+"=\""+string(escaped)+"\"")
	}
	joined := strings.Join(parts, " ")
	if joined != "" && truth(a.or(0, true)) {
		joined = " " + joined
	}
	return joined, m.churn(len(joined))
}

// filterWordWrap wraps each line at width, at spaces and after hyphens.
func filterWordWrap(m *machine, self Value, a arguments) (Value, error) {
	s, ok := text(self)
	if !ok {
		if u, missing := self.(*undefined); missing {
			return nil, u.fail()
		}
		return nil, raise("AttributeError", "'%s' object has no attribute 'splitlines'", typeName(self))
	}
	width, err := a.integer(0, 79)
	if err != nil {
		return nil, err
	}
	if width <= 0 {
		return nil, valueError("invalid width %d (must be > 0)", width)
	}
	separator := "\n"
	if a.or(2, nil) != nil {
		if separator, err = a.text(2, "\n"); err != nil {
			return nil, err
		}
	}
	made, err := splitLines(m, s, arguments{values: []Value{absent{}}})
	if err != nil {
		return nil, err
	}
	var lines []string
	size := 0
	for _, line := range made.(*List).Items {
		wrapped := wrapLine(line.(string), int(min(width, maxFormatWidth)), truth(a.or(1, true)), truth(a.or(3, true)))
		if len(wrapped) == 0 {
			wrapped = []string{""}
		}
		for _, part := range wrapped {
			size += len(part) + len(separator)
		}
		lines = append(lines, wrapped...)
	}
	return m.joinTexts(lines, separator, size)
}

// wrapLine is textwrap.wrap: chunks are words and the spaces between them; a
// line drops the spaces it would begin or end with, but for the first line's.
func wrapLine(s string, width int, breakLong, breakHyphens bool) []string {
	chunks := wrapChunks(s, breakHyphens)
	reverse(chunks)
	var lines []string
	for len(chunks) > 0 {
		var line []string
		used := 0
		if trimSpace(chunks[len(chunks)-1]) == "" && len(lines) > 0 {
			chunks = chunks[:len(chunks)-1]
		}
		for len(chunks) > 0 {
			chunk := chunks[len(chunks)-1]
			n := utf8.RuneCountInString(chunk)
			if used+n > width {
				break
			}
			line = append(line, chunk)
			used += n
			chunks = chunks[:len(chunks)-1]
		}
		if len(chunks) > 0 && utf8.RuneCountInString(chunks[len(chunks)-1]) > width {
			chunk := chunks[len(chunks)-1]
			if breakLong {
				at := byteOffset(chunk, int64(width-used))
				if hyphen := strings.LastIndexByte(chunk[:at], '-'); breakHyphens && hyphen > 0 && strings.Trim(chunk[:hyphen], "-") != "" {
					at = hyphen + 1
				}
				line = append(line, chunk[:at])
				chunks[len(chunks)-1] = chunk[at:]
			} else if len(line) == 0 {
				line = append(line, chunk)
				chunks = chunks[:len(chunks)-1]
			}
		}
		if len(line) > 0 && trimSpace(line[len(line)-1]) == "" {
			line = line[:len(line)-1]
		}
		if len(line) > 0 {
			lines = append(lines, strings.Join(line, ""))
		}
	}
	return lines
}

func wrapChunks(s string, breakHyphens bool) []string {
	var chunks []string
	for s != "" {
		end := strings.IndexFunc(s, isSpace)
		if end == 0 {
			end = leadingSpace(s)
			chunks = append(chunks, s[:end])
			s = s[end:]
			continue
		}
		if end < 0 {
			end = len(s)
		}
		word := s[:end]
		s = s[end:]
		for at := 1; breakHyphens && at+2 < len(word); at++ {
			letters := isLetter(word[at-1]) && isLetter(word[at+1]) && isLetter(word[at+2])
			if word[at] == '-' && letters && (at > 1 && isLetter(word[at-2])) {
				chunks = append(chunks, word[:at+1])
				word = word[at+1:]
				at = 0
			}
		}
		chunks = append(chunks, word)
	}
	return chunks
}

func isLetter(c byte) bool { return c|32 >= 'a' && c|32 <= 'z' || c >= utf8.RuneSelf }
