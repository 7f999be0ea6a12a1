package chat

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"manta/runtime/chat/jinja"
)

// plain prints what a template sees of each message.
const plain = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"

func mustParse(t testing.TB, source string) *Template {
	t.Helper()
	template, err := Parse(source)
	if err != nil {
		t.Fatal(err)
	}
	return template
}

func kwargs(pairs ...string) map[string]json.RawMessage {
	all := map[string]json.RawMessage{}
	for i := 0; i < len(pairs); i += 2 {
		all[pairs[i]] = json.RawMessage(pairs[i+1])
	}
	return all
}

// Law: from what API clients send, templates get what vLLM would give them.
func TestMessages(t *testing.T) {
	const parts = "{% for m in messages %}{% for p in m.content %}[{{ p.type }}:{{ p.text }}]{% endfor %}{% endfor %}"
	const either = "{% for m in messages %}{% if m.content is string %}={{ m.content }}{% else %}{% for p in m.content %}[{{ p.text }}]{% endfor %}{% endif %}{% endfor %}"
	const whole = "{% for m in messages %}{{ m | tojson }}{% endfor %}"
	for name, c := range map[string]struct{ template, messages, want string }{
		"text":              {plain, `[{"role":"user","content":"a"}]`, "<user>a"},
		"parts to text":     {plain, `[{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}]`, "<user>a\nb"},
		"strings as parts":  {plain, `[{"role":"user","content":["a",{"type":"input_text","text":"b"}]}]`, "<user>a\nb"},
		"no type":           {plain, `[{"role":"user","content":[{"text":"a"}]}]`, "<user>a"},
		"refusal, thinking": {plain, `[{"role":"assistant","content":[{"type":"refusal","refusal":"no"},{"type":"thinking","thinking":"hm"}]}]`, "<assistant>no\nhm"},
		"null text":         {plain, `[{"role":"user","content":[{"type":"text","text":null},{"type":"text","text":"b"}]}]`, "<user>b"},
		"no content":        {plain, `[{"role":"assistant"}]`, "<assistant>"},
		"null content":      {plain, `[{"role":"assistant","content":null}]`, "<assistant>"},
		"empty parts":       {plain, `[{"role":"user","content":[]}]`, "<user>"},
		"parts":             {parts, `[{"role":"user","content":[{"type":"text","text":"a"},{"type":"input_text","text":"b"}]}]`, "[text:a][text:b]"},
		"text to parts":     {parts, `[{"role":"user","content":"a"}]`, "[text:a]"},
		"nothing to parts":  {parts, `[{"role":"user"}]`, ""},
		"told apart: text":  {either, `[{"role":"user","content":"a"}]`, "=a"},
		"told apart: parts": {either, `[{"role":"user","content":[{"type":"text","text":"a"}]}]`, "[a]"},
		"tool's parts":      {either, `[{"role":"tool","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}]`, "=a\nb"},
		"key order":         {whole, `[{"role":"user","z":1,"content":"c","a":{"y":1,"b":2}}]`, `{"role": "user", "z": 1, "content": "c", "a": {"y": 1, "b": 2}}`},
		"nulls go":          {whole, `[{"role":"user","content":"c","name":null,"a":{"b":null}}]`, `{"role": "user", "content": "c", "a": {"b": null}}`},
		"reasoning":         {"{{ messages[0].reasoning_content }}{{ messages[0].thinking }}{{ messages[0].reasoning }}", `[{"role":"assistant","content":"","reasoning":"r"}]`, "rrr"},
		"thinking wins":     {"{{ messages[0].reasoning_content }}{{ messages[0].thinking }}", `[{"role":"assistant","content":"","thinking":"t","reasoning":"r"}]`, "tt"},
		"arguments":         {whole, `[{"role":"assistant","content":"","tool_calls":[{"id":"1","function":{"name":"f","arguments":"{\"b\": 1.0, \"a\": []}"}}]}]`, `{"role": "assistant", "content": "", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": {"b": 1.0, "a": []}}}]}`},
		"arguments given":   {"{{ messages[0].tool_calls[0].function.arguments }}", `[{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":{"a":1}}}]}]`, "{'a': 1}"},
		"arguments broken":  {"{{ messages[0].tool_calls[0].function.arguments }}", `[{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":"{a"}}]}]`, "{}"},
		"arguments missing": {"{{ messages[0].tool_calls[0].function.arguments }}", `[{"role":"assistant","tool_calls":[{"function":{"name":"f"}}]}]`, "{}"},
		"no calls":          {"{{ 'tool_calls' in messages[0] }}", `[{"role":"assistant","content":"a","tool_calls":[]}]`, "False"},
		"odd calls":         {"{{ messages[0].tool_calls }}", `[{"role":"assistant","content":"a","tool_calls":["x",{"function":1}]}]`, "['x', {'function': 1}]"},
		"user's calls":      {"{{ messages[0].tool_calls[0].function.arguments is string }}", `[{"role":"user","content":"a","tool_calls":[{"function":{"arguments":"{}"}}]}]`, "True"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := mustParse(t, c.template).Render(Request{Messages: json.RawMessage(c.messages)})
			if err != nil || got != c.want {
				t.Errorf("%q, %v; want %q", got, err, c.want)
			}
		})
	}
}

