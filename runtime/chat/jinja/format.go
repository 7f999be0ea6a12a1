package jinja

import (
	"math"
	"math/big"
	"strconv"
	"strings"
	"unicode/utf8"
)

// formatSpec is one conversion of % formatting or of str.format.
type formatSpec struct {
	fill      rune
	align     byte // '<', '>', '^', '=' or 0
	sign      byte // '+', ' ' or 0
	alternate bool
	grouping  byte // ',' or '_' or 0
	width     int
	precision int // -1 when there is none
	verb      byte
}

const maxFormatWidth = 1 << 20

// formatPercent is format % value.
func (m *machine) formatPercent(format string, value Value) (Value, error) {
	arguments := []Value{value}
	used := 0
	spare := false // what has items need not be used up
	switch v := value.(type) {
	case *Tuple:
		arguments = v.Items
	case *Dict, *List, rangeValue, *undefined:
		spare = true
	}
	next := func() (Value, error) {
		if used >= len(arguments) {
			return nil, typeError("not enough arguments for format string")
		}
		used++
		return arguments[used-1], nil
	}
	var b strings.Builder
	for i := 0; i < len(format); {
		at := strings.IndexByte(format[i:], '%')
		if at < 0 {
			b.WriteString(format[i:])
			break
		}
		b.WriteString(format[i : i+at])
		i += at + 1
		named, argument := false, Value(nil)
		if i < len(format) && format[i] == '(' {
			end := strings.IndexByte(format[i:], ')')
			if end < 0 {
				return nil, valueError("incomplete format key")
			}
			d, ok := value.(*Dict)
			if !ok {
				return nil, typeError("format requires a mapping")
			}
			key := format[i+1 : i+end]
			if argument, ok = d.GetText(key); !ok {
				return nil, raise("KeyError", "%s", quote(key))
			}
			named = true
			i += end + 1
		}
		spec, n, err := percentSpec(format[i:], next)
		if err != nil {
			return nil, err
		}
		i += n
		if spec.verb == '%' {
			b.WriteByte('%')
			continue
		}
		if !named {
			if argument, err = next(); err != nil {
				return nil, err
			}
		}
		text, err := m.percentValue(spec, argument)
		if err != nil {
			return nil, err
		}
		if err := m.churn(len(text)); err != nil {
			return nil, err
		}
		b.WriteString(text)
	}
	if used < len(arguments) && !spare {
		return nil, typeError("not all arguments converted during string formatting")
	}
	return b.String(), m.churn(b.Len())
}

// percentSpec reads flags, width, precision and verb after a "%".
func percentSpec(s string, next func() (Value, error)) (formatSpec, int, error) {
	spec := formatSpec{fill: ' ', align: '>', precision: -1}
	i := 0
	for ; i < len(s) && strings.IndexByte("-+ 0#", s[i]) >= 0; i++ {
		switch s[i] {
		case '-':
			spec.align = '<'
		case '+':
			spec.sign = '+'
		case ' ':
			if spec.sign == 0 {
				spec.sign = ' '
			}
		case '0':
			if spec.align != '<' {
				spec.fill, spec.align = '0', '='
			}
		case '#':
			spec.alternate = true
		}
	}
	number := func() (int, error) {
		if i < len(s) && s[i] == '*' {
			i++
			value, err := next()
			if err != nil {
				return 0, err
			}
			n, ok := integer(value)
			if !ok {
				return 0, typeError("* wants int")
			}
			return int(min(n, maxFormatWidth+1)), nil
		}
		start := i
		for i < len(s) && isDigit(s[i]) {
			i++
		}
		n, err := strconv.Atoi("0" + s[start:i])
		if err != nil {
			n = maxFormatWidth + 1
		}
		return n, nil
	}
	var err error
	if spec.width, err = number(); err != nil {
		return spec, 0, err
	}
	if spec.width < 0 {
		spec.width, spec.align, spec.fill = -spec.width, '<', ' '
	}
	if i < len(s) && s[i] == '.' {
		i++
		if spec.precision, err = number(); err != nil {
			return spec, 0, err
		}
		spec.precision = max(spec.precision, 0)
	}
	for i < len(s) && strings.IndexByte("hlL", s[i]) >= 0 {
		i++
	}
	if i == len(s) {
		return spec, 0, valueError("incomplete format")
	}
	spec.verb = s[i]
	return spec, i + 1, spec.check()
}

func (f formatSpec) check() error {
	if f.width > maxFormatWidth || f.precision > maxFormatWidth {
		return limitError("a format's width of more than %d", maxFormatWidth)
	}
	return nil
}

