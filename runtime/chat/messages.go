package chat

import (
	"fmt"
	"strings"

	"manta/runtime/chat/jinja"
)

// messages reads the request's messages and brings them into the form that the
// template takes.
func (t *Template) messages(req Request) (*jinja.List, error) {
	if req.Messages == nil {
		return nil, fmt.Errorf("%w: messages is missing", ErrRequest)
	}
	value, err := objects("messages", req.Messages)
	if err != nil {
		return nil, err
	}
	given, ok := value.(*jinja.List)
	if !ok || len(given.Items) == 0 {
		return nil, fmt.Errorf("%w: messages must have at least one message", ErrRequest)
	}
	messages := &jinja.List{Items: make([]jinja.Value, len(given.Items))}
	for i, item := range given.Items {
		message := item.(*jinja.Dict) // objects has made sure
		if !req.Verbatim {
			if message, err = t.normal(message); err != nil {
				return nil, fmt.Errorf("%w: messages[%d].%w", ErrRequest, i, err)
			}
		}
		// transformers: many templates print "None" or fail on a null, where
		// they take a missing key well.
		message = message.Without(func(_, value jinja.Value) bool { return value == nil })
		messages.Items[i] = aliasReasoning(message)
	}
	return messages, nil
}

// aliasReasoning is transformers' _alias_reasoning_fields: the reasoning is under
// every name that some template reads.
func aliasReasoning(message *jinja.Dict) *jinja.Dict {
	for _, name := range []string{"reasoning_content", "thinking", "reasoning"} {
		reasoning, ok := message.GetText(name)
		if !ok {
			continue
		}
		aliased := message.Copy()
		if _, ok := message.GetText("thinking"); !ok {
			aliased.SetText("thinking", reasoning)
		}
		aliased.SetText("reasoning_content", reasoning)
		return aliased
	}
	return message
}

// normal does to one message what vLLM does to those of API clients
// (vllm/entrypoints/chat_utils.py, _parse_chat_message_content and
// _postprocess_messages).
func (t *Template) normal(message *jinja.Dict) (*jinja.Dict, error) {
	role, _ := message.GetText("role")
	if _, ok := role.(string); !ok {
		return nil, fmt.Errorf("role must be a string")
	}
	content, _ := message.GetText("content")
	changed, err := t.content(content, role == "tool")
	if err != nil {
		return nil, err
	}
	message = message.Copy()
	message.SetText("content", changed)
	if role == "assistant" {
		message = normalCalls(message)
	}
	return message, nil
}

// content gives a message's content in the template's form.
func (t *Template) content(content jinja.Value, tool bool) (jinja.Value, error) {
	asParts := t.format == FormatParts && !tool // a tool's answer is text in most templates
	switch c := content.(type) {
	case nil:
		if asParts && !t.strings {
			return &jinja.List{}, nil
		}
		return "", nil
	case string:
		if asParts && !t.strings {
			return &jinja.List{Items: []jinja.Value{textPart(c)}}, nil
		}
		return c, nil
	case *jinja.List:
		var texts []string
		for i, part := range c.Items {
			text, ok, err := partText(part)
			if err != nil {
				return nil, fmt.Errorf("content[%d]%w", i, err)
			}
			if ok {
				texts = append(texts, text)
			}
		}
		if !asParts {
			return strings.Join(texts, "\n"), nil
		}
		parts := &jinja.List{}
		for _, text := range texts {
			parts.Items = append(parts.Items, textPart(text))
		}
		return parts, nil
	}
	return nil, fmt.Errorf("content must be a string or a list of parts")
}

func textPart(text string) *jinja.Dict {
	part := jinja.NewDict(2)
	part.SetText("type", "text")
	part.SetText("text", text)
	return part
}

// partText gives a content part's text; false when it has none and is left out.
func partText(part jinja.Value) (string, bool, error) {
	if text, ok := part.(string); ok {
		return text, true, nil
	}
	fields, ok := part.(*jinja.Dict)
	if !ok {
		return "", false, fmt.Errorf(" must be a string or an object")
	}
	kind, _ := fields.GetText("type")
	if kind == nil {
		kind = "text" // as vLLM: a part with nothing but text
	}
	field := ""
	switch kind {
	case "text", "input_text", "output_text":
		field = "text"
	case "refusal", "thinking":
		field = kind.(string)
	default:
		return "", false, fmt.Errorf(".type %q is not supported: this server takes text parts alone", kind)
	}
	switch text, _ := fields.GetText(field); text := text.(type) {
	case string:
		return text, true, nil
	case nil:
		return "", false, nil
	}
	return "", false, fmt.Errorf(".%s must be a string", field)
}

// normalCalls turns the arguments of tool calls from the string that the API has
// them in into the object that templates expect.
func normalCalls(message *jinja.Dict) *jinja.Dict {
	given, _ := message.GetText("tool_calls")
	calls, ok := given.(*jinja.List)
	if !ok {
		return message
	}
	if len(calls.Items) == 0 {
		return message.Without(func(key, _ jinja.Value) bool { return key == "tool_calls" })
	}
	changed := &jinja.List{}
	for _, item := range calls.Items {
		changed.Items = append(changed.Items, normalCall(item))
	}
	message.SetText("tool_calls", changed)
	return message
}

func normalCall(item jinja.Value) jinja.Value {
	call, ok := item.(*jinja.Dict)
	if !ok {
		return item
	}
	given, _ := call.GetText("function")
	function, ok := given.(*jinja.Dict)
	if !ok {
		return item
	}
	function = function.Copy()
	arguments, _ := function.GetText("arguments")
	switch a := arguments.(type) {
	case *jinja.Dict, *jinja.List:
		return item
	case string:
		decoded, err := jinja.DecodeJSON([]byte(a))
		if err != nil {
			decoded = jinja.NewDict(0)
		}
		function.SetText("arguments", decoded)
	default:
		function.SetText("arguments", jinja.NewDict(0))
	}
	call = call.Copy()
	call.SetText("function", function)
	return call
}
