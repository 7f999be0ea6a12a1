package sample

import (
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"

	"manta/kernels"
)

const vocabulary = 100

func valid() Params {
	p := Default()
	p.MaxTokens = 16
	return p
}

// Law: the first parameter out of range is named; the ends of every range are
// in it.
func TestCheck(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	for name, c := range map[string]struct {
		change func(p *Params)
		field  string // that the error names; empty: none
	}{
		"defaults":              {func(p *Params) {}, ""},
		"no max_tokens":         {func(p *Params) { p.MaxTokens = 0 }, "max_tokens"},
		"min_tokens":            {func(p *Params) { p.MinTokens = 16 }, ""},
		"min above max":         {func(p *Params) { p.MinTokens = 17 }, "min_tokens"},
		"negative min":          {func(p *Params) { p.MinTokens = -1 }, "min_tokens"},
		"greedy":                {func(p *Params) { p.Temperature = 0 }, ""},
		"hottest":               {func(p *Params) { p.Temperature = 100 }, ""},
		"too hot":               {func(p *Params) { p.Temperature = 100.5 }, "temperature"},
		"negative temperature":  {func(p *Params) { p.Temperature = -0.1 }, "temperature"},
		"temperature NaN":       {func(p *Params) { p.Temperature = nan }, "temperature"},
		"temperature infinite":  {func(p *Params) { p.Temperature = inf }, "temperature"},
		"top_p 0":               {func(p *Params) { p.TopP = 0 }, "top_p"},
		"top_p above 1":         {func(p *Params) { p.TopP = 1.01 }, "top_p"},
		"top_p NaN":             {func(p *Params) { p.TopP = nan }, "top_p"},
		"top_k all":             {func(p *Params) { p.TopK = -1 }, ""},
		"top_k above the model": {func(p *Params) { p.TopK = 1 << 20 }, ""},
		"top_k":                 {func(p *Params) { p.TopK = -2 }, "top_k"},
		"min_p 1":               {func(p *Params) { p.MinP = 1 }, ""},
		"min_p":                 {func(p *Params) { p.MinP = -0.1 }, "min_p"},
		"min_p NaN":             {func(p *Params) { p.MinP = nan }, "min_p"},
		"presence":              {func(p *Params) { p.PresencePenalty = -2 }, ""},
		"presence too low":      {func(p *Params) { p.PresencePenalty = -2.1 }, "presence_penalty"},
		"presence NaN":          {func(p *Params) { p.PresencePenalty = nan }, "presence_penalty"},
		"frequency":             {func(p *Params) { p.FrequencyPenalty = 2 }, ""},
		"frequency too high":    {func(p *Params) { p.FrequencyPenalty = 2.1 }, "frequency_penalty"},
		"repetition 0":          {func(p *Params) { p.RepetitionPenalty = 0 }, "repetition_penalty"},
		"repetition infinite":   {func(p *Params) { p.RepetitionPenalty = inf }, "repetition_penalty"},
		"bias":                  {func(p *Params) { p.Bias = []kernels.TokenBias{{Token: vocabulary - 1, Bias: -100}} }, ""},
		"bias of no token":      {func(p *Params) { p.Bias = []kernels.TokenBias{{Token: vocabulary, Bias: 1}} }, "logit_bias"},
		"bias of minus one":     {func(p *Params) { p.Bias = []kernels.TokenBias{{Token: -1, Bias: 1}} }, "logit_bias"},
		"bias too large":        {func(p *Params) { p.Bias = []kernels.TokenBias{{Token: 1, Bias: 100.5}} }, "logit_bias"},
		"bias NaN":              {func(p *Params) { p.Bias = []kernels.TokenBias{{Token: 1, Bias: nan}} }, "logit_bias"},
		"biases":                {func(p *Params) { p.Bias = make([]kernels.TokenBias, MaxBias+1) }, "logit_bias"},
		"stop":                  {func(p *Params) { p.Stops = []string{"\n", strings.Repeat("x", MaxStopBytes)} }, ""},
		"empty stop":            {func(p *Params) { p.Stops = []string{"a", ""} }, "stop"},
		"long stop":             {func(p *Params) { p.Stops = []string{strings.Repeat("x", MaxStopBytes+1)} }, "stop"},
		"stops":                 {func(p *Params) { p.Stops = make([]string, MaxStops+1) }, "stop"},
		"stop token":            {func(p *Params) { p.StopTokens = []int32{0, vocabulary - 1} }, ""},
		"stop of no token":      {func(p *Params) { p.StopTokens = []int32{vocabulary} }, "stop_token_ids"},
		"stop tokens":           {func(p *Params) { p.StopTokens = make([]int32, MaxBias+1) }, "stop_token_ids"},
		"logprobs 0":            {func(p *Params) { p.Logprobs = 0 }, ""},
		"logprobs most":         {func(p *Params) { p.Logprobs = MaxLogprobs }, ""},
		"logprobs":              {func(p *Params) { p.Logprobs = MaxLogprobs + 1 }, "logprobs"},
		"prompt_logprobs":       {func(p *Params) { p.PromptLogprobs = -2 }, "prompt_logprobs"},
	} {
		t.Run(name, func(t *testing.T) {
			p := valid()
			c.change(&p)
			err := p.Check(vocabulary)
			if c.field == "" {
				if err != nil {
					t.Errorf("error %v, want none", err)
				}
				return
			}
			if !errors.Is(err, ErrParameter) || !strings.Contains(err.Error(), ": "+c.field+" ") {
				t.Errorf("error %v, want an ErrParameter of %s", err, c.field)
			}
		})
	}
}