func (m *machine) percentValue(spec formatSpec, v Value) (string, error) {
	switch spec.verb {
	case 's', 'r', 'a':
		s, err := m.str(v)
		if spec.verb != 's' {
			s, err = m.repr(v)
		}
		if spec.align == '=' {
			spec.fill, spec.align = ' ', '>'
		}
		return spec.padText(s), err
	case 'c':
		if s, ok := text(v); ok && utf8.RuneCountInString(s) == 1 {
			return spec.padText(s), nil
		}
		if n, ok := integer(v); ok && n >= 0 && n <= utf8.MaxRune {
			return spec.padText(string(rune(n))), nil
		}
		return "", typeError("%%c requires int or char")
	case 'd', 'i', 'u':
		if f, ok := v.(float64); ok {
			if math.IsNaN(f) || math.IsInf(f, 0) {
				return "", valueError("cannot convert float %s to integer", floatText(f))
			}
			whole, _ := big.NewFloat(math.Trunc(f)).Int(nil)
			v = normalInteger(whole)
		}
		spec.verb = 'd'
	case 'o', 'x', 'X':
	case 'e', 'E', 'f', 'F', 'g', 'G':
		if isNumber(v) {
			f, err := float(v)
			if err != nil {
				return "", err
			}
			v = f
		}
	default:
		return "", valueError("unsupported format character '%c' (0x%x)", spec.verb, spec.verb)
	}
	if u, ok := v.(*undefined); ok {
		return "", u.fail()
	}
	if !isNumber(v) {
		return "", typeError("%%%c format: a real number is required, not %s", spec.verb, typeName(v))
	}
	return spec.number(v)
}

// parseFormatSpec reads the part after the colon of a replacement field.
func parseFormatSpec(s string) (formatSpec, error) {
	spec := formatSpec{fill: ' ', precision: -1}
	if r, size := utf8.DecodeRuneInString(s); size > 0 && size < len(s) && strings.IndexByte("<>=^", s[size]) >= 0 {
		spec.fill, spec.align = r, s[size]
		s = s[size+1:]
	} else if s != "" && strings.IndexByte("<>=^", s[0]) >= 0 {
		spec.align = s[0]
		s = s[1:]
	}
	take := func(set string) byte {
		if s != "" && strings.IndexByte(set, s[0]) >= 0 {
			c := s[0]
			s = s[1:]
			return c
		}
		return 0
	}
	number := func() int {
		n := 0
		for s != "" && isDigit(s[0]) {
			n = min(n*10+int(s[0]-'0'), maxFormatWidth+1)
			s = s[1:]
		}
		return n
	}
	if spec.sign = take("+- "); spec.sign == '-' {
		spec.sign = 0
	}
	spec.alternate = take("#") != 0
	if take("0") != 0 && spec.align == 0 {
		spec.fill, spec.align = '0', '='
	}
	spec.width = number()
	spec.grouping = take(",_")
	if take(".") != 0 {
		if s == "" || !isDigit(s[0]) {
			return spec, valueError("Format specifier missing precision")
		}
		spec.precision = number()
	}
	if s != "" {
		spec.verb = s[0]
		s = s[1:]
	}
	if s != "" {
		return spec, valueError("Invalid format specifier")
	}
	return spec, spec.check()
}

// formatValue is format(v, spec).
func (m *machine) formatValue(v Value, spec string) (string, error) {
	if spec == "" {
		return m.str(v)
	}
	f, err := parseFormatSpec(spec)
	if err != nil {
		return "", err
	}
	if s, ok := text(v); ok {
		if f.verb != 0 && f.verb != 's' {
			return "", valueError("Unknown format code '%c' for object of type 'str'", f.verb)
		}
		if f.align == '=' {
			if f.fill != '0' {
				return "", valueError("'=' alignment not allowed in string format specifier")
			}
			f.align = '<'
		}
		return f.padText(s), nil
	}
	if b, ok := v.(bool); ok && f.verb == 0 {
		return f.padText(map[bool]string{true: "True", false: "False"}[b]), nil
	}
	if !isNumber(v) {
		return "", typeError("unsupported format string passed to %s.__format__", typeName(v))
	}
	return f.number(v)
}

func (f formatSpec) padText(s string) string {
	if f.precision >= 0 {
		s = s[:byteOffset(s, int64(f.precision))]
	}
	if f.align == 0 {
		f.align = '<'
	}
	return f.pad("", s)
}

