// Package chat turns the messages of a chat completion into the model's prompt,
// with the template that came with the model. It renders what transformers'
// apply_chat_template renders and, from what API clients send, makes what vLLM
// makes of it: content in parts where the template takes text, tool calls whose
// arguments are a string.
//
// A Template belongs to the loaded model and is shared by all requests. The
// package knows no tokens, does no I/O and reads no clock: the caller gives the
// time. The template language is in chat/jinja.
package chat

import (
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"strings"
	"time"

	"manta/runtime/chat/jinja"
)

var (
	// ErrTemplate means that the template is not valid or failed on this input.
	ErrTemplate = errors.New("chat template failed")
	// ErrRaised means that the template refused the messages by raise_exception.
	// The error's text is what it said.
	ErrRaised = errors.New("chat template refused the messages")
	// ErrRequest means that the request itself can't be rendered by any template.
	ErrRequest = errors.New("invalid chat request")
)

// Format is how a template takes a message's content.
type Format string

const (
	FormatText  Format = "string" // text alone; a list of parts is joined
	FormatParts Format = "openai" // a list of {"type": "text", "text": ...}
)

// Template is a compiled chat template: immutable, safe for concurrent use.
type Template struct {
	source   string
	compiled *jinja.Template
	format   Format
	strings  bool // the template tells text from parts itself
}

// Request is what a chat completion gives to its template. Raw JSON keeps the
// order of keys.
type Request struct {
	Messages  json.RawMessage // array, as the client sent it
	Tools     json.RawMessage // array, or nil
	Documents json.RawMessage // array, or nil

	AddGenerationPrompt  bool // end with the header of the assistant's turn
	ContinueFinalMessage bool // end inside the last message, without its end token

	Kwargs map[string]json.RawMessage // chat_template_kwargs

	BOS, EOS string            // text of the special tokens; empty: the model has none
	Special  map[string]string // others by name: unk_token, pad_token ...
	Now      time.Time         // for strftime_now

	// Verbatim passes the messages on as transformers would, without what vLLM
	// does to those of API clients.
	Verbatim bool

	Limits jinja.Limits // zero: jinja.DefaultLimits
}

// Parse compiles a template. The error is an ErrTemplate and names the line.
func Parse(source string) (*Template, error) {
	compiled, err := jinja.Parse(source)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTemplate, err)
	}
	t := &Template{source: source, compiled: compiled, format: FormatText, strings: compiled.Tests("string")}
	if compiled.LoopsOver("messages", "content") {
		t.format = FormatParts
	}
	return t, nil
}

// ContentFormat tells how the template takes a message's content, by vLLM's
// rule.
func (t *Template) ContentFormat() Format { return t.format }

// ReadsTools reports whether the template has a word about tools: otherwise Render
// passes over those that are given, as transformers does.
func (t *Template) ReadsTools() bool { return strings.Contains(t.source, "tools") }

// Render gives the prompt. Errors are ErrRaised, ErrTemplate or ErrRequest; each
// is the client's to mend or to hear of, none is the server's state.
func (t *Template) Render(req Request) (string, error) {
	if req.ContinueFinalMessage && req.AddGenerationPrompt {
		return "", fmt.Errorf("%w: continue_final_message and add_generation_prompt exclude each other; "+
			"set add_generation_prompt to false to continue the last message", ErrRequest)
	}
	messages, err := t.messages(req)
	if err != nil {
		return "", err
	}
	final := ""
	if req.ContinueFinalMessage {
		if messages, final, err = t.markFinal(messages); err != nil {
			return "", err
		}
	}
	variables, err := variables(req, messages)
	if err != nil {
		return "", err
	}
	prompt, err := t.compiled.Render(variables, req.Now, req.Limits)
	if err != nil {
		return "", renderError(err)
	}
	if req.ContinueFinalMessage {
		return cutAtMark(prompt, final)
	}
	return prompt, nil
}

func renderError(err error) error {
	var failure *jinja.Error
	if errors.As(err, &failure) && failure.Raised {
		return fmt.Errorf("%w: %s", ErrRaised, failure.Message)
	}
	return fmt.Errorf("%w: %w", ErrTemplate, err)
}

// reserved are names that chat_template_kwargs may not set: they have a field of
// their own in the request, or choose what the server does with the text.
var reserved = map[string]string{
	"messages":      "use the request's messages",
	"conversation":  "use the request's messages",
	"tools":         "use the request's tools",
	"chat_template": "the model's own template is used",
	"tokenize":      "use /tokenize",
}

// ignored are parameters of apply_chat_template that never reach a template.
var ignored = map[string]bool{
	"add_generation_prompt": true, "continue_final_message": true, "padding": true, "truncation": true,
	"max_length": true, "return_tensors": true, "return_dict": true, "return_assistant_tokens_mask": true,
	"tokenizer_kwargs": true, "sanitize_control_tokens": true,
}

// variables are the template's context: special tokens, then the client's
// parameters, then what every template gets.
func variables(req Request, messages *jinja.List) ([]jinja.Variable, error) {
	var all []jinja.Variable
	special := func(name, text string) {
		if text != "" {
			all = append(all, jinja.Variable{Name: name, Value: text})
		}
	}
	for _, name := range sortedKeys(req.Special) {
		special(name, req.Special[name])
	}
	special("bos_token", req.BOS)
	special("eos_token", req.EOS)
	documents := req.Documents
	for _, name := range sortedKeys(req.Kwargs) {
		if instead, ok := reserved[name]; ok {
			return nil, fmt.Errorf("%w: chat_template_kwargs.%s can't be set: %s", ErrRequest, name, instead)
		}
		if name == "documents" {
			if documents == nil {
				documents = req.Kwargs[name]
			}
			continue
		}
		if ignored[name] {
			continue
		}
		value, err := jinja.DecodeJSON(req.Kwargs[name])
		if err != nil {
			return nil, fmt.Errorf("%w: chat_template_kwargs.%s: %w", ErrRequest, name, err)
		}
		all = append(all, jinja.Variable{Name: name, Value: value})
	}
	tools, err := objects("tools", req.Tools)
	if err != nil {
		return nil, err
	}
	given, err := objects("documents", documents)
	if err != nil {
		return nil, err
	}
	return append(all,
		jinja.Variable{Name: "messages", Value: messages},
		jinja.Variable{Name: "tools", Value: tools},
		jinja.Variable{Name: "documents", Value: given},
		jinja.Variable{Name: "add_generation_prompt", Value: req.AddGenerationPrompt},
	), nil
}

// objects reads a list of objects; none gives nil, which a template sees as
// none.
func objects(field string, raw json.RawMessage) (jinja.Value, error) {
	if raw == nil {
		return nil, nil
	}
	value, err := jinja.DecodeJSON(raw)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrRequest, field, err)
	}
	if value == nil {
		return nil, nil
	}
	list, ok := value.(*jinja.List)
	if !ok {
		return nil, fmt.Errorf("%w: %s must be a list of objects", ErrRequest, field)
	}
	for i, item := range list.Items {
		if _, ok := item.(*jinja.Dict); !ok {
			return nil, fmt.Errorf("%w: %s[%d] must be an object", ErrRequest, field, i)
		}
	}
	return list, nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	return keys
}
