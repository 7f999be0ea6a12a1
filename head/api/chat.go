package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"manta/head/dispatch"
	"manta/node/wire"
	"manta/runtime/sample"
)

// chatRequest is OpenAI's, with vLLM's extra parameters.
type chatRequest struct {
	sampling
	refused
	Messages            json.RawMessage            `json:"messages"`
	MaxTokens           *int                       `json:"max_tokens"`
	MaxCompletionTokens *int                       `json:"max_completion_tokens"`
	Logprobs            bool                       `json:"logprobs"`
	TopLogprobs         *int                       `json:"top_logprobs"`
	Tools               json.RawMessage            `json:"tools"`
	ToolChoice          json.RawMessage            `json:"tool_choice"`
	Documents           json.RawMessage            `json:"documents"`
	Echo                bool                       `json:"echo"`
	AddGenerationPrompt *bool                      `json:"add_generation_prompt"`
	ContinueFinal       bool                       `json:"continue_final_message"`
	TemplateKwargs      map[string]json.RawMessage `json:"chat_template_kwargs"`
	ReasoningEffort     json.RawMessage            `json:"reasoning_effort"`

	ChatTemplate json.RawMessage `json:"chat_template"`
	Functions    json.RawMessage `json:"functions"`
	FunctionCall json.RawMessage `json:"function_call"`
	Modalities   json.RawMessage `json:"modalities"`
	Audio        json.RawMessage `json:"audio"`
	WebSearch    json.RawMessage `json:"web_search_options"`
	Prediction   json.RawMessage `json:"prediction"`
}

func (s *Server) chat(w http.ResponseWriter, r *http.Request) (any, error) {
	data, err := s.body(w, r)
	if err != nil {
		return nil, err
	}
	j, request, err := s.chatJob(r, data)
	if err != nil {
		return nil, err
	}
	form := &chatForm{job: j, prefix: request.echoed()}
	if j.stream {
		return nil, s.stream(w, r, j, form)
	}
	all, err := s.gather(r.Context(), j)
	if err != nil {
		return nil, err
	}
	return form.whole(&all[0][0], countUsage(j, all[0])), nil
}

// chatJob checks a chat request and renders its messages.
func (s *Server) chatJob(r *http.Request, data []byte) (*job, *chatRequest, error) {
	var request chatRequest
	if err := parse(data, &request); err != nil {
		return nil, nil, err
	}
	if err := request.check(); err != nil {
		return nil, nil, err
	}
	model, err := s.serve(r.Context(), request.Model)
	if err != nil {
		return nil, nil, err
	}
	params, err := request.params(model.Generation, model.text)
	if err != nil {
		return nil, nil, err
	}
	if request.Logprobs {
		params.Logprobs = 0
		if request.TopLogprobs != nil {
			params.Logprobs = *request.TopLogprobs
		}
	}
	j, err := newJob(r, model, &request.sampling, data, params)
	if err != nil {
		return nil, nil, err
	}
	rendered, err := request.render(model)
	if err != nil {
		return nil, nil, err
	}
	tokens, err := model.text.Tokenizer.Encode(rendered, request.AddSpecial != nil && *request.AddSpecial)
	if err != nil {
		return nil, nil, badField("messages", "messages: %v", err)
	}
	j.prompts = []prompt{{text: rendered, tokens: tokens}}
	if err := j.fit(request.limit(), "messages"); err != nil {
		return nil, nil, err
	}
	return j, &request, j.goOn(r)
}

// limit is the most tokens to give; 0: the rest of the context.
func (c *chatRequest) limit() int {
	for _, given := range []*int{c.MaxCompletionTokens, c.MaxTokens} {
		if given != nil {
			return *given
		}
	}
	return 0
}

