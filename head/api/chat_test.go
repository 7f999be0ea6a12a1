package api

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"manta/head/dispatch"
	"manta/head/dispatch/dispatchtest"
)

// A chat streams a role first, then text in whole characters, then usage.
func TestChatStreams(t *testing.T) {
	b := newBench(t, nil)
	b.cluster.Script = dispatchtest.Say("Grüße, 世界!")
	all := chunks(t, b.streamed("/v1/chat/completions",
		`{"model":"m","messages":[{"role":"user","content":"Hi"}],"stream":true,"stream_options":{"include_usage":true}}`))
	if role := all[0].Choices[0].Delta.Role; role != "assistant" {
		t.Errorf("first chunk has role %q", role)
	}
	var text strings.Builder
	finish := ""
	for _, c := range all[:len(all)-1] {
		if strings.ContainsRune(*c.Choices[0].Delta.Content, '\uFFFD') {
			t.Errorf("half a character in %q", *c.Choices[0].Delta.Content)
		}
		text.WriteString(*c.Choices[0].Delta.Content)
		if c.Choices[0].FinishReason != nil {
			finish = *c.Choices[0].FinishReason
		}
	}
	if text.String() != "Grüße, 世界!" || finish != "stop" {
		t.Errorf("%q, %q", text.String(), finish)
	}
	last := all[len(all)-1]
	// The end token counts: it was computed.
	if len(last.Choices) != 0 || last.Usage == nil || last.Usage.CompletionTokens != len("Grüße, 世界!")+1 {
		t.Errorf("last chunk %+v, usage %+v", last, last.Usage)
	}
	if want := "user: Hi\nassistant: "; string(textOf(b.cluster.Requests()[0].Prompt)) != want {
		t.Errorf("prompt %q, want %q", textOf(b.cluster.Requests()[0].Prompt), want)
	}
}

func textOf(tokens []int32) string { return dispatchtest.Bytes{}.Decode(tokens, false) }

// A resumed stream gives what follows the id, from every event on; with another
// key or body there is nothing of that id.
func TestChatStreamResumesAtEveryEvent(t *testing.T) {
	keys, _, err := NewKeys([]string{"one", "two"})
	if err != nil {
		t.Fatal(err)
	}
	b := newBench(t, func(c *Config, _ *dispatch.Config) { c.Keys = keys })
	b.cluster.Script = dispatchtest.Say("né à Lyon END")
	const body = `{"model":"m","messages":[{"role":"user","content":"Hi"}],"stream":true,"n":2,"stop":"END","stream_options":{"include_usage":true}}`
	key := []string{"Authorization", "Bearer one"}
	whole := b.streamed("/v1/chat/completions", body, key...)
	text := func(events []event) (texts [2]string) {
		for _, c := range chunks(t, events) {
			for _, choice := range c.Choices {
				texts[choice.Index] += *choice.Delta.Content
			}
		}
		return texts
	}
	for i, e := range whole {
		rest := b.streamed("/v1/chat/completions", body, append(key, "Last-Event-ID", e.id)...)
		before, after := text(whole[:i+1]), text(rest)
		for c := range before {
			if got := before[c] + after[c]; got != "né à Lyon " {
				t.Errorf("after event %d, choice %d: %q then %q", i, c, before[c], after[c])
			}
		}
		if used := chunks(t, rest[len(rest)-1:])[0].Usage; used == nil || used.CompletionTokens != 30 {
			t.Errorf("after event %d: usage %+v", i, used)
		}
	}
	id := whole[3].id
	for name, c := range map[string]struct{ key, body, id string }{
		"another key":  {"two", body, id},
		"another body": {"one", strings.Replace(body, "Hi", "Ho", 1), id},
		"no such id":   {"one", body, "x" + id[1:]},
	} {
		status, _, answer := b.do("POST", "/v1/chat/completions", c.body, "Authorization", "Bearer "+c.key, "Last-Event-ID", c.id)
		if status != http.StatusNotFound {
			t.Errorf("%s: status %d: %s", name, status, answer)
		}
	}
}

