// Package sdk shows that OpenAI's own clients work with Manta, openai-go here and
// the Python package by run.sh, and what many clients at once see. The tests ask
// the server at MANTA_URL; with the tag e2e the real program, which they start;
// else a driver of made-up tokens.
package sdk

import (
	"context"
	"errors"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/openai/openai-go"
	"github.com/openai/openai-go/option"

	"manta/head/api"
	"manta/head/dispatch"
	"manta/head/dispatch/dispatchtest"
	"manta/head/state"
	"manta/runtime/chat"
)

// fakeTexts gives byte tokens and a small template.
type fakeTexts struct{ *chat.Template }

func (f fakeTexts) Text(context.Context, state.Deployment) (*api.Text, error) {
	return &api.Text{
		Tokenizer: dispatchtest.Bytes{}, Template: f, Vocabulary: dispatchtest.Vocabulary, EndToken: dispatchtest.EOS,
	}, nil
}

func (f fakeTexts) Render(c api.Conversation) (string, error) {
	return f.Template.Render(chat.Request{Messages: c.Messages, AddGenerationPrompt: c.AddGenerationPrompt, Now: c.Now})
}

// alone is a cluster of one head: what it knows is all there is.
type alone struct{ api.Cluster }

func (alone) Fresh(context.Context) error { return nil }

// connect gives a client of the server under test, and its model.
func connect(t *testing.T) (openai.Client, string) {
	t.Helper()
	url := os.Getenv("MANTA_URL")
	if url == "" {
		url = fake(t)
	}
	client := openai.NewClient(option.WithBaseURL(strings.TrimRight(url, "/")+"/v1"), option.WithAPIKey(key()))
	models, err := client.Models.List(t.Context())
	if err != nil || len(models.Data) == 0 {
		t.Fatalf("models: %v, %+v", err, models)
	}
	return client, models.Data[0].ID
}

func key() string {
	if key := os.Getenv("MANTA_API_KEY"); key != "" {
		return key
	}
	return "none"
}

func fake(t *testing.T) string {
	t.Helper()
	template, err := chat.Parse(`{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}`)
	if err != nil {
		t.Fatal(err)
	}
	cluster := dispatchtest.New()
	cluster.Script = dispatchtest.Repeat("The sea is blue. ")
	dispatcher := dispatch.New(dispatch.Config{Head: "h", Views: cluster, Link: cluster, Meter: dispatchtest.Meter{}})
	cluster.Attach(dispatcher)
	cluster.AddReplica("fake", "r1", "n1", 1, 64)
	server := httptest.NewServer(api.New(api.Config{
		Views: cluster, Texts: fakeTexts{template}, Dispatch: dispatcher, Cluster: alone{},
	}).Handler())
	t.Cleanup(func() {
		server.Close()
		cluster.Close()
	})
	return server.URL
}

func chatParams(model string) openai.ChatCompletionNewParams {
	return openai.ChatCompletionNewParams{
		Model:     model,
		Messages:  []openai.ChatCompletionMessageParamUnion{openai.SystemMessage("Be short."), openai.UserMessage("Describe the sea.")},
		MaxTokens: openai.Int(24), Temperature: openai.Float(0), Seed: openai.Int(1),
	}
}

// A whole chat has a message, a reason for its end and a count of tokens.
func TestChat(t *testing.T) {
	client, model := connect(t)
	answer, err := client.Chat.Completions.New(t.Context(), chatParams(model))
	if err != nil {
		t.Fatal(err)
	}
	c := answer.Choices[0]
	if c.Message.Content == "" || c.Message.Role != "assistant" || (c.FinishReason != "length" && c.FinishReason != "stop") {
		t.Errorf("%+v", c)
	}
	if u := answer.Usage; u.CompletionTokens < 1 || u.CompletionTokens > 24 || u.PromptTokens < 1 || u.TotalTokens != u.PromptTokens+u.CompletionTokens {
		t.Errorf("%+v", u)
	}
}