// check refuses what can be refused before the model is known.
func (c *chatRequest) check() error {
	if absent(c.Messages) || c.Messages[0] != '[' {
		return badField("messages", "messages must be a list of at least one message")
	}
	for field, given := range map[string]*int{"max_completion_tokens": c.MaxCompletionTokens, "max_tokens": c.MaxTokens} {
		if given != nil && *given < 1 {
			return badField(field, "%s must be at least 1, got %d", field, *given)
		}
	}
	if c.TopLogprobs != nil {
		if *c.TopLogprobs < 0 || *c.TopLogprobs > sample.MaxLogprobs {
			return badField("top_logprobs", "top_logprobs must be between 0 and %d, got %d", sample.MaxLogprobs, *c.TopLogprobs)
		}
		if *c.TopLogprobs > 0 && !c.Logprobs {
			return badField("top_logprobs", "when using top_logprobs, logprobs must be set to true")
		}
	}
	if c.ContinueFinal && (c.AddGenerationPrompt == nil || *c.AddGenerationPrompt) {
		if c.AddGenerationPrompt != nil {
			return badField("continue_final_message", "cannot set both continue_final_message and add_generation_prompt to true")
		}
		off := false
		c.AddGenerationPrompt = &off
	}
	if err := c.refused.check(); err != nil {
		return err
	}
	return refuse([]ask{
		{"tool_choice", c.ToolChoice, []string{`"none"`, `"auto"`}, "the model may call tools, but can't be made to; use \"auto\" or \"none\""},
		{"chat_template", c.ChatTemplate, nil, "the model's own is used"},
		{"functions", c.Functions, []string{"[]"}, "use tools"},
		{"function_call", c.FunctionCall, []string{`"none"`, `"auto"`}, "use tools"},
		{"modalities", c.Modalities, []string{`["text"]`}, "only text is"},
		{"audio", c.Audio, nil, ""},
		{"web_search_options", c.WebSearch, nil, ""},
		{"prediction", c.Prediction, nil, ""},
	})
}

