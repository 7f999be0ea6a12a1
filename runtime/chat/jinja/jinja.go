// Package jinja renders the template language of Jinja2 3.1, as far as chat
// templates use it: the environment is transformers' sandbox (trim_blocks,
// lstrip_blocks, loop controls, the generation tag, no autoescape, no loader).
// Values behave as Python's do: strings count code points, floats print as
// repr does, True is 1, an undefined name prints as nothing.
//
// A template and its input are data from strangers. Rendering is bounded in
// steps, bytes and depth, touches no file, no network and no clock of its own,
// and ends in a result or an *Error, never in a panic.
//
// runtime/chat is the only importer; it adds what transformers adds.
package jinja

import (
	"errors"
	"fmt"
	"time"
)

// ErrLimit means that a template or its input went past one of Limits.
var ErrLimit = errors.New("template limit exceeded")

// Error is what a Python exception would have been: Class is its name there
// (TemplateSyntaxError, UndefinedError, TypeError ...).
type Error struct {
	Class   string
	Message string
	Line    int  // of the template; 0 when no line is to blame
	Raised  bool // the template itself called raise_exception
	limit   bool
}

func (e *Error) Error() string {
	if e.Line == 0 {
		return e.Class + ": " + e.Message
	}
	return fmt.Sprintf("line %d: %s: %s", e.Line, e.Class, e.Message)
}

// Is lets errors.Is(err, ErrLimit) tell an exhausted bound from a mistake.
func (e *Error) Is(target error) bool { return e.limit && target == ErrLimit }

// raise makes the error that Python's exception of that class would be.
func raise(class, format string, args ...any) error {
	return &Error{Class: class, Message: fmt.Sprintf(format, args...)}
}

func typeError(format string, args ...any) error { return raise("TypeError", format, args...) }

func valueError(format string, args ...any) error { return raise("ValueError", format, args...) }

// atLine names the line of the innermost statement that failed.
func atLine(err error, line int) error {
	var failure *Error
	if errors.As(err, &failure) && failure.Line == 0 {
		failure.Line = line
	}
	return err
}

// Limits bound one rendering. A zero field takes DefaultLimits' value.
type Limits struct {
	Steps       int64 // evaluated nodes, plus work in proportion to sizes
	OutputBytes int64 // of the rendered text, and of any one string or list on the way
	ChurnBytes  int64 // of all strings and lists made on the way
	Depth       int   // nested evaluations
}

// DefaultLimits let any honest template through: the longest prompts of the
// references take under 100,000 steps.
var DefaultLimits = Limits{Steps: 10_000_000, OutputBytes: 64 << 20, ChurnBytes: 1 << 30, Depth: 2500}

const (
	maxSourceBytes = 4 << 20
	maxNesting     = 150    // of tags or brackets in the source
	maxChain       = 1000   // operators of one expression without brackets
	maxRange       = 100000 // sandbox.MAX_RANGE
	maxValueDepth  = 900    // of lists within lists, as Python's recursion limit
)

func (l Limits) withDefaults() Limits {
	if l.Steps == 0 {
		l.Steps = DefaultLimits.Steps
	}
	if l.OutputBytes == 0 {
		l.OutputBytes = DefaultLimits.OutputBytes
	}
	if l.ChurnBytes == 0 {
		l.ChurnBytes = DefaultLimits.ChurnBytes
	}
	if l.Depth == 0 {
		l.Depth = DefaultLimits.Depth
	}
	return l
}

// Template is a parsed template. It is immutable; any number of goroutines may
// render it at once.
type Template struct {
	body  []statement
	unset []string
}

// Variable is one name that the template's context holds.
type Variable struct {
	Name  string
	Value Value
}

// Parse reads a template. The error is an *Error that names the line.
func Parse(source string) (*Template, error) {
	if len(source) > maxSourceBytes {
		return nil, limitError("template of %d bytes, at most %d", len(source), maxSourceBytes)
	}
	tokens, err := lex(source)
	if err != nil {
		return nil, err
	}
	p := &parser{tokens: tokens}
	body, err := p.parseTemplate()
	if err != nil {
		return nil, err
	}
	if err := check(body); err != nil {
		return nil, err
	}
	return &Template{body: body, unset: newSymbols(nil).frame(body)}, nil
}

// Render gives the text that the template makes of the variables. now is what
// strftime_now formats.
func (t *Template) Render(variables []Variable, now time.Time, limits Limits) (string, error) {
	m := &machine{limits: limits.withDefaults(), now: now, filters: filters, tests: tests, methods: methods}
	globals := &scope{}
	for name, value := range globalFunctions {
		globals.declare(name, value)
	}
	context := globals.child()
	for _, v := range variables {
		context.declare(v.Name, v.Value)
	}
	out := &buffer{machine: m}
	own := context.frame(t.unset)
	own.root = true
	if _, err := m.execute(t.body, own, out); err != nil {
		return "", err
	}
	return out.text.String(), nil
}

func limitError(format string, args ...any) error {
	return &Error{Class: "LimitError", Message: fmt.Sprintf(format, args...), limit: true}
}
