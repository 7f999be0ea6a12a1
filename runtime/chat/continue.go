package chat

import (
	"fmt"
	"strings"
	"unicode"

	"manta/runtime/chat/jinja"
)

// continueMark is transformers' own: put behind the last message's text, it
// shows where that ends in the prompt. Its space tells whether the template
// trims.
const continueMark = "CONTINUE_FINAL_MESSAGE_TAG "

// markFinal puts the mark behind the text of the last message.
func (t *Template) markFinal(messages *jinja.List) (*jinja.List, string, error) {
	last := messages.Items[len(messages.Items)-1].(*jinja.Dict).Copy()
	content, _ := last.GetText("content")
	if content == nil {
		return nil, "", fmt.Errorf("%w: continue_final_message: the last message has no content to continue", ErrRequest)
	}
	if !strings.Contains(t.source, "content") {
		return nil, "", fmt.Errorf("%w: continue_final_message: the model's template does not read a message's content", ErrRequest)
	}
	marked, text, ok := mark(content)
	if !ok {
		return nil, "", fmt.Errorf("%w: continue_final_message: the last message has no text to continue", ErrRequest)
	}
	last.SetText("content", marked)
	items := append([]jinja.Value(nil), messages.Items...)
	items[len(items)-1] = last
	return &jinja.List{Items: items}, text, nil
}

// mark gives the content with the mark behind its last text, and that text.
func mark(content jinja.Value) (jinja.Value, string, bool) {
	switch c := content.(type) {
	case string:
		return c + continueMark, c, true
	case *jinja.List:
		parts := append([]jinja.Value(nil), c.Items...)
		for i := len(parts) - 1; i >= 0; i-- {
			part, ok := parts[i].(*jinja.Dict)
			if !ok {
				continue
			}
			value, _ := part.GetText("text")
			text, ok := value.(string)
			if !ok {
				continue
			}
			part = part.Copy()
			part.SetText("text", text+continueMark)
			parts[i] = part
			return &jinja.List{Items: parts}, text, true
		}
	}
	return nil, "", false
}

// cutAtMark ends the prompt where the last message's text ends.
func cutAtMark(prompt, final string) (string, error) {
	bare := strings.TrimRight(continueMark, " ")
	at := strings.LastIndex(prompt, bare)
	if at < 0 || !strings.Contains(prompt, strings.TrimFunc(final, unicode.IsSpace)) {
		return "", fmt.Errorf("%w: continue_final_message: the last message does not appear in the prompt; "+
			"the model's template leaves part of it out", ErrRequest)
	}
	if strings.HasPrefix(prompt[at:], continueMark) {
		return prompt[:at], nil
	}
	return strings.TrimRightFunc(prompt[:at], unicode.IsSpace), nil
}