// render gives the prompt that the model's template makes of the messages.
func (c *chatRequest) render(model *served) (string, error) {
	if model.text.Template == nil {
		return "", badField("messages", "the model %s has no chat template; use /v1/completions", model.Name)
	}
	conversation := Conversation{
		Messages: c.Messages, AddGenerationPrompt: c.AddGenerationPrompt == nil || *c.AddGenerationPrompt,
		ContinueFinalMessage: c.ContinueFinal, Kwargs: c.TemplateKwargs, Now: time.Now(),
	}
	if !absent(c.ReasoningEffort) {
		if conversation.Kwargs == nil {
			conversation.Kwargs = map[string]json.RawMessage{}
		}
		if _, given := conversation.Kwargs["reasoning_effort"]; !given {
			conversation.Kwargs["reasoning_effort"] = c.ReasoningEffort
		}
	}
	if !absent(c.Tools) && string(c.Tools) != "[]" && string(c.ToolChoice) != `"none"` {
		if err := checkTools(c.Tools); err != nil {
			return "", err
		}
		if !model.text.Template.ReadsTools() {
			return "", badField("tools", "the chat template of %s does not read tools, so the model would not hear of them", model.Name)
		}
		conversation.Tools = c.Tools
	}
	if !absent(c.Documents) {
		conversation.Documents = c.Documents
	}
	text, err := model.text.Template.Render(conversation)
	if err != nil {
		return "", badConversation(err)
	}
	return text, nil
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

// echoed is the text that goes before the answer when the client asks for it:
// the last message, if it is the assistant's.
func (c *chatRequest) echoed() string {
	if !c.Echo {
		return ""
	}
	var messages []struct {
		Role    string          `json:"role"`
		Content json.RawMessage `json:"content"`
	}
	if json.Unmarshal(c.Messages, &messages) != nil || len(messages) == 0 {
		return ""
	}
	last := messages[len(messages)-1]
	var text string
	if last.Role != "assistant" || json.Unmarshal(last.Content, &text) != nil {
		return "" // parts are not echoed, as in vLLM
	}
	return text
}

// chatForm makes OpenAI's chat answers.
type chatForm struct {
	job    *job
	prefix string // echoed before the text
}

type chatMessage struct {
	Role    string  `json:"role"`
	Content *string `json:"content"`
}

type chatChoice struct {
	Index        int               `json:"index"`
	Message      chatMessage       `json:"message"`
	Logprobs     *chatLogprobs     `json:"logprobs"`
	FinishReason wire.FinishReason `json:"finish_reason"`
	StopReason   any               `json:"stop_reason"`
	TokenIDs     []int32           `json:"token_ids,omitempty"`
}

type chatCompletion struct {
	ID             string                     `json:"id"`
	Object         string                     `json:"object"`
	Created        int64                      `json:"created"`
	Model          string                     `json:"model"`
	Choices        []chatChoice               `json:"choices"`
	Usage          *usage                     `json:"usage"`
	PromptLogprobs []map[string]promptLogprob `json:"prompt_logprobs"`
	PromptTokenIDs []int32                    `json:"prompt_token_ids,omitempty"`
}

func (f *chatForm) id() string { return "chatcmpl-" + f.job.id.String() }

func (f *chatForm) whole(all *gathered, used *usage) *chatCompletion {
	j := f.job
	answer := &chatCompletion{
		ID: f.id(), Object: "chat.completion", Created: j.created, Model: j.model.Name, Usage: used,
		PromptLogprobs: j.promptLogprobs(j.prompts[0].tokens, all.prompt),
	}
	if j.tokenIDs {
		answer.PromptTokenIDs = j.prompts[0].tokens
	}
	for i, a := range all.choices {
		text := f.prefix + a.text
		choice := chatChoice{
			Index: i, Message: chatMessage{Role: "assistant", Content: &text}, FinishReason: a.finish, StopReason: a.reason,
		}
		if j.params.Logprobs >= 0 {
			choice.Logprobs = j.chatLogprobs(a.logprobs)
		}
		if j.tokenIDs {
			choice.TokenIDs = a.tokens
		}
		answer.Choices = append(answer.Choices, choice)
	}
	return answer
}

type chatDelta struct {
	Role    string  `json:"role,omitempty"`
	Content *string `json:"content,omitempty"`
}

type chatChunkChoice struct {
	Index        int                `json:"index"`
	Delta        chatDelta          `json:"delta"`
	Logprobs     *chatLogprobs      `json:"logprobs"`
	FinishReason *wire.FinishReason `json:"finish_reason"`
	StopReason   any                `json:"stop_reason,omitempty"`
	TokenIDs     []int32            `json:"token_ids,omitempty"`
}

type chatChunk struct {
	ID             string            `json:"id"`
	Object         string            `json:"object"`
	Created        int64             `json:"created"`
	Model          string            `json:"model"`
	Choices        []chatChunkChoice `json:"choices"`
	Usage          *usage            `json:"usage,omitempty"`
	PromptTokenIDs []int32           `json:"prompt_token_ids,omitempty"`
}

func (f *chatForm) frame(choices []chatChunkChoice, used *usage) *chatChunk {
	return &chatChunk{
		ID: f.id(), Object: "chat.completion.chunk", Created: f.job.created, Model: f.job.model.Name,
		Choices: choices, Usage: used,
	}
}

func (f *chatForm) begin(choice int) any {
	var used *usage
	if f.job.continuous {
		used = newUsage(len(f.job.prompts[0].tokens), 0, 0)
	}
	chunk := f.frame([]chatChunkChoice{{Index: choice, Delta: chatDelta{Role: "assistant", Content: &f.prefix}}}, used)
	if f.job.tokenIDs {
		chunk.PromptTokenIDs = f.job.prompts[0].tokens
	}
	return chunk
}

func (f *chatForm) chunk(choice int, e *dispatch.Event, used *usage) any {
	j := f.job
	logprobs := j.params.Logprobs >= 0 && len(e.Logprobs) > 0
	if e.Text == "" && e.Finish == wire.Unfinished && !logprobs && !(j.tokenIDs && len(e.Tokens) > 0) {
		return nil
	}
	piece := chatChunkChoice{Index: choice, Delta: chatDelta{Content: &e.Text}, StopReason: stopReason(e)}
	if logprobs {
		piece.Logprobs = j.chatLogprobs(e.Logprobs)
	}
	if e.Finish != wire.Unfinished {
		piece.FinishReason = &e.Finish
	}
	if j.tokenIDs {
		piece.TokenIDs = e.Tokens
	}
	return f.frame([]chatChunkChoice{piece}, used)
}

func (f *chatForm) plain(_ int, e *dispatch.Event) bool { return f.job.plain(e) }

func (f *chatForm) last(used *usage) any { return f.frame([]chatChunkChoice{}, used) }
