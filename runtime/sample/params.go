// Package sample holds the sampling parameters of a request: their defaults, the
// checks a user meets, and their translation into what a device samples with.
// It is pure; the drawing itself is an operation of package kernels.
package sample

import (
	"errors"
	"fmt"
	"math"

	"manta/kernels"
)

// Limits on what one request may ask for. OpenAI's and vLLM's own where they have one.
const (
	MaxLogprobs  = 20
	MaxBias      = 1024
	MaxStops     = 16
	MaxChoices   = 128
	MaxStopBytes = 1024
)

// ErrParameter is wrapped by every complaint of Check; the text names the field.
var ErrParameter = errors.New("invalid sampling parameter")

// Params is how the tokens of a sequence are chosen and when it ends. The names
// are OpenAI's and vLLM's. It is plain data and travels with the request.
type Params struct {
	MaxTokens         int     `cbor:"1,keyasint,omitempty"`
	MinTokens         int     `cbor:"2,keyasint,omitempty"`
	Temperature       float32 `cbor:"3,keyasint,omitempty"`
	TopP              float32 `cbor:"4,keyasint,omitempty"` // (0, 1]
	TopK              int     `cbor:"5,keyasint,omitempty"` // ≤ 0: all
	MinP              float32 `cbor:"6,keyasint,omitempty"`
	PresencePenalty   float32 `cbor:"7,keyasint,omitempty"`
	FrequencyPenalty  float32 `cbor:"8,keyasint,omitempty"`
	RepetitionPenalty float32 `cbor:"9,keyasint,omitempty"` // 1: none
	Seed              uint64  `cbor:"10,keyasint,omitempty"`

	Bias        []kernels.TokenBias `cbor:"11,keyasint,omitempty"`
	StopTokens  []int32             `cbor:"12,keyasint,omitempty"` // end the choice; kept out of the text
	EndTokens   []int32             `cbor:"13,keyasint,omitempty"` // the model's own; off with IgnoreEOS
	IgnoreEOS   bool                `cbor:"14,keyasint,omitempty"`
	Stops       []string            `cbor:"15,keyasint,omitempty"` // the head alone looks at these
	IncludeStop bool                `cbor:"16,keyasint,omitempty"`
	KeepSpecial bool                `cbor:"17,keyasint,omitempty"` // skip_special_tokens=false

	// Logprobs: -1 none, n ≥ 0 the chosen token's and those of the n best.
	Logprobs       int `cbor:"18,keyasint"`
	PromptLogprobs int `cbor:"19,keyasint"`
}

// Default gives vLLM's defaults.
func Default() Params {
	return Params{Temperature: 1, TopP: 1, RepetitionPenalty: 1, Logprobs: -1, PromptLogprobs: -1}
}

// Check reports the first parameter that is out of range for a model with the
// given vocabulary.
func (p *Params) Check(vocabulary int) error {
	bad := func(field string, format string, a ...any) error {
		return fmt.Errorf("%w: %s %s", ErrParameter, field, fmt.Sprintf(format, a...))
	}
	finite := func(f float32) bool { return !math.IsNaN(float64(f)) && !math.IsInf(float64(f), 0) }
	switch {
	case p.MaxTokens < 1:
		return bad("max_tokens", "must be at least 1, got %d", p.MaxTokens)
	case p.MinTokens < 0 || p.MinTokens > p.MaxTokens:
		return bad("min_tokens", "must be between 0 and max_tokens=%d, got %d", p.MaxTokens, p.MinTokens)
	case !finite(p.Temperature) || p.Temperature < 0 || p.Temperature > 100:
		return bad("temperature", "must be between 0 and 100, got %v", p.Temperature)
	case !(p.TopP > 0 && p.TopP <= 1):
		return bad("top_p", "must be in (0, 1], got %v", p.TopP)
	case p.TopK < -1:
		return bad("top_k", "must be -1 or 0 (all) or at least 1, got %d", p.TopK)
	case !(p.MinP >= 0 && p.MinP <= 1):
		return bad("min_p", "must be in [0, 1], got %v", p.MinP)
	case !(p.PresencePenalty >= -2 && p.PresencePenalty <= 2):
		return bad("presence_penalty", "must be in [-2, 2], got %v", p.PresencePenalty)
	case !(p.FrequencyPenalty >= -2 && p.FrequencyPenalty <= 2):
		return bad("frequency_penalty", "must be in [-2, 2], got %v", p.FrequencyPenalty)
	case !finite(p.RepetitionPenalty) || p.RepetitionPenalty <= 0 || p.RepetitionPenalty > 100:
		return bad("repetition_penalty", "must be in (0, 100], got %v", p.RepetitionPenalty)
	case len(p.Bias) > MaxBias:
		return bad("logit_bias", "has %d entries, at most %d", len(p.Bias), MaxBias)
	case len(p.Stops) > MaxStops:
		return bad("stop", "has %d strings, at most %d", len(p.Stops), MaxStops)
	case len(p.StopTokens) > MaxBias:
		return bad("stop_token_ids", "has %d entries, at most %d", len(p.StopTokens), MaxBias)
	case p.Logprobs < -1 || p.Logprobs > MaxLogprobs:
		return bad("logprobs", "must be between 0 and %d, got %d", MaxLogprobs, p.Logprobs)
	case p.PromptLogprobs < -1 || p.PromptLogprobs > MaxLogprobs:
		return bad("prompt_logprobs", "must be between 0 and %d, got %d", MaxLogprobs, p.PromptLogprobs)
	}
	for _, b := range p.Bias {
		if b.Token < 0 || int(b.Token) >= vocabulary {
			return bad("logit_bias", "names token %d of a vocabulary of %d", b.Token, vocabulary)
		}
		if !finite(b.Bias) || b.Bias < -100 || b.Bias > 100 {
			return bad("logit_bias", "of token %d must be in [-100, 100], got %v", b.Token, b.Bias)
		}
	}
	for _, t := range p.StopTokens {
		if t < 0 || int(t) >= vocabulary {
			return bad("stop_token_ids", "names token %d of a vocabulary of %d", t, vocabulary)
		}
	}
	for _, s := range p.Stops {
		if s == "" || len(s) > MaxStopBytes {
			return bad("stop", "strings must have 1 to %d bytes", MaxStopBytes)
		}
	}
	return nil
}

// Ends reports whether token t, the n-th output token (from 1), ends the choice.
func (p *Params) Ends(t int32, n int) bool {
	if n < p.MinTokens {
		return false
	}
	if !p.IgnoreEOS && contains(p.EndTokens, t) {
		return true
	}
	return contains(p.StopTokens, t)
}

func contains(list []int32, t int32) bool {
	for _, v := range list {
		if v == t {
			return true
		}
	}
	return false
}

// Row fills a device's sampling row for the output token at absolute position,
// of a sequence with so many output tokens before it.
func (p *Params) Row(choice, position, outputs int) kernels.SampleRow {
	row := kernels.SampleRow{
		Target:            -1,
		Temperature:       p.Temperature,
		TopK:              int32(p.TopK),
		TopP:              p.TopP,
		MinP:              p.MinP,
		PresencePenalty:   p.PresencePenalty,
		FrequencyPenalty:  p.FrequencyPenalty,
		RepetitionPenalty: p.RepetitionPenalty,
		Bias:              p.Bias,
		Seed:              p.Seed,
		Choice:            uint32(choice),
		Position:          uint32(position),
		TopLogprobs:       int32(p.Logprobs),
	}
	if outputs < p.MinTokens {
		row.Banned = append(row.Banned, p.EndTokens...)
		row.Banned = append(row.Banned, p.StopTokens...)
	}
	return row
}
