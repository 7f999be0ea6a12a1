package api

import (
	"encoding/json"
	"strings"
	"testing"

	"manta/head/dispatch/dispatchtest"
	"manta/runtime/sample"
)

// The prompt has four forms; each prompt gives n choices, indexed prompt by prompt.
func TestCompletionPromptForms(t *testing.T) {
	b := newBench(t, nil)
	b.cluster.Script = dispatchtest.Say("ok")
	for name, c := range map[string]struct {
		prompt  string
		prompts []string // as the driver sees them
	}{
		"string":        {`"ab"`, []string{"<s>ab"}},
		"list":          {`["a","b"]`, []string{"<s>a", "<s>b"}},
		"token ids":     {`[97,98]`, []string{"ab"}},
		"lists of ids":  {`[[97],[98,99]]`, []string{"a", "bc"}},
		"a mixed list":  {`["a",[98]]`, []string{"<s>a", "b"}},
		"a list of one": {`["ab"]`, []string{"<s>ab"}},
	} {
		t.Run(name, func(t *testing.T) {
			before := len(b.cluster.Requests())
			answer := post[textCompletion](b, "/v1/completions", `{"n":2,"prompt":`+c.prompt+`}`, 200)
			if len(answer.Choices) != 2*len(c.prompts) || answer.Usage.CompletionTokens != 6*len(c.prompts) {
				t.Fatalf("%+v", answer)
			}
			for i, choice := range answer.Choices {
				if choice.Index != i || choice.Text != "ok" || *choice.FinishReason != "stop" {
					t.Errorf("choice %d: %+v", i, choice)
				}
			}
			seen := map[string]bool{}
			for _, r := range b.cluster.Requests()[before:] {
				seen[textOf(r.Prompt)] = true
			}
			for _, p := range c.prompts {
				if !seen[p] {
					t.Errorf("no request for the prompt %q: %v", p, seen)
				}
			}
		})
	}
}

// Every error names its field.
func TestCompletionErrorsNameTheField(t *testing.T) {
	b := newBench(t, nil)
	for body, param := range map[string]string{
		`{}`:                                               "prompt",
		`{"prompt":[]}`:                                    "prompt",
		`{"prompt":{}}`:                                    "prompt",
		`{"prompt":[1,"a"]}`:                               "prompt",
		`{"prompt":[["a"]]}`:                               "prompt[0]",
		`{"prompt":[1,999]}`:                               "prompt",
		`{"prompt":[-1]}`:                                  "prompt",
		`{"prompt":[[]]}`:                                  "prompt",
		`{"prompt":"a","max_tokens":0}`:                    "max_tokens",
		`{"prompt":"a","max_tokens":"x"}`:                  "max_tokens",
		`{"prompt":"a","max_tokens":9999}`:                 "max_tokens",
		`{"prompt":"a","logprobs":21}`:                     "logprobs",
		`{"prompt":"a","best_of":3}`:                       "best_of",
		`{"prompt":"a","suffix":"x"}`:                      "suffix",
		`{"prompt":"a","min_tokens":20}`:                   "min_tokens",
		`{"prompt":"a","stream":true,"prompt_logprobs":1}`: "prompt_logprobs",
		`{"prompt":"` + strings.Repeat("x", 5000) + `"}`:   "prompt",
	} {
		status, _, text := b.do("POST", "/v1/completions", body)
		var answer errorBody
		if err := json.Unmarshal([]byte(text), &answer); err != nil || status != 400 || answer.Error.Param == nil || *answer.Error.Param != param {
			t.Errorf("%.60s: status %d, %s; want 400 naming %s", body, status, text, param)
		}
	}
}

