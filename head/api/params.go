package api

import (
	"cmp"
	"encoding/json"
	"math"
	"slices"
	"strconv"

	"manta/head/state"
	"manta/kernels"
	"manta/runtime/sample"
)

// sampling are the fields that chat and completions share, in OpenAI's and
// vLLM's words. A pointer that is nil was not given.
type sampling struct {
	Model             *string            `json:"model"`
	Temperature       *float64           `json:"temperature"`
	TopP              *float64           `json:"top_p"`
	TopK              *int               `json:"top_k"`
	MinP              *float64           `json:"min_p"`
	PresencePenalty   *float64           `json:"presence_penalty"`
	FrequencyPenalty  *float64           `json:"frequency_penalty"`
	RepetitionPenalty *float64           `json:"repetition_penalty"`
	Seed              *int64             `json:"seed"`
	LogitBias         map[string]float64 `json:"logit_bias"`
	Stop              json.RawMessage    `json:"stop"`
	StopTokenIDs      []int32            `json:"stop_token_ids"`
	IncludeStop       bool               `json:"include_stop_str_in_output"`
	IgnoreEOS         bool               `json:"ignore_eos"`
	MinTokens         int                `json:"min_tokens"`
	SkipSpecial       *bool              `json:"skip_special_tokens"`
	AddSpecial        *bool              `json:"add_special_tokens"`
	N                 *int               `json:"n"`
	Priority          int                `json:"priority"`
	PromptLogprobs    *int               `json:"prompt_logprobs"`
	TokensAsIDs       bool               `json:"return_tokens_as_token_ids"`
	ReturnTokenIDs    bool               `json:"return_token_ids"`
	Stream            bool               `json:"stream"`
	StreamOptions     *streamOptions     `json:"stream_options"`
}

type streamOptions struct {
	IncludeUsage    bool `json:"include_usage"`
	ContinuousUsage bool `json:"continuous_usage_stats"`
}

// refused are fields that ask for what Manta does not do. Each is refused by
// name unless it has one of the harmless values.
type refused struct {
	BeamSearch        json.RawMessage `json:"use_beam_search"`
	ResponseFormat    json.RawMessage `json:"response_format"`
	StructuredOutputs json.RawMessage `json:"structured_outputs"`
	GuidedJSON        json.RawMessage `json:"guided_json"`
	GuidedRegex       json.RawMessage `json:"guided_regex"`
	GuidedChoice      json.RawMessage `json:"guided_choice"`
	GuidedGrammar     json.RawMessage `json:"guided_grammar"`
	StructuralTag     json.RawMessage `json:"structural_tag"`
	LogitsProcessors  json.RawMessage `json:"logits_processors"`
	AllowedTokens     json.RawMessage `json:"allowed_token_ids"`
	BadWords          json.RawMessage `json:"bad_words"`
	PromptEmbeds      json.RawMessage `json:"prompt_embeds"`
	TruncatePrompt    json.RawMessage `json:"truncate_prompt_tokens"`
	LogprobTokens     json.RawMessage `json:"logprob_token_ids"`
	CacheSalt         json.RawMessage `json:"cache_salt"`
	KVTransfer        json.RawMessage `json:"kv_transfer_params"`
	ThinkingBudget    json.RawMessage `json:"thinking_token_budget"`
	Repetition        json.RawMessage `json:"repetition_detection"`
}

// ask is one field of which only harmless values are taken.
type ask struct {
	field    string
	raw      json.RawMessage
	harmless []string
	hint     string
}

func (r *refused) check() error {
	if !absent(r.ResponseFormat) {
		format, err := decodeField[struct {
			Type string `json:"type"`
		}]("response_format", r.ResponseFormat, "an object with a type")
		if err != nil {
			return err
		}
		if format.Type != "text" {
			return unsupported("response_format", "only {\"type\": \"text\"} is")
		}
	}
	return refuse([]ask{
		{"use_beam_search", r.BeamSearch, []string{"false"}, ""},
		{"structured_outputs", r.StructuredOutputs, nil, ""},
		{"guided_json", r.GuidedJSON, nil, ""},
		{"guided_regex", r.GuidedRegex, nil, ""},
		{"guided_choice", r.GuidedChoice, nil, ""},
		{"guided_grammar", r.GuidedGrammar, nil, ""},
		{"structural_tag", r.StructuralTag, nil, ""},
		{"logits_processors", r.LogitsProcessors, []string{"[]"}, ""},
		{"allowed_token_ids", r.AllowedTokens, nil, "logit_bias may do"},
		{"bad_words", r.BadWords, []string{"[]"}, "logit_bias may do"},
		{"prompt_embeds", r.PromptEmbeds, nil, ""},
		{"truncate_prompt_tokens", r.TruncatePrompt, nil, "shorten the prompt"},
		{"logprob_token_ids", r.LogprobTokens, nil, ""},
		{"cache_salt", r.CacheSalt, nil, ""},
		{"kv_transfer_params", r.KVTransfer, nil, ""},
		{"thinking_token_budget", r.ThinkingBudget, []string{"-1"}, ""},
		{"repetition_detection", r.Repetition, nil, ""},
	})
}