// Law: templates see special tokens, tools, documents and the client's own
// parameters as transformers passes them.
func TestVariables(t *testing.T) {
	messages := json.RawMessage(`[{"role":"user","content":"a"}]`)
	for name, c := range map[string]struct {
		template string
		req      Request
		want     string
	}{
		"special tokens":   {"{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ pad_token is defined }}", Request{BOS: "<s>", EOS: "</s>", Special: map[string]string{"unk_token": "<u>"}}, "<s></s><u>False"},
		"no tokens":        {"{{ bos_token is defined }}", Request{}, "False"},
		"nothing is none":  {"{{ tools is none }}{{ documents is none }}{{ add_generation_prompt }}", Request{}, "TrueTrueFalse"},
		"null is none":     {"{{ tools is none }}", Request{Tools: json.RawMessage("null")}, "True"},
		"tools":            {"{{ tools | tojson }}", Request{Tools: json.RawMessage(`[{"type":"function","function":{"name":"<f>"}}]`)}, `[{"type": "function", "function": {"name": "<f>"}}]`},
		"documents":        {"{{ documents[0].text }}", Request{Documents: json.RawMessage(`[{"title":"t","text":"x"}]`)}, "x"},
		"documents as one": {"{{ documents[0].text }}", Request{Kwargs: kwargs("documents", `[{"text":"y"}]`)}, "y"},
		"parameters":       {"{{ enable_thinking }}{{ effort }}{{ n + 1 }}", Request{Kwargs: kwargs("enable_thinking", "false", "effort", `"low"`, "n", "1")}, "Falselow2"},
		"over tokens":      {"{{ bos_token }}", Request{BOS: "<s>", Kwargs: kwargs("bos_token", `"<x>"`)}, "<x>"},
		"not over fields":  {"{{ add_generation_prompt }}", Request{AddGenerationPrompt: true, Kwargs: kwargs("add_generation_prompt", "false")}, "True"},
		"over globals":     {"{{ range }}", Request{Kwargs: kwargs("range", "1")}, "1"},
		"not tokenizer's":  {"{{ padding is defined }}", Request{Kwargs: kwargs("padding", "true")}, "False"},
		"time":             {"{{ strftime_now('%d %b %Y') }}", Request{Now: time.Date(2024, 7, 26, 1, 2, 3, 0, time.UTC)}, "26 Jul 2024"},
		"prompt":           {plain, Request{AddGenerationPrompt: true}, "<user>a<assistant>"},
	} {
		t.Run(name, func(t *testing.T) {
			c.req.Messages = messages
			got, err := mustParse(t, c.template).Render(c.req)
			if err != nil || got != c.want {
				t.Errorf("%q, %v; want %q", got, err, c.want)
			}
		})
	}
}