// echo repeats the prompt, and with logprobs gives those of its tokens too, of
// which the first has none. max_tokens=0 gives the prompt alone.
func TestCompletionEchoAndLogprobs(t *testing.T) {
	b := newBench(t, nil)
	b.cluster.Script = dispatchtest.Say("né")
	for body, want := range map[string]struct {
		text   string
		tokens int
	}{
		`{"prompt":[97,98],"echo":true,"logprobs":1}`:                {"abné", 6},
		`{"prompt":[97,98],"echo":true,"logprobs":1,"max_tokens":0}`: {"ab", 2},
		`{"prompt":[97,98],"logprobs":1}`:                            {"né", 4},
	} {
		choice := post[textCompletion](b, "/v1/completions", body, 200).Choices[0]
		l := choice.Logprobs
		if choice.Text != want.text || len(l.Tokens) != want.tokens || len(l.TokenLogprobs) != want.tokens ||
			len(l.TopLogprobs) != want.tokens || len(l.TextOffset) != want.tokens {
			t.Errorf("%s: %q, %+v", body, choice.Text, l)
			continue
		}
		if first := l.TokenLogprobs[0]; (first == nil) != strings.Contains(body, "echo") {
			t.Errorf("%s: first logprob %v", body, first)
		}
		if l.TextOffset[1] != 1 || len(l.TopLogprobs[1]) == 0 {
			t.Errorf("%s: %+v", body, l)
		}
		whole := b.streamed("/v1/completions", `{"stream":true,`+body[1:])
		text := ""
		tokens := 0
		for _, e := range whole {
			var c textCompletion
			if err := json.Unmarshal([]byte(e.data), &c); err != nil {
				t.Fatal(err)
			}
			text += c.Choices[0].Text
			if c.Choices[0].Logprobs != nil {
				tokens += len(c.Choices[0].Logprobs.Tokens)
			}
		}
		if text != want.text || tokens != want.tokens {
			t.Errorf("streamed %s: %q with %d tokens", body, text, tokens)
		}
	}
	answer := post[textCompletion](b, "/v1/completions", `{"prompt":[97,98,99],"prompt_logprobs":1,"return_tokens_as_token_ids":true,"logprobs":0}`, 200)
	choice := answer.Choices[0]
	if len(choice.PromptLogprobs) != 3 || choice.PromptLogprobs[0] != nil || choice.PromptLogprobs[1]["98"].Decoded != "b" {
		t.Errorf("prompt logprobs %+v", choice.PromptLogprobs)
	}
	if choice.Logprobs.Tokens[0] != "token_id:110" {
		t.Errorf("tokens %v", choice.Logprobs.Tokens)
	}
}

// A stream of several prompts goes on after any event, too.
func TestCompletionStreamOfPromptsResumes(t *testing.T) {
	b := newBench(t, nil)
	b.cluster.Script = dispatchtest.Say("text")
	const body = `{"prompt":["a","b"],"n":2,"stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true}}`
	texts := func(events []event) (all [4]string) {
		for _, c := range chunks(t, events) {
			for _, choice := range c.Choices {
				all[choice.Index] += choice.Text
				if c.Usage == nil {
					t.Error("a chunk without usage")
				}
			}
		}
		return all
	}
	whole := b.streamed("/v1/completions", body)
	if got := texts(whole); got != [4]string{"text", "text", "text", "text"} {
		t.Fatalf("%q", got)
	}
	for i := range whole {
		before := texts(whole[:i+1])
		after := texts(b.streamed("/v1/completions", body, "Last-Event-ID", whole[i].id))
		for c := range before {
			if before[c]+after[c] != "text" {
				t.Errorf("after event %d, choice %d: %q then %q", i, c, before[c], after[c])
			}
		}
	}
}

// stop strings and stop tokens end a choice, and say which did.
func TestCompletionStops(t *testing.T) {
	b := newBench(t, nil)
	b.cluster.Script = dispatchtest.Repeat("one two three ")
	for body, want := range map[string]struct {
		text   string
		reason any
		tokens int
	}{
		`"stop":" two"`:          {"one", " two", 7},
		`"stop":["three","two"]`: {"one ", "two", 7},
		`"stop":" two","include_stop_str_in_output":true`:          {"one two", " two", 7},
		`"stop_token_ids":[119]`:                                   {"one t", 119.0, 6},
		`"stop_token_ids":[119],"include_stop_str_in_output":true`: {"one tw", 119.0, 6},
		`"stop":" two","min_tokens":8,"max_tokens":30`:             {"one two three one", " two", 21},
	} {
		answer := post[textCompletion](b, "/v1/completions", `{"prompt":"x",`+body+`}`, 200)
		c := answer.Choices[0]
		if c.Text != want.text || c.StopReason != want.reason || *c.FinishReason != "stop" || answer.Usage.CompletionTokens != want.tokens {
			t.Errorf("%s: %q, %v, %v, %d tokens", body, c.Text, c.StopReason, *c.FinishReason, answer.Usage.CompletionTokens)
		}
	}
}

// The same seed is sent as given; without one the head draws it.
func TestSeedAndDefaults(t *testing.T) {
	b := newBench(t, nil)
	b.cluster.Script = dispatchtest.Say("x")
	last := func() *sample.Params {
		all := b.cluster.Requests()
		return &all[len(all)-1].Params
	}
	post[textCompletion](b, "/v1/completions", `{"prompt":"x","seed":42,"top_k":5,"priority":3}`, 200)
	if p := last(); p.Seed != 42 || p.TopK != 5 || p.Temperature != 1 || p.TopP != 1 || p.MaxTokens != 16 {
		t.Errorf("%+v", p)
	}
	post[textCompletion](b, "/v1/completions", `{"prompt":"x"}`, 200)
	first := last().Seed
	post[textCompletion](b, "/v1/completions", `{"prompt":"x","max_tokens":null}`, 200)
	if p := last(); p.Seed == first || p.MaxTokens != 4096-2 {
		t.Errorf("seed %d again, or max_tokens %d", p.Seed, p.MaxTokens)
	}
}
