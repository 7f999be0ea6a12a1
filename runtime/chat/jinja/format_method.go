package jinja

import (
	"strconv"
	"strings"
)

// formatMethod is str.format in the sandbox: fields look names up with the
// template's own rules.
func formatMethod(m *machine, self Value, a arguments) (Value, error) {
	s, _ := text(self)
	f := &fieldFormatter{machine: m, arguments: a}
	formatted, err := f.format(s, 2)
	return like(self, formatted), err
}

func formatMapMethod(m *machine, self Value, a arguments) (Value, error) {
	s, _ := text(self)
	d, ok := a.values[0].(*Dict)
	if !ok {
		return nil, typeError("'%s' object is not a mapping", typeName(a.values[0]))
	}
	f := &fieldFormatter{machine: m}
	for i, key := range d.keys {
		if name, ok := text(key); ok {
			f.arguments.keywords = append(f.arguments.keywords, namedValue{name: name, value: d.values[i]})
		}
	}
	formatted, err := f.format(s, 2)
	return like(self, formatted), err
}

type fieldFormatter struct {
	machine   *machine
	arguments arguments
	automatic int // fields numbered by themselves so far
}

func (f *fieldFormatter) format(s string, depth int) (string, error) {
	if depth < 0 {
		return "", valueError("Max string recursion exceeded")
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		at := strings.IndexAny(s[i:], "{}")
		if at < 0 {
			b.WriteString(s[i:])
			break
		}
		b.WriteString(s[i : i+at])
		i += at
		if i+1 < len(s) && s[i+1] == s[i] {
			b.WriteByte(s[i])
			i += 2
			continue
		}
		if s[i] == '}' {
			return "", valueError("Single '}' encountered in format string")
		}
		end := matchingBrace(s[i:])
		if end < 0 {
			return "", valueError("Single '{' encountered in format string")
		}
		text, err := f.field(s[i+1:i+end], depth)
		if err != nil {
			return "", err
		}
		if err := f.machine.churn(len(text)); err != nil {
			return "", err
		}
		b.WriteString(text)
		i += end + 1
	}
	return b.String(), f.machine.churn(b.Len())
}

func matchingBrace(s string) int {
	open := 0
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '{':
			open++
		case '}':
			open--
			if open == 0 {
				return i
			}
		}
	}
	return -1
}

func (f *fieldFormatter) field(s string, depth int) (string, error) {
	if err := f.machine.spend(1); err != nil {
		return "", err
	}
	path, spec, _ := strings.Cut(s, ":")
	path, conversion, converted := strings.Cut(path, "!")
	value, err := f.lookup(path)
	if err != nil {
		return "", err
	}
	if converted {
		switch conversion {
		case "r", "a":
			value, err = f.machine.repr(value)
		case "s":
			value, err = f.machine.str(value)
		default:
			return "", valueError("Unknown conversion specifier %s", conversion)
		}
		if err != nil {
			return "", err
		}
	}
	if strings.Contains(spec, "{") {
		if spec, err = f.format(spec, depth-1); err != nil {
			return "", err
		}
	}
	return f.machine.formatValue(value, spec)
}

// lookup finds "name", "0.field" or "name[key].field".
func (f *fieldFormatter) lookup(path string) (Value, error) {
	end := strings.IndexAny(path, ".[")
	if end < 0 {
		end = len(path)
	}
	value, err := f.argument(path[:end])
	for path = path[end:]; err == nil && path != ""; {
		if path[0] == '.' {
			end := strings.IndexAny(path[1:], ".[")
			if end < 0 {
				end = len(path) - 1
			}
			value, err = f.machine.attribute(value, path[1:1+end])
			path = path[1+end:]
			continue
		}
		end := strings.IndexByte(path, ']')
		if path[0] != '[' || end < 0 {
			return nil, valueError("Missing ']' in format string")
		}
		var key Value = path[1:end]
		if n, isNumber := strconv.ParseInt(path[1:end], 10, 32); isNumber == nil {
			key = n
		}
		value, err = f.machine.index(value, key)
		path = path[end+1:]
	}
	return value, err
}

func (f *fieldFormatter) argument(name string) (Value, error) {
	at := f.automatic
	if name == "" {
		f.automatic++
	} else if n, err := strconv.ParseInt(name, 10, 32); err == nil && n >= 0 {
		at = int(n)
	} else {
		for _, keyword := range f.arguments.keywords {
			if keyword.name == name {
				return keyword.value, nil
			}
		}
		return nil, raise("KeyError", "%s", quote(name))
	}
	if at >= len(f.arguments.rest) {
		return nil, raise("IndexError", "tuple index out of range")
	}
	return f.arguments.rest[at], nil
}