// Law: continue_final_message ends the prompt where the last message ends, as
// transformers does: spaces stay where the template keeps them.
func TestContinueFinalMessage(t *testing.T) {
	const keeps = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
	const trims = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}<end>{% endfor %}"
	const parts = "{% for m in messages %}<{{ m.role }}>{% for p in m.content %}{{ p.text }};{% endfor %}<end>{% endfor %}"
	for name, c := range map[string]struct{ template, final, want, fails string }{
		"kept":            {keeps, `"The answer is"`, "<user>q<end><assistant>The answer is", ""},
		"spaces kept":     {keeps, `" The answer is "`, "<user>q<end><assistant> The answer is ", ""},
		"trimmed":         {trims, `" The answer is "`, "<user>q<end><assistant>The answer is", ""},
		"empty":           {keeps, `""`, "<user>q<end><assistant>", ""},
		"same as before":  {keeps, `"q"`, "<user>q<end><assistant>q", ""},
		"parts":           {parts, `[{"type":"text","text":"a"},{"type":"text","text":"b "}]`, "<user>q;<end><assistant>a;b ", ""},
		"parts as text":   {keeps, `[{"type":"text","text":"a"},{"type":"text","text":"b"}]`, "<user>q<end><assistant>a\nb", ""},
		"left out":        {"{{ messages[0].content }}", `"x"`, "", "does not appear"},
		"changed":         {"{{ messages[-1].content | upper }}", `"x"`, "", "does not appear"},
		"not read":        {"{{ messages[0].role }}", `"x"`, "", "does not read a message's content"},
		"no text in part": {parts, `[]`, "", "no text to continue"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := mustParse(t, c.template).Render(Request{
				Messages:             json.RawMessage(`[{"role":"user","content":"q"},{"role":"assistant","content":` + c.final + `}]`),
				ContinueFinalMessage: true,
			})
			if c.fails != "" {
				if !errors.Is(err, ErrRequest) || !strings.Contains(err.Error(), c.fails) {
					t.Errorf("%q, %v; want an ErrRequest that says %q", got, err, c.fails)
				}
				return
			}
			if err != nil || got != c.want {
				t.Errorf("%q, %v; want %q", got, err, c.want)
			}
		})
	}
}