// Law: a choice ends at the model's end tokens, unless they are ignored, and at
// the request's own; never before min_tokens.
func TestEnds(t *testing.T) {
	for name, c := range map[string]struct {
		ignore bool
		min    int
		token  int32
		n      int
		want   bool
	}{
		"end token":         {false, 0, 2, 1, true},
		"stop token":        {false, 0, 7, 1, true},
		"other":             {false, 0, 3, 1, false},
		"ignored":           {true, 0, 2, 1, false},
		"stop not ignored":  {true, 0, 7, 1, true},
		"before min_tokens": {false, 3, 2, 2, false},
		"stop before min":   {false, 3, 7, 2, false},
		"at min_tokens":     {false, 3, 2, 3, true},
	} {
		t.Run(name, func(t *testing.T) {
			p := valid()
			p.EndTokens, p.StopTokens = []int32{1, 2}, []int32{7}
			p.IgnoreEOS, p.MinTokens = c.ignore, c.min
			if got := p.Ends(c.token, c.n); got != c.want {
				t.Errorf("%v, want %v", got, c.want)
			}
		})
	}
}

// Law: a device gets every parameter as the request has it, and the ban of what
// would end the choice until min_tokens have come.
func TestRow(t *testing.T) {
	p := valid()
	p.Temperature, p.TopK, p.TopP, p.MinP = 0.5, 7, 0.9, 0.1
	p.PresencePenalty, p.FrequencyPenalty, p.RepetitionPenalty = 0.2, 0.3, 1.1
	p.Bias = []kernels.TokenBias{{Token: 4, Bias: 2}}
	p.Seed, p.Logprobs, p.MinTokens = 99, 5, 2
	p.EndTokens, p.StopTokens = []int32{1}, []int32{7}
	want := kernels.SampleRow{
		Target: -1, Temperature: 0.5, TopK: 7, TopP: 0.9, MinP: 0.1,
		PresencePenalty: 0.2, FrequencyPenalty: 0.3, RepetitionPenalty: 1.1,
		Bias: p.Bias, Seed: 99, Choice: 3, Position: 40, TopLogprobs: 5,
	}
	for outputs := range 4 {
		want.Banned = nil
		if outputs < 2 {
			want.Banned = []int32{1, 7}
		}
		if got := p.Row(3, 40, outputs); !reflect.DeepEqual(got, want) {
			t.Errorf("after %d tokens %+v, want %+v", outputs, got, want)
		}
	}
	if !reflect.DeepEqual(p.EndTokens, []int32{1}) || !reflect.DeepEqual(p.StopTokens, []int32{7}) {
		t.Errorf("the parameters changed: %v %v", p.EndTokens, p.StopTokens)
	}
}
