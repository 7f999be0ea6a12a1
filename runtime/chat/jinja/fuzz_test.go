package jinja

import (
	"errors"
	"testing"
	"unicode/utf8"
)

// fuzzLimits keep one input short.
var fuzzLimits = Limits{Steps: 50_000, OutputBytes: 1 << 18, ChurnBytes: 1 << 22, Depth: 500}

func addReferences(f *testing.F, add func(source string)) {
	for _, name := range []string{"expressions.json", "statements.json"} {
		refs, _ := readReferences(f, name)
		for i, row := range refs.Rows {
			if i%3 == 0 {
				add(row.Template)
			}
		}
	}
}

// Law: any text parses or is refused with a line; nothing panics.
func FuzzParse(f *testing.F) {
	addReferences(f, func(source string) { f.Add(source) })
	f.Fuzz(func(t *testing.T, source string) {
		_, err := Parse(source)
		var failure *Error
		if err != nil && (!errors.As(err, &failure) || failure.Line == 0 && !errors.Is(err, ErrLimit)) {
			t.Errorf("error without a line: %v", err)
		}
	})
}

// Law: any template over any input ends within its limits, in text or an
// *Error, and does so again.
func FuzzRender(f *testing.F) {
	const context = `{"s": "Hé", "l": [1, "b", null, 2.5], "d": {"a": {"b": [true]}}, "messages": [{"role": "user", "content": "hi"}]}`
	addReferences(f, func(source string) { f.Add(source, context) })
	f.Fuzz(func(t *testing.T, source, context string) {
		template, err := Parse(source)
		if err != nil {
			return
		}
		value, err := DecodeJSON([]byte(context))
		if err != nil {
			return
		}
		all := []Variable{{Name: "v", Value: value}}
		if fields, ok := value.(*Dict); ok {
			for i, key := range fields.keys {
				all = append(all, Variable{Name: key.(string), Value: fields.values[i]})
			}
		}
		first, err := template.Render(all, noon, fuzzLimits)
		var failure *Error
		if err != nil && !errors.As(err, &failure) {
			t.Errorf("error of another kind: %v", err)
		}
		if int64(len(first)) > fuzzLimits.OutputBytes {
			t.Errorf("%d bytes of output", len(first))
		}
		if utf8.ValidString(source) && !utf8.ValidString(first) {
			t.Errorf("output is not UTF-8: %q", first)
		}
		second, again := template.Render(all, noon, fuzzLimits)
		if second != first || (again == nil) != (err == nil) {
			t.Errorf("rendered again: %q, %v; first %q, %v", second, again, first, err)
		}
	})
}
