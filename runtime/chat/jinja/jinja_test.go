package jinja

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// noon is when the references were made, as far as they know.
var noon = time.Date(2025, 3, 7, 9, 5, 2, 123456000, time.UTC)

type references struct {
	Context map[string]json.RawMessage
	Rows    []struct {
		Template, Error string
		Want            *string
	}
}

func readReferences(t testing.TB, name string) (references, []Variable) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	var refs references
	if err := json.Unmarshal(raw, &refs); err != nil {
		t.Fatal(err)
	}
	return refs, variables(t, refs.Context)
}

func variables(t testing.TB, context map[string]json.RawMessage) []Variable {
	t.Helper()
	var all []Variable
	for name, raw := range context {
		value, err := DecodeJSON(raw)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, Variable{Name: name, Value: value})
	}
	return all
}

func render(source string, variables []Variable, limits Limits) (string, error) {
	template, err := Parse(source)
	if err != nil {
		return "", err
	}
	return template.Render(variables, noon, limits)
}

// Law: every expression and statement gives what Jinja2 gives, and fails with
// the same exception where that fails.
func TestReferences(t *testing.T) {
	for _, name := range []string{"expressions.json", "statements.json"} {
		refs, variables := readReferences(t, name)
		if len(refs.Rows) < 300 {
			t.Fatalf("%s has %d rows only", name, len(refs.Rows))
		}
		for _, row := range refs.Rows {
			got, err := render(row.Template, variables, Limits{})
			var failure *Error
			switch {
			case row.Want == nil && !errors.As(err, &failure):
				t.Errorf("%s: %q with error %v, want error %s", row.Template, got, err, row.Error)
			case row.Want == nil && row.Error != failure.Class && row.Error != failure.Class+": "+failure.Message:
				t.Errorf("%s: error %v, want %s", row.Template, err, row.Error)
			case row.Want != nil && err != nil:
				t.Errorf("%s: %v, want %q", row.Template, err, *row.Want)
			case row.Want != nil && got != *row.Want:
				t.Errorf("%s:\n got %q\nwant %q", row.Template, got, *row.Want)
			}
		}
	}
}

// Law: what is not supported is refused by name, at parsing or when reached.
func TestRefusals(t *testing.T) {
	for name, c := range map[string]struct{ source, says string }{
		"autoescape": {"{% autoescape true %}{% endautoescape %}", "autoescape is not supported"},
		"include":    {"{% include 'x' %}", "no loader"},
		"name":       {`{{ '\N{BULLET}' }}`, `\N{...} escapes are not supported`},
		"random":     {"{{ [1]|random }}", "'random' is not supported"},
		"pprint":     {"{{ [1]|pprint }}", "'pprint' is not supported"},
		"urlize":     {"{{ 'x'|urlize }}", "'urlize' is not supported"},
		"lipsum":     {"{{ lipsum() }}", "lipsum is not supported"},
		"encode":     {"{{ 'x'.encode() }}", "'encode' is not supported"},
		"mutation":   {"{{ [].append(1) }}", "unsafe"},
		"trans":      {"{% trans %}{% endtrans %}", "unknown tag 'trans'"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := render(c.source, nil, Limits{}); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %v, want one that says %q", err, c.says)
			}
		})
	}
}

// Law: errors name the line of the template.
func TestErrorLines(t *testing.T) {
	for name, c := range map[string]struct {
		source string
		line   int
	}{
		"syntax":        {"a\n{% if %}\n", 2},
		"unclosed":      {"a\n\n{% if true %}\nb\n", 4},
		"print":         {"a\n{# x\n #}\n{{ u.x }}", 4},
		"stripped":      {"a\n\n\n{%- set x = u.x %}", 4},
		"in loop":       {"{% for i in [1] %}\n\n{{ u.x }}\n{% endfor %}", 3},
		"in macro":      {"{% macro m() %}\n{{ u.x }}\n{% endmacro %}\n{{ m() }}", 2},
		"unknown":       {"\n\n{{ 1|nope }}", 3},
		"raised":        {"\n{{ raise_exception('x') }}", 2},
		"raw counts":    {"{% raw %}\n\n{% endraw %}\n{{ u.x }}", 4},
		"windows lines": {"a\r\n\r\n{{ u.x }}", 3},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := render(c.source, nil, Limits{})
			var failure *Error
			if !errors.As(err, &failure) || failure.Line != c.line {
				t.Errorf("error %v, want one in line %d", err, c.line)
			}
		})
	}
}

