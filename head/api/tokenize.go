package api

import (
	"encoding/json"
	"net/http"
)

// tokenizeRequest is vLLM's: a prompt, or messages.
type tokenizeRequest struct {
	Model               *string                    `json:"model"`
	Prompt              *string                    `json:"prompt"`
	Messages            json.RawMessage            `json:"messages"`
	AddSpecial          *bool                      `json:"add_special_tokens"`
	TokenStrings        bool                       `json:"return_token_strs"`
	AddGenerationPrompt *bool                      `json:"add_generation_prompt"`
	ContinueFinal       bool                       `json:"continue_final_message"`
	TemplateKwargs      map[string]json.RawMessage `json:"chat_template_kwargs"`
	Tools               json.RawMessage            `json:"tools"`
}

func (s *Server) tokenize(w http.ResponseWriter, r *http.Request) (any, error) {
	var request tokenizeRequest
	if err := s.read(w, r, &request); err != nil {
		return nil, err
	}
	model, err := s.serve(r.Context(), request.Model)
	if err != nil {
		return nil, err
	}
	p, err := request.encode(model)
	if err != nil {
		return nil, err
	}
	answer := struct {
		Count        int      `json:"count"`
		MaxModelLen  int      `json:"max_model_len"`
		Tokens       []int32  `json:"tokens"`
		TokenStrings []string `json:"token_strs"`
	}{len(p.tokens), model.length, append([]int32{}, p.tokens...), nil}
	if request.TokenStrings {
		answer.TokenStrings = []string{}
		for _, token := range p.tokens {
			answer.TokenStrings = append(answer.TokenStrings, model.text.Tokenizer.Token(token))
		}
	}
	return answer, nil
}

func (t *tokenizeRequest) encode(model *served) (prompt, error) {
	if absent(t.Messages) {
		if t.Prompt == nil {
			return prompt{}, badField("prompt", "prompt or messages must be given")
		}
		return encode(model.text, "prompt", *t.Prompt, t.AddSpecial == nil || *t.AddSpecial)
	}
	chat := &chatRequest{
		Messages: t.Messages, Tools: t.Tools, AddGenerationPrompt: t.AddGenerationPrompt,
		ContinueFinal: t.ContinueFinal, TemplateKwargs: t.TemplateKwargs,
	}
	if err := chat.check(); err != nil {
		return prompt{}, err
	}
	text, err := chat.render(model)
	if err != nil {
		return prompt{}, err
	}
	return encode(model.text, "messages", text, t.AddSpecial != nil && *t.AddSpecial)
}

func (s *Server) detokenize(w http.ResponseWriter, r *http.Request) (any, error) {
	var request struct {
		Model  *string         `json:"model"`
		Tokens json.RawMessage `json:"tokens"`
	}
	if err := s.read(w, r, &request); err != nil {
		return nil, err
	}
	if absent(request.Tokens) {
		return nil, badField("tokens", "tokens must be given")
	}
	model, err := s.serve(r.Context(), request.Model)
	if err != nil {
		return nil, err
	}
	p, err := fromIDs(model.text, "tokens", request.Tokens)
	if err != nil {
		return nil, err
	}
	return struct {
		Prompt string `json:"prompt"`
	}{p.text}, nil
}
