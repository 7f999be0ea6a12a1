package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// maxMessages bounds a conversation; the body's limit bounds its bytes.
const maxMessages = 16384

// normalize checks messages and brings their contents to the form that chat
// templates expect: a string (parts of text joined by newlines, as vLLM does),
// and the arguments of tool calls as objects. All else stays as it came.
func normalize(messages []json.RawMessage) (json.RawMessage, error) {
	if len(messages) > maxMessages {
		return nil, badField("messages", "messages has %d entries, at most %d", len(messages), maxMessages)
	}
	var all bytes.Buffer
	all.WriteByte('[')
	for i, raw := range messages {
		message, err := normalizeMessage(fmt.Sprintf("messages[%d]", i), raw)
		if err != nil {
			return nil, err
		}
		if i > 0 {
			all.WriteByte(',')
		}
		all.Write(message)
	}
	all.WriteByte(']')
	return all.Bytes(), nil
}

func normalizeMessage(field string, raw json.RawMessage) (json.RawMessage, error) {
	var message map[string]json.RawMessage
	if err := json.Unmarshal(raw, &message); err != nil || message == nil {
		return nil, badField(field, "%s must be an object", field)
	}
	var role string
	if err := json.Unmarshal(message["role"], &role); err != nil || role == "" {
		return nil, badField(field+".role", "%s.role must be a string", field)
	}
	changed := false
	content := message["content"]
	switch {
	case absent(content):
		if role != "assistant" {
			return nil, badField(field+".content", "%s.content must be given", field)
		}
	case content[0] == '[':
		text, err := joinParts(field+".content", content)
		if err != nil {
			return nil, err
		}
		if message["content"], err = marshal(text); err != nil {
			return nil, err
		}
		changed = true
	case content[0] != '"':
		return nil, badField(field+".content", "%s.content must be a string or a list of parts", field)
	}
	if calls := message["tool_calls"]; !absent(calls) {
		opened, err := openArguments(field+".tool_calls", calls)
		if err != nil {
			return nil, err
		}
		message["tool_calls"], changed = opened, true
	}
	if !changed {
		return raw, nil
	}
	return marshal(message)
}

// joinParts gives the text of a list of content parts.
func joinParts(field string, raw json.RawMessage) (string, error) {
	parts, err := decodeField[[]json.RawMessage](field, raw, "a string or a list of parts")
	if err != nil {
		return "", err
	}
	var texts []string
	for i, raw := range parts {
		at := fmt.Sprintf("%s[%d]", field, i)
		if raw[0] == '"' {
			text, err := decodeField[string](at, raw, "a string")
			if err != nil {
				return "", err
			}
			texts = append(texts, text)
			continue
		}
		part, err := decodeField[struct {
			Type    string  `json:"type"`
			Text    *string `json:"text"`
			Refusal *string `json:"refusal"`
		}](at, raw, "an object with a type")
		if err != nil {
			return "", err
		}
		switch {
		case (part.Type == "text" || part.Type == "input_text" || part.Type == "output_text") && part.Text != nil:
			texts = append(texts, *part.Text)
		case part.Type == "refusal" && part.Refusal != nil:
			texts = append(texts, *part.Refusal)
		case part.Type == "text" || part.Type == "refusal" || part.Type == "":
			return "", badField(at, "%s must have a type and its text", at)
		default:
			return "", unsupported(at+".type", fmt.Sprintf("the model takes text, not %q", part.Type))
		}
	}
	return strings.Join(texts, "\n"), nil
}

// openArguments turns each call's arguments from a string of JSON into JSON.
func openArguments(field string, raw json.RawMessage) (json.RawMessage, error) {
	calls, err := decodeField[[]map[string]json.RawMessage](field, raw, "a list of calls")
	if err != nil {
		return nil, err
	}
	for i, call := range calls {
		at := fmt.Sprintf("%s[%d].function", field, i)
		if absent(call["function"]) {
			return nil, badField(at, "%s must be given", at)
		}
		function, err := decodeField[map[string]json.RawMessage](at, call["function"], "an object")
		if err != nil {
			return nil, err
		}
		arguments := function["arguments"]
		if absent(arguments) || arguments[0] != '"' {
			continue
		}
		text, err := decodeField[string](at+".arguments", arguments, "a string of JSON")
		if err != nil {
			return nil, err
		}
		if text == "" {
			text = "{}"
		}
		if !json.Valid([]byte(text)) {
			return nil, badField(at+".arguments", "%s.arguments must be a string of JSON", at)
		}
		function["arguments"] = json.RawMessage(text)
		if call["function"], err = marshal(function); err != nil {
			return nil, err
		}
	}
	return marshal(calls)
}

// checkTools demands the outer form of OpenAI's tools; the template reads the rest.
func checkTools(raw json.RawMessage) error {
	tools, err := decodeField[[]struct {
		Type     string          `json:"type"`
		Function json.RawMessage `json:"function"`
	}]("tools", raw, "a list of tools")
	if err != nil {
		return err
	}
	for i, tool := range tools {
		if tool.Type != "function" || absent(tool.Function) || tool.Function[0] != '{' {
			return badField(fmt.Sprintf("tools[%d]", i), "tools[%d] must have the type \"function\" and a function", i)
		}
	}
	return nil
}
