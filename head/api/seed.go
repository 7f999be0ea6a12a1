package api

import (
	"bytes"
	"fmt"
	"net/http"
)

// seedRequest is the seed guide's. What is not given has the guide's defaults.
type seedRequest struct {
	Prompt           *string  `json:"prompt"`
	MaxTokens        *int     `json:"max_tokens"`
	Temperature      *float64 `json:"temperature"`
	TopP             *float64 `json:"top_p"`
	TopK             *int     `json:"top_k"`
	PresencePenalty  *float64 `json:"presence_penalty"`
	FrequencyPenalty *float64 `json:"frequency_penalty"`
	Model            *string  `json:"model"`
}

const (
	seedMaxTokens   = 512
	seedTemperature = 0.8
	seedTopP        = 0.95
	seedTopK        = 50
)

type seedAnswer struct {
	GeneratedText string `json:"generated_text"`
	NumTokens     int    `json:"num_tokens"`
}

func (s *Server) generate(w http.ResponseWriter, r *http.Request) (any, error) {
	data, err := s.body(w, r)
	if err != nil {
		return nil, err
	}
	var request seedRequest
	if err := parse(data, &request); err != nil {
		return nil, err
	}
	answers, err := s.seedAnswers(r, data, []seedRequest{request}, "")
	if err != nil {
		return nil, err
	}
	return answers[0], nil
}

// batchGenerate takes a bare list, or an object with the list as requests.
func (s *Server) batchGenerate(w http.ResponseWriter, r *http.Request) (any, error) {
	data, err := s.body(w, r)
	if err != nil {
		return nil, err
	}
	var request struct {
		Requests *[]seedRequest `json:"requests"`
	}
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte("[")) {
		request.Requests = &[]seedRequest{}
		err = parse(data, request.Requests)
	} else {
		err = parse(data, &request)
	}
	switch {
	case err != nil:
	case request.Requests == nil:
		err = badField("requests", "requests must be given, or the body be a list of requests")
	case len(*request.Requests) > maxSeedBatch:
		err = badField("requests", "requests has %d entries, at most %d", len(*request.Requests), maxSeedBatch)
	}
	if err != nil {
		return nil, err
	}
	answers, err := s.seedAnswers(r, data, *request.Requests, "requests")
	if err != nil {
		return nil, err
	}
	return struct {
		Results []seedAnswer `json:"results"`
	}{answers}, nil
}

const maxSeedBatch = 256

// seedAnswers runs requests together, each with its own parameters.
func (s *Server) seedAnswers(r *http.Request, data []byte, requests []seedRequest, list string) ([]seedAnswer, error) {
	jobs := make([]*job, len(requests))
	for i := range requests {
		j, err := s.seedJob(r, data, &requests[i])
		if err != nil {
			return nil, within(err, list, i)
		}
		jobs[i] = j
	}
	all, err := s.gather(r.Context(), jobs...)
	if err != nil {
		return nil, err
	}
	answers := make([]seedAnswer, len(jobs))
	for i := range answers {
		only := &all[i][0].choices[0]
		answers[i].GeneratedText, answers[i].NumTokens = only.text, len(only.tokens)
	}
	return answers, nil
}

func (s *Server) seedJob(r *http.Request, data []byte, request *seedRequest) (*job, error) {
	if request.Prompt == nil {
		return nil, badField("prompt", "prompt must be given")
	}
	model, err := s.serve(r.Context(), request.Model)
	if err != nil {
		return nil, err
	}
	fields := &sampling{
		Temperature: orDefault(request.Temperature, seedTemperature), TopP: orDefault(request.TopP, seedTopP),
		TopK: orDefault(request.TopK, seedTopK), PresencePenalty: orDefault(request.PresencePenalty, 0),
		FrequencyPenalty: orDefault(request.FrequencyPenalty, 0),
	}
	params, err := fields.params(model.Generation, model.text)
	if err != nil {
		return nil, err
	}
	j, err := newJob(r, model, fields, data, params)
	if err != nil {
		return nil, err
	}
	p, err := encode(model.text, "prompt", *request.Prompt, true)
	if err != nil {
		return nil, err
	}
	j.prompts = []prompt{p}
	limit := seedMaxTokens
	switch {
	case request.MaxTokens == nil:
		// A default never makes a request fail.
		limit = max(1, min(limit, model.length-len(p.tokens)))
	case *request.MaxTokens < 1:
		return nil, badField("max_tokens", "max_tokens must be at least 1, got %d", *request.MaxTokens)
	default:
		limit = *request.MaxTokens
	}
	return j, j.fit(limit, "prompt")
}

func orDefault[T any](given *T, otherwise T) *T {
	if given != nil {
		return given
	}
	return &otherwise
}

// within names the entry of a list that an error is about.
func within(err error, list string, index int) error {
	known := describe(err)
	if list == "" || known.Status != http.StatusBadRequest {
		return err
	}
	at := *known
	at.Message = fmt.Sprintf("%s[%d]: %s", list, index, known.Message)
	if known.Param != "" {
		at.Param = fmt.Sprintf("%s[%d].%s", list, index, known.Param)
	}
	return &at
}