// Law: no template takes more than its limits, whatever it does. Each of these
// would take minutes or gigabytes without them.
func TestLimits(t *testing.T) {
	nest := func(n int, open, end string) string { return strings.Repeat(open, n) + strings.Repeat(end, n) }
	for name, source := range map[string]string{
		"steps":             "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
		"output":            "{% for a in range(99999) %}{{ 'x' * 99999 }}{% endfor %}",
		"repeated string":   "{{ 'x' * 10**12 }}",
		"repeated list":     "{{ [1] * 10**12 }}",
		"doubled string":    "{% set n = namespace(s='xy') %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
		"doubled list":      "{% set n = namespace(s=[1]) %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
		"kept strings":      "{% set n = namespace(s=[]) %}{% for i in range(99999) %}{% set n.s = n.s + ['x' * 10**6 ~ i] %}{% endfor %}",
		"recursive macro":   "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
		"macro by macro":    "{% macro m(n) %}{% for i in range(9) %}{{ m(n+1) }}{% endfor %}{% endmacro %}{{ m(0) }}",
		"recursive loop":    "{% for a in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}",
		"deep value":        "{% set n = namespace(s=[]) %}{% for i in range(5000) %}{% set n.s = [n.s] %}{% endfor %}{{ n.s }}",
		"deep equality":     "{% set n = namespace(s=[],t=[]) %}{% for i in range(5000) %}{% set n.s = [n.s] %}{% set n.t = [n.t] %}{% endfor %}{{ n.s == n.t }}",
		"deep json":         "{% set n = namespace(s=[]) %}{% for i in range(5000) %}{% set n.s = [n.s] %}{% endfor %}{{ n.s|tojson }}",
		"shared value":      "{% set n = namespace(s=[1]) %}{% for i in range(60) %}{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s }}",
		"shared equality":   "{% set n = namespace(s=[1],t=[1]) %}{% for i in range(60) %}{% set n.s = [n.s, n.s] %}{% set n.t = [n.t, n.t] %}{% endfor %}{{ n.s == n.t }}",
		"shared tuple key":  "{% set n = namespace(s=(1,)) %}{% for i in range(60) %}{% set n.s = (n.s, n.s) %}{% endfor %}{{ {n.s: 1} }}",
		"power":             "{{ 9 ** (9 ** 9) }}",
		"squares":           "{% set n = namespace(s=9) %}{% for i in range(99) %}{% set n.s = n.s * n.s %}{% endfor %}",
		"shift":             "{{ '%s' % (2 ** 99999999) }}",
		"percent width":     "{{ '%999999999d' % 1 }}",
		"percent star":      "{{ '%*d' % (999999999, 1) }}",
		"format width":      "{{ '{:999999999}'.format(1) }}",
		"format precision":  "{{ '{:.999999999f}'.format(1.0) }}",
		"center":            "{{ 'x'|center(10**10) }}",
		"ljust":             "{{ 'x'.ljust(10**10) }}",
		"zfill":             "{{ 'x'.zfill(10**10) }}",
		"expandtabs":        "{{ '\t\t'.expandtabs(10**10) }}",
		"indent":            "{{ 'a\nb'|indent(10**10) }}",
		"json indent":       "{{ [1]|tojson(indent=10**9) }}",
		"replace":           "{{ ('x' * 10**6)|replace('x', 'y' * 10**6) }}",
		"replace nothing":   "{{ ('x' * 10**6).replace('', 'y' * 10**6) }}",
		"join":              "{{ (range(99999)|list)|join('y' * 10**6) }}",
		"batch fill":        "{{ [1]|batch(10**12, 0)|list }}",
		"slices":            "{{ [1]|slice(10**12)|list }}",
		"range":             "{{ range(10**18) }}",
		"wide range":        "{{ range(-2**62, 2**62) }}",
		"nested brackets":   "{{ " + nest(100000, "(", ")") + " }}",
		"nested lists":      "{{ " + nest(100000, "[", "]") + " }}",
		"nested not":        "{{ " + strings.Repeat("not ", 100000) + "1 }}",
		"nested minus":      "{{ " + strings.Repeat("-", 100000) + "1 }}",
		"nested ifs":        nest(100000, "{% if 1 %}", "{% endif %}"),
		"nested else":       "{{ " + strings.Repeat("1 if 0 else ", 100000) + "1 }}",
		"long sum":          "{{ 1" + strings.Repeat("+1", 100000) + " }}",
		"long or":           "{{ 0" + strings.Repeat(" or 0", 100000) + " }}",
		"long filters":      "{{ 1" + strings.Repeat("|string", 100000) + " }}",
		"long attributes":   "{{ a" + strings.Repeat(".a", 100000) + " }}",
		"long calls":        "{{ a" + strings.Repeat("()", 100000) + " }}",
		"endless wrap":      "{{ ('x ' * 10**6)|wordwrap(1, wrapstring='y' * 10**5) }}",
		"equal long":        "{% set s = 'x' * 10**7 %}{% set t = 'x' * 10**7 %}{% for i in range(99999) %}{% if s == t %}{% endif %}{% endfor %}",
		"search long":       "{% set s = 'x' * 10**7 %}{% for i in range(99999) %}{% if 'y' in s %}{% endif %}{% endfor %}",
		"strip long":        "{% set s = ' ' * 10**7 %}{% for i in range(99999) %}{% set t = s|trim %}{% endfor %}",
		"index long":        "{% set s = 'é' * 10**6 %}{% for i in range(99999) %}{% set t = s[999999] %}{% endfor %}",
		"length long":       "{% set s = 'é' * 10**6 %}{% for i in range(99999) %}{% set t = s|length %}{% endfor %}",
		"count long":        "{% set s = 'é' * 10**6 %}{% for i in range(99999) %}{% set t = s.find('', 5) %}{% endfor %}",
		"list membership":   "{% set s = range(99999)|list %}{% for i in range(99999) %}{% if -1 in s %}{% endif %}{% endfor %}",
		"sorts":             "{% set s = range(99999)|list %}{% for i in range(99999) %}{% set t = s|sort %}{% endfor %}",
		"hash of long text": "{% set s = 'x' * 10**7 %}{% for i in range(99999) %}{% set t = {s: 1} %}{% endfor %}",
		"title long":        "{% set s = 'x' * 10**6 %}{% for i in range(99999) %}{% set t = s.isalpha() %}{% endfor %}",
		"slices of lists":   "{% set s = range(99999)|list %}{% for i in range(99999) %}{% set t = s[::-1] %}{% endfor %}",
	} {
		t.Run(name, func(t *testing.T) {
			started := time.Now()
			out, err := render(source, nil, Limits{Steps: 1_000_000, OutputBytes: 16 << 20, ChurnBytes: 64 << 20})
			var failure *Error
			if !errors.As(err, &failure) {
				t.Fatalf("rendered %d bytes with error %v, want an *Error", len(out), err)
			}
			if took := time.Since(started); took > 10*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

// Law: the limits given are those that hold.
func TestOwnLimits(t *testing.T) {
	source := "{% for i in range(1000) %}{{ 'abcdefghij' }}{% endfor %}"
	for name, c := range map[string]struct {
		limits Limits
		fails  bool
	}{
		"default":   {Limits{}, false},
		"few steps": {Limits{Steps: 100}, true},
		"enough":    {Limits{Steps: 100000, OutputBytes: 10000, ChurnBytes: 1 << 20}, false},
		"output":    {Limits{OutputBytes: 9999}, true},
		"churn":     {Limits{ChurnBytes: 5000}, true},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := render(source, nil, c.limits)
			if errors.Is(err, ErrLimit) != c.fails || !c.fails && len(out) != 10000 {
				t.Errorf("%d bytes, error %v", len(out), err)
			}
		})
	}
}

// Law: a template is immutable; renderings at once don't see each other.
func TestRenderAtOnce(t *testing.T) {
	template, err := Parse("{% set ns = namespace(n=0) %}{% for i in range(k) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}")
	if err != nil {
		t.Fatal(err)
	}
	var wait sync.WaitGroup
	for k := range int64(16) {
		wait.Go(func() {
			for range 50 {
				got, err := template.Render([]Variable{{Name: "k", Value: k}}, noon, Limits{})
				if want := strconv.FormatInt(k*(k-1)/2, 10); err != nil || got != want {
					t.Errorf("k=%d: %q, %v; want %q", k, got, err, want)
				}
			}
		})
	}
	wait.Wait()
}

// Law: the input belongs to the caller and is not changed.
func TestInputUnchanged(t *testing.T) {
	const raw = `{"b": [1, {"z": 1, "a": 2}], "a": "x"}`
	value, err := DecodeJSON([]byte(raw))
	if err != nil {
		t.Fatal(err)
	}
	source := "{{ v|tojson }}{% set v = v %}{{ v.b|reverse|list }}{{ v.b[1]|dictsort }}{{ v.b|sort(attribute='q') if 0 }}{{ dict(v, c=1) }}{{ v.b + [1] }}{{ v.b|list|length }}"
	for range 2 {
		if _, err := render(source, []Variable{{Name: "v", Value: value}}, Limits{}); err != nil {
			t.Fatal(err)
		}
	}
	out, err := render("{{ v|tojson }}", []Variable{{Name: "v", Value: value}}, Limits{})
	if err != nil || out != raw {
		t.Errorf("%s, %v; want %s", out, err, raw)
	}
}

// Law: JSON keeps the order of keys, whole numbers of any size, and refuses what
// is not one value.
func TestDecodeJSON(t *testing.T) {
	for name, c := range map[string]struct{ raw, want string }{
		"order":     {`{"z":1,"a":2,"m":3}`, `{"z": 1, "a": 2, "m": 3}`},
		"twice":     {`{"a":1,"b":2,"a":3}`, `{"a": 3, "b": 2}`},
		"whole":     {`[1, -0, 9223372036854775807, 9223372036854775808]`, `[1, 0, 9223372036854775807, 9223372036854775808]`},
		"floats":    {`[1.0, 1e2, 1e-7, 1E400, 0.1]`, `[1.0, 100.0, 1e-07, Infinity, 0.1]`},
		"strings":   {`"\u00e9\ud83d\ude00\n"`, "\"é😀\\n\""},
		"two":       {`1 2`, ""},
		"cut":       {`{"a":`, ""},
		"empty":     {``, ""},
		"too deep":  {strings.Repeat("[", 300) + strings.Repeat("]", 300), ""},
		"too long":  {strings.Repeat("9", 5000), ""},
		"not JSON":  {`{a:1}`, ""},
		"bad close": {`[1}`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			value, err := DecodeJSON([]byte(c.raw))
			if err != nil {
				if c.want != "" {
					t.Fatal(err)
				}
				return
			}
			got, err := render("{{ v|tojson }}", []Variable{{Name: "v", Value: value}}, Limits{})
			if err != nil || got != c.want {
				t.Errorf("%s, %v; want %s", got, err, c.want)
			}
		})
	}
}

// Law: vLLM's rule tells which templates take content in parts.
func TestLoopsOver(t *testing.T) {
	for name, c := range map[string]struct {
		source string
		want   bool
	}{
		"text":           {"{% for m in messages %}{{ m.content }}{% endfor %}", false},
		"parts":          {"{% for m in messages %}{% for c in m['content'] %}{{ c.text }}{% endfor %}{% endfor %}", true},
		"attribute":      {"{% for m in messages %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}", true},
		"filtered":       {"{% for m in messages %}{% for c in m.content|selectattr('type', 'eq', 'text') %}{{ c.text }}{% endfor %}{% endfor %}", true},
		"renamed":        {"{% set all = messages[1:] %}{% for m in all %}{% for c in m.content %}{% endfor %}{% endfor %}", true},
		"twice":          {"{% set a = messages %}{% set b = a %}{% for m in b %}{% for c in m.content %}{% endfor %}{% endfor %}", true},
		"itself":         {"{% set messages = messages %}{% for m in messages %}{% endfor %}", false},
		"cycle":          {"{% set a = b %}{% set b = a %}{% set a = messages %}{% for m in a %}{% for c in m.content %}{% endfor %}{% endfor %}", true},
		"in a condition": {"{% for m in messages %}{% if m.content is string %}{% else %}{% for c in m.content %}{% endfor %}{% endif %}{% endfor %}", true},
		"other field":    {"{% for m in messages %}{% for c in m.tool_calls %}{% endfor %}{% endfor %}", false},
		"other variable": {"{% for m in tools %}{% for c in m.content %}{% endfor %}{% endfor %}", false},
		"macro":          {"{% macro f(c) %}{% for p in c %}{% endfor %}{% endmacro %}{% for m in messages %}{{ f(m.content) }}{% endfor %}", false},
		"several names":  {"{% for i, m in messages %}{% endfor %}{% for m in messages %}{% for c in m.content %}{% endfor %}{% endfor %}", false},
	} {
		t.Run(name, func(t *testing.T) {
			template, err := Parse(c.source)
			if err != nil {
				t.Fatal(err)
			}
			if got := template.LoopsOver("messages", "content"); got != c.want {
				t.Errorf("%v, want %v", got, c.want)
			}
		})
	}
}