// refuse reports the first field that asks for something.
func refuse(asks []ask) error {
	for _, a := range asks {
		if !absent(a.raw) && !slices.Contains(a.harmless, string(a.raw)) {
			return unsupported(a.field, a.hint)
		}
	}
	return nil
}

// params turns the fields into sampling parameters: the client's word, else the
// model's own, else vLLM's default. MaxTokens and the logprobs are the caller's.
func (f *sampling) params(generation state.Generation, text *Text) (sample.Params, error) {
	p := sample.Default()
	p.Temperature = pick(f.Temperature, generation.Temperature, p.Temperature)
	p.TopP = pick(f.TopP, generation.TopP, p.TopP)
	p.RepetitionPenalty = pick(f.RepetitionPenalty, generation.RepetitionPenalty, p.RepetitionPenalty)
	p.MinP = pick(f.MinP, generation.MinP, 0)
	p.PresencePenalty = pick(f.PresencePenalty, nil, 0)
	p.FrequencyPenalty = pick(f.FrequencyPenalty, nil, 0)
	switch {
	case f.TopK != nil:
		p.TopK = *f.TopK
	case generation.TopK != nil:
		p.TopK = *generation.TopK
	}
	if p.TopK > math.MaxInt32 {
		p.TopK = 0 // all of them
	}
	if f.Seed != nil {
		p.Seed = uint64(*f.Seed)
	}
	bias, err := f.bias()
	if err != nil {
		return p, err
	}
	p.Bias = bias
	if p.Stops, err = stringOrList("stop", f.Stop); err != nil {
		return p, err
	}
	p.StopTokens, p.EndTokens = f.StopTokenIDs, endTokens(generation, text)
	p.IncludeStop, p.IgnoreEOS, p.MinTokens = f.IncludeStop, f.IgnoreEOS, f.MinTokens
	p.KeepSpecial = f.SkipSpecial != nil && !*f.SkipSpecial
	if f.PromptLogprobs != nil {
		if *f.PromptLogprobs < 0 {
			return p, badField("prompt_logprobs", "prompt_logprobs must be between 0 and %d, got %d", sample.MaxLogprobs, *f.PromptLogprobs)
		}
		if f.Stream {
			return p, badField("prompt_logprobs", "prompt_logprobs are not available when stream is true")
		}
		p.PromptLogprobs = *f.PromptLogprobs
	}
	if f.StreamOptions != nil && !f.Stream {
		return p, badField("stream_options", "stream_options can only be given when stream is true")
	}
	return p, nil
}

// bias reads logit_bias, whose keys are token ids. Values are clamped as vLLM does.
func (f *sampling) bias() ([]kernels.TokenBias, error) {
	var bias []kernels.TokenBias
	for key, value := range f.LogitBias {
		token, err := strconv.ParseInt(key, 10, 32)
		if err != nil {
			return nil, badField("logit_bias", "logit_bias has the key %q; keys must be token ids", key)
		}
		bias = append(bias, kernels.TokenBias{Token: int32(token), Bias: float32(min(max(value, -100), 100))})
	}
	slices.SortFunc(bias, func(a, b kernels.TokenBias) int { return cmp.Compare(a.Token, b.Token) })
	return bias, nil
}

// choices gives n.
func (f *sampling) choices() (int, error) {
	if f.N == nil {
		return 1, nil
	}
	if *f.N < 1 || *f.N > sample.MaxChoices {
		return 0, badField("n", "n must be between 1 and %d, got %d", sample.MaxChoices, *f.N)
	}
	return *f.N, nil
}

func endTokens(generation state.Generation, text *Text) []int32 {
	ends := slices.Clone(generation.EndTokens)
	if text.EndToken >= 0 && !slices.Contains(ends, text.EndToken) {
		ends = append(ends, text.EndToken)
	}
	return ends
}

func pick(given *float64, model *float32, otherwise float32) float32 {
	switch {
	case given != nil:
		return float32(*given)
	case model != nil:
		return *model
	}
	return otherwise
}