// pad fills up to the width; "=" puts the fill between sign and digits.
func (f formatSpec) pad(sign, s string) string {
	n := f.width - utf8.RuneCountInString(sign) - utf8.RuneCountInString(s)
	if n <= 0 {
		return sign + s
	}
	fill := func(n int) string { return strings.Repeat(string(f.fill), n) }
	switch f.align {
	case '<':
		return sign + s + fill(n)
	case '^':
		return fill(n/2) + sign + s + fill(n-n/2)
	case '=':
		return sign + fill(n) + s
	}
	return fill(n) + sign + s
}

func (f formatSpec) number(v Value) (string, error) {
	var body string
	var negative bool
	whole, isWhole := bigInteger(v)
	switch {
	case isWhole && strings.IndexByte("\x00dnboxXc", f.verb) >= 0:
		negative = whole.Sign() < 0
		body = f.wholeText(new(big.Int).Abs(whole))
	case strings.IndexByte("\x00eEfFgGn%", f.verb) >= 0:
		x, err := float(v)
		if err != nil {
			return "", err
		}
		negative = math.Signbit(x) && !math.IsNaN(x)
		body = f.floatText(math.Abs(x))
	default:
		return "", valueError("Unknown format code '%c' for object of type '%s'", f.verb, typeName(v))
	}
	sign := ""
	switch {
	case negative:
		sign = "-"
	case f.sign != 0:
		sign = string(f.sign)
	}
	if f.alternate && isWhole {
		if mark := map[byte]string{'x': "0x", 'X': "0X", 'o': "0o", 'b': "0b"}[f.verb]; mark != "" {
			sign += mark
		}
	}
	return f.pad(sign, body), nil
}

func (f formatSpec) wholeText(i *big.Int) string {
	base := map[byte]int{'b': 2, 'o': 8, 'x': 16, 'X': 16}[f.verb]
	if base == 0 {
		base = 10
	}
	if f.verb == 'c' {
		return string(rune(i.Int64()))
	}
	s := i.Text(base)
	if f.verb == 'X' {
		s = strings.ToUpper(s)
	}
	if n := f.precision - len(s); n > 0 { // of % formatting: so many digits
		s = strings.Repeat("0", n) + s
	}
	return f.group(s)
}

func (f formatSpec) floatText(x float64) string {
	verb, precision := f.verb, f.precision
	if verb == 0 && precision < 0 {
		return f.group(floatText(x))
	}
	if precision < 0 {
		precision = 6
	}
	if math.IsInf(x, 0) || math.IsNaN(x) {
		s := strings.ToLower(strings.TrimPrefix(floatText(x), "-"))
		if verb == 'E' || verb == 'F' || verb == 'G' {
			s = strings.ToUpper(s)
		}
		return s
	}
	switch verb {
	case '%':
		return f.group(strconv.FormatFloat(x*100, 'f', precision, 64)) + "%"
	case 'f', 'F':
		return f.group(strconv.FormatFloat(x, 'f', precision, 64))
	case 'e', 'E':
		s := strconv.FormatFloat(x, 'e', precision, 64)
		if verb == 'E' {
			s = strings.ToUpper(s)
		}
		return s
	}
	s := generalText(x, max(precision, 1), f.alternate)
	if verb == 0 && !strings.ContainsAny(s, ".e") {
		s += ".0"
	}
	if verb == 'G' {
		s = strings.ToUpper(s)
	}
	return f.group(s)
}

// generalText is C's %g.
func generalText(x float64, precision int, keepZeros bool) string {
	s := strconv.FormatFloat(x, 'e', precision-1, 64)
	at := strings.IndexByte(s, 'e')
	exponent, _ := strconv.Atoi(s[at+1:])
	mantissa, tail := s[:at], s[at:]
	if exponent >= -4 && exponent < precision {
		mantissa, tail = strconv.FormatFloat(x, 'f', precision-1-exponent, 64), ""
	}
	if !keepZeros && strings.Contains(mantissa, ".") {
		mantissa = strings.TrimRight(strings.TrimRight(mantissa, "0"), ".")
	}
	return mantissa + tail
}

// group puts a separator between groups of three digits.
func (f formatSpec) group(s string) string {
	if f.grouping == 0 {
		return s
	}
	end := strings.IndexFunc(s, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(s)
	}
	var b strings.Builder
	for i := range end {
		if i > 0 && (end-i)%3 == 0 {
			b.WriteByte(f.grouping)
		}
		b.WriteByte(s[i])
	}
	return b.String() + s[end:]
}