// Law: an error is of one kind, and names the field or the line.
func TestErrors(t *testing.T) {
	one := json.RawMessage(`[{"role":"user","content":"a"}]`)
	for name, c := range map[string]struct {
		template string
		req      Request
		kind     error
		says     string
	}{
		"raised":        {"{{ raise_exception('Only ' ~ messages[0].role) }}", Request{Messages: one}, ErrRaised, "Only user"},
		"template":      {"a\n{{ messages[0].x.y }}", Request{Messages: one}, ErrTemplate, "line 2"},
		"limit":         {"{{ 'x' * 9999 }}", Request{Messages: one, Limits: jinja.Limits{OutputBytes: 99}}, ErrTemplate, "99 bytes"},
		"both":          {plain, Request{Messages: one, AddGenerationPrompt: true, ContinueFinalMessage: true}, ErrRequest, "exclude each other"},
		"no messages":   {plain, Request{}, ErrRequest, "messages is missing"},
		"empty":         {plain, Request{Messages: json.RawMessage(`[]`)}, ErrRequest, "at least one"},
		"null":          {plain, Request{Messages: json.RawMessage(`null`)}, ErrRequest, "at least one"},
		"object":        {plain, Request{Messages: json.RawMessage(`{}`)}, ErrRequest, "messages must be a list"},
		"not an object": {plain, Request{Messages: json.RawMessage(`[{"role":"user","content":""},1]`)}, ErrRequest, "messages[1]"},
		"broken":        {plain, Request{Messages: json.RawMessage(`[{`)}, ErrRequest, "messages"},
		"no role":       {plain, Request{Messages: json.RawMessage(`[{"content":"a"}]`)}, ErrRequest, "messages[0].role"},
		"content":       {plain, Request{Messages: json.RawMessage(`[{"role":"user","content":5}]`)}, ErrRequest, "messages[0].content"},
		"image":         {plain, Request{Messages: json.RawMessage(`[{"role":"user","content":[{"type":"text","text":"a"},{"type":"image_url","image_url":{"url":"x"}}]}]`)}, ErrRequest, `messages[0].content[1].type "image_url"`},
		"text":          {plain, Request{Messages: json.RawMessage(`[{"role":"user","content":[{"type":"text","text":5}]}]`)}, ErrRequest, "messages[0].content[0].text"},
		"part":          {plain, Request{Messages: json.RawMessage(`[{"role":"user","content":[5]}]`)}, ErrRequest, "messages[0].content[0]"},
		"tools":         {plain, Request{Messages: one, Tools: json.RawMessage(`{}`)}, ErrRequest, "tools must be a list"},
		"tool":          {plain, Request{Messages: one, Tools: json.RawMessage(`["x"]`)}, ErrRequest, "tools[0]"},
		"documents":     {plain, Request{Messages: one, Documents: json.RawMessage(`["x"]`)}, ErrRequest, "documents[0]"},
		"parameter":     {plain, Request{Messages: one, Kwargs: kwargs("x", "{")}, ErrRequest, "chat_template_kwargs.x"},
		"reserved":      {plain, Request{Messages: one, Kwargs: kwargs("chat_template", `"x"`)}, ErrRequest, "chat_template_kwargs.chat_template"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := mustParse(t, c.template).Render(c.req)
			if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("%q, %v; want %v that says %q", got, err, c.kind, c.says)
			}
			for _, other := range []error{ErrRaised, ErrTemplate, ErrRequest} {
				if other != c.kind && errors.Is(err, other) {
					t.Errorf("%v is also %v", err, other)
				}
			}
		})
	}
	if _, err := Parse("a\n\n{% if %}"); !errors.Is(err, ErrTemplate) || !strings.Contains(err.Error(), "line 3") {
		t.Errorf("%v, want an ErrTemplate of line 3", err)
	}
}

// Law: whatever a client sends ends in a prompt or in one of the three errors,
// and does so again.
func FuzzMessages(f *testing.F) {
	f.Add(`[{"role":"user","content":"a"}]`, "", true)
	f.Add(`[{"role":"user","content":[{"type":"text","text":"a"}]},{"role":"assistant","content":"b "}]`, "", false)
	f.Add(`[{"role":"assistant","tool_calls":[{"function":{"arguments":"{\"a\":1}"}}]}]`, `[{"type":"function"}]`, true)
	templates := []*Template{
		mustParse(f, plain),
		mustParse(f, "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{{ m | tojson }}{% endfor %}{{ tools }}"),
	}
	f.Fuzz(func(t *testing.T, messages, tools string, prompt bool) {
		req := Request{Messages: json.RawMessage(messages), AddGenerationPrompt: prompt, ContinueFinalMessage: !prompt}
		if tools != "" {
			req.Tools = json.RawMessage(tools)
		}
		for _, template := range templates {
			got, err := template.Render(req)
			if err != nil && !errors.Is(err, ErrRaised) && !errors.Is(err, ErrTemplate) && !errors.Is(err, ErrRequest) {
				t.Errorf("error of no kind: %v", err)
			}
			again, err2 := template.Render(req)
			if again != got || (err2 == nil) != (err == nil) {
				t.Errorf("rendered again: %q, %v; first %q, %v", again, err2, got, err)
			}
		}
	})
}