// Every error names its field, in OpenAI's shape.
func TestChatErrorsNameTheField(t *testing.T) {
	b := newBench(t, nil)
	message := `"messages":[{"role":"user","content":"Hi"}]`
	for name, c := range map[string]struct {
		body   string
		status int
		param  string
	}{
		"not JSON":        {`{"model":`, 400, ""},
		"a list":          {`[]`, 400, ""},
		"no messages":     {`{"model":"m"}`, 400, "messages"},
		"empty messages":  {`{"model":"m","messages":[]}`, 400, "messages"},
		"no role":         {`{"model":"m","messages":[{"content":"x"}]}`, 400, "messages[0].role"},
		"an image":        {`{"model":"m","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}]}`, 400, "messages[0].content[0].type"},
		"unknown model":   {`{"model":"other",` + message + `}`, 404, "model"},
		"temperature":     {`{"temperature":-1,` + message + `}`, 400, "temperature"},
		"a wrong type":    {`{"temperature":"hot",` + message + `}`, 400, "temperature"},
		"top_p":           {`{"top_p":0,` + message + `}`, 400, "top_p"},
		"n":               {`{"n":0,` + message + `}`, 400, "n"},
		"max_tokens":      {`{"max_tokens":0,` + message + `}`, 400, "max_tokens"},
		"too many tokens": {`{"max_tokens":5000,` + message + `}`, 400, "max_tokens"},
		"top_logprobs":    {`{"top_logprobs":3,` + message + `}`, 400, "top_logprobs"},
		"stop":            {`{"stop":7,` + message + `}`, 400, "stop"},
		"empty stop":      {`{"stop":"",` + message + `}`, 400, "stop"},
		"logit_bias":      {`{"logit_bias":{"x":1},` + message + `}`, 400, "logit_bias"},
		"stream_options":  {`{"stream_options":{"include_usage":true},` + message + `}`, 400, "stream_options"},
		"response_format": {`{"response_format":{"type":"json_object"},` + message + `}`, 400, "response_format"},
		"guided_json":     {`{"guided_json":{},` + message + `}`, 400, "guided_json"},
		"unread tools":    {`{"tools":[{"type":"function","function":{"name":"f"}}],` + message + `}`, 400, "tools"},
		"forced tool":     {`{"tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":"required",` + message + `}`, 400, "tool_choice"},
		"both ends":       {`{"add_generation_prompt":true,"continue_final_message":true,` + message + `}`, 400, "continue_final_message"},
	} {
		t.Run(name, func(t *testing.T) {
			status, _, text := b.do("POST", "/v1/chat/completions", c.body)
			var answer errorBody
			if err := parse([]byte(text), &answer); err != nil {
				t.Fatal(err)
			}
			param := ""
			if answer.Error.Param != nil {
				param = *answer.Error.Param
			}
			if status != c.status || param != c.param || answer.Error.Code != c.status || answer.Error.Message == "" {
				t.Errorf("status %d, %s; want %d naming %q", status, text, c.status, c.param)
			}
		})
	}
}

// Fields at their harmless values, and fields nobody knows, are taken.
func TestChatTakesHarmlessFields(t *testing.T) {
	b := newBench(t, nil)
	b.cluster.Script = dispatchtest.Say("ok")
	for _, field := range []string{
		`"response_format":{"type":"text"}`, `"tool_choice":"auto"`, `"user":"me"`, `"store":false`, `"made_up":{"a":[1]}`,
		`"functions":null`, `"modalities":["text"]`, `"use_beam_search":false`, `"parallel_tool_calls":true`, `"seed":-5`,
		`"tools":[]`, `"tool_choice":"none","tools":[{"type":"function","function":{"name":"f","parameters":{}}}]`, `"top_k":-1`, `"stop":["a","b"]`,
		`"max_tokens":null,"max_completion_tokens":5`, `"logit_bias":{"65":200}`, `"chat_template_kwargs":{"x":1}`,
	} {
		body := fmt.Sprintf(`{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"Hi"}]}],%s}`, field)
		if status, _, text := b.do("POST", "/v1/chat/completions", body); status != http.StatusOK {
			t.Errorf("%s: status %d: %s", field, status, text)
		}
	}
}

// A whole answer has every choice with its logprobs.
func TestChatWhole(t *testing.T) {
	b := newBench(t, nil)
	b.cluster.Script = dispatchtest.Say("hey")
	answer := post[chatCompletion](b, "/v1/chat/completions",
		`{"messages":[{"role":"user","content":"Hi"}],"n":2,"logprobs":true,"top_logprobs":2,"return_token_ids":true}`, 200)
	if len(answer.Choices) != 2 || answer.Model != "m" || !strings.HasPrefix(answer.ID, "chatcmpl-") || answer.Object != "chat.completion" {
		t.Fatalf("%+v", answer)
	}
	for i, c := range answer.Choices {
		if c.Index != i || *c.Message.Content != "hey" || c.FinishReason != "stop" || c.StopReason != nil || len(c.TokenIDs) != 4 {
			t.Errorf("choice %d: %+v", i, c)
		}
		if l := c.Logprobs.Content; len(l) != 4 || l[0].Token != "h" || l[0].Bytes[0] != 'h' || len(l[0].Top) != 2 {
			t.Errorf("choice %d: logprobs %+v", i, l)
		}
	}
	if answer.Usage.CompletionTokens != 8 || answer.Usage.TotalTokens != 8+answer.Usage.PromptTokens {
		t.Errorf("usage %+v", answer.Usage)
	}
}

// continue_final_message ends inside the last message, and echo repeats it.
func TestChatContinuesTheFinalMessage(t *testing.T) {
	b := newBench(t, nil)
	b.cluster.Script = dispatchtest.Say(" world")
	answer := post[chatCompletion](b, "/v1/chat/completions",
		`{"messages":[{"role":"user","content":"Hi"},{"role":"assistant","content":"Hello"}],"continue_final_message":true,"add_generation_prompt":false,"echo":true}`, 200)
	if got := *answer.Choices[0].Message.Content; got != "Hello world" {
		t.Errorf("%q", got)
	}
	if prompt := textOf(b.cluster.Requests()[0].Prompt); prompt != "user: Hi\nassistant: Hello" {
		t.Errorf("prompt %q", prompt)
	}
}