// A streamed chat joins to the whole one, by the SDK's own accumulator, and ends
// with its usage.
func TestChatStream(t *testing.T) {
	client, model := connect(t)
	params := chatParams(model)
	whole, err := client.Chat.Completions.New(t.Context(), params)
	if err != nil {
		t.Fatal(err)
	}
	params.StreamOptions.IncludeUsage = openai.Bool(true)
	stream := client.Chat.Completions.NewStreaming(t.Context(), params)
	defer stream.Close()
	var sum openai.ChatCompletionAccumulator
	for stream.Next() {
		if !sum.AddChunk(stream.Current()) {
			t.Fatalf("the accumulator refuses %s", stream.Current().RawJSON())
		}
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	if got, want := sum.Choices[0].Message.Content, whole.Choices[0].Message.Content; got != want {
		t.Errorf("streamed %q, whole %q", got, want)
	}
	if sum.Usage.CompletionTokens != whole.Usage.CompletionTokens || sum.Choices[0].FinishReason != whole.Choices[0].FinishReason {
		t.Errorf("streamed %+v, whole %+v", sum.Usage, whole.Usage)
	}
}

// n choices, and logprobs with their alternatives, token by token.
func TestChatChoicesAndLogprobs(t *testing.T) {
	client, model := connect(t)
	params := chatParams(model)
	params.N, params.Temperature = openai.Int(3), openai.Float(1)
	params.Logprobs, params.TopLogprobs = openai.Bool(true), openai.Int(2)
	answer, err := client.Chat.Completions.New(t.Context(), params)
	if err != nil || len(answer.Choices) != 3 {
		t.Fatalf("%v, %+v", err, answer)
	}
	tokens := 0
	for i, c := range answer.Choices {
		tokens += len(c.Logprobs.Content)
		if c.Index != int64(i) || len(c.Logprobs.Content) == 0 {
			t.Fatalf("choice %d: %+v", i, c)
		}
		for _, l := range c.Logprobs.Content {
			if l.Logprob > 0 || len(l.TopLogprobs) != 2 {
				t.Errorf("choice %d: %+v", i, l)
			}
		}
	}
	if tokens != int(answer.Usage.CompletionTokens) {
		t.Errorf("%d logprobs for %d tokens", tokens, answer.Usage.CompletionTokens)
	}
}

// A stop string ends the answer before it.
func TestStop(t *testing.T) {
	client, model := connect(t)
	params := chatParams(model)
	whole, err := client.Chat.Completions.New(t.Context(), params)
	if err != nil {
		t.Fatal(err)
	}
	text := whole.Choices[0].Message.Content
	stop := text[len(text)/2 : len(text)/2+2]
	params.Stop = openai.ChatCompletionNewParamsStopUnion{OfStringArray: []string{stop}}
	answer, err := client.Chat.Completions.New(t.Context(), params)
	if err != nil {
		t.Fatal(err)
	}
	if want, _, _ := strings.Cut(text, stop); answer.Choices[0].Message.Content != want || answer.Choices[0].FinishReason != "stop" {
		t.Errorf("%q (%s), want %q", answer.Choices[0].Message.Content, answer.Choices[0].FinishReason, want)
	}
}

// Completions take several prompts, echo them, and stream.
func TestCompletions(t *testing.T) {
	client, model := connect(t)
	params := openai.CompletionNewParams{
		Model:     openai.CompletionNewParamsModel(model),
		Prompt:    openai.CompletionNewParamsPromptUnion{OfArrayOfStrings: []string{"The sea", "The sky"}},
		MaxTokens: openai.Int(8), Temperature: openai.Float(0), Echo: openai.Bool(true), Logprobs: openai.Int(1),
	}
	answer, err := client.Completions.New(t.Context(), params)
	if err != nil || len(answer.Choices) != 2 {
		t.Fatalf("%v, %+v", err, answer)
	}
	for i, prompt := range []string{"The sea", "The sky"} {
		c := answer.Choices[i]
		if !strings.HasPrefix(c.Text, prompt) || len(c.Text) == len(prompt) || len(c.Logprobs.Tokens) != len(c.Logprobs.TokenLogprobs) {
			t.Errorf("choice %d: %+v", i, c)
		}
	}
	stream := client.Completions.NewStreaming(t.Context(), params)
	defer stream.Close()
	texts := map[int64]string{}
	for stream.Next() {
		for _, c := range stream.Current().Choices {
			texts[c.Index] += c.Text
		}
	}
	if err := stream.Err(); err != nil || texts[0] != answer.Choices[0].Text || texts[1] != answer.Choices[1].Text {
		t.Errorf("%v, streamed %v, whole %q and %q", err, texts, answer.Choices[0].Text, answer.Choices[1].Text)
	}
}

// Errors have a status and name their field.
func TestErrors(t *testing.T) {
	client, model := connect(t)
	for name, c := range map[string]struct {
		change func(*openai.ChatCompletionNewParams)
		status int
		param  string
	}{
		"temperature": {func(p *openai.ChatCompletionNewParams) { p.Temperature = openai.Float(-1) }, 400, "temperature"},
		"model":       {func(p *openai.ChatCompletionNewParams) { p.Model = "no-such-model" }, 404, "model"},
		"length":      {func(p *openai.ChatCompletionNewParams) { p.MaxTokens = openai.Int(1 << 24) }, 400, "max_tokens"},
	} {
		params := chatParams(model)
		c.change(&params)
		_, err := client.Chat.Completions.New(t.Context(), params)
		var failure *openai.Error
		if !errors.As(err, &failure) || failure.StatusCode != c.status || failure.Param != c.param || failure.Message == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}
