package api

import (
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"unicode/utf8"

	"manta/head/dispatch"
	"manta/node/wire"
	"manta/runtime/sample"
)

// completionRequest is OpenAI's, with vLLM's extra parameters.
type completionRequest struct {
	sampling
	refused
	Prompt    json.RawMessage `json:"prompt"`
	MaxTokens json.RawMessage `json:"max_tokens"`
	Logprobs  *int            `json:"logprobs"`
	Echo      bool            `json:"echo"`
	BestOf    *int            `json:"best_of"`
	Suffix    json.RawMessage `json:"suffix"`
}

// defaultMaxTokens is OpenAI's for completions.
const defaultMaxTokens = 16

func (s *Server) completions(w http.ResponseWriter, r *http.Request) (any, error) {
	data, err := s.body(w, r)
	if err != nil {
		return nil, err
	}
	j, form, err := s.completionJob(r, data)
	if err != nil {
		return nil, err
	}
	if j.stream {
		return nil, s.stream(w, r, j, form)
	}
	all, err := s.gather(r.Context(), j)
	if err != nil {
		return nil, err
	}
	return form.whole(all[0]), nil
}

func (s *Server) completionJob(r *http.Request, data []byte) (*job, *textForm, error) {
	var request completionRequest
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
	if request.Logprobs != nil {
		params.Logprobs = *request.Logprobs
		if request.Echo && params.PromptLogprobs < 0 {
			params.PromptLogprobs = *request.Logprobs
		}
	}
	j, err := newJob(r, model, &request.sampling, data, params)
	if err != nil {
		return nil, nil, err
	}
	if j.prompts, err = request.prompts(model.text); err != nil {
		return nil, nil, err
	}
	if len(j.prompts)*j.n > maxAnswers {
		return nil, nil, badField("n", "%d prompts with n=%d are %d answers, at most %d", len(j.prompts), j.n, len(j.prompts)*j.n, maxAnswers)
	}
	limit, err := request.limit()
	if err != nil {
		return nil, nil, err
	}
	form := &textForm{job: j, echo: request.Echo}
	if request.Echo && limit == 0 && !absent(request.MaxTokens) {
		// The prompt's own logprobs are all that is wanted; a step gives one token.
		limit, form.promptOnly = 1, true
	}
	if err := j.fit(limit, "prompt"); err != nil {
		return nil, nil, err
	}
	form.echoed = make([]bool, len(j.prompts)*j.n)
	form.offsets = make([]int, len(j.prompts)*j.n)
	return j, form, j.goOn(r)
}

// maxAnswers bounds what one request makes the head hold.
const maxAnswers = 2048

func (c *completionRequest) check() error {
	if absent(c.Prompt) {
		return badField("prompt", "prompt must be given")
	}
	if c.Logprobs != nil && (*c.Logprobs < 0 || *c.Logprobs > sample.MaxLogprobs) {
		return badField("logprobs", "logprobs must be between 0 and %d, got %d", sample.MaxLogprobs, *c.Logprobs)
	}
	if n, err := c.choices(); err != nil {
		return err
	} else if c.BestOf != nil && *c.BestOf != n {
		return unsupported("best_of", "it must equal n")
	}
	if err := c.refused.check(); err != nil {
		return err
	}
	return refuse([]ask{{"suffix", c.Suffix, []string{`""`}, ""}})
}

// limit reads max_tokens: absent means OpenAI's default, null the rest of the context.
func (c *completionRequest) limit() (int, error) {
	if len(c.MaxTokens) == 0 {
		return defaultMaxTokens, nil
	}
	if absent(c.MaxTokens) {
		return 0, nil
	}
	limit, err := decodeField[int]("max_tokens", c.MaxTokens, "an integer")
	if err != nil {
		return 0, err
	}
	if limit < 0 || (limit == 0 && !c.Echo) {
		return 0, badField("max_tokens", "max_tokens must be at least 1, got %d", limit)
	}
	return limit, nil
}

// prompts reads the prompt's four forms.
func (c *completionRequest) prompts(text *Text) ([]prompt, error) {
	addSpecial := c.AddSpecial == nil || *c.AddSpecial
	const form = "a string, a list of strings, a list of token ids or a list of such lists"
	if c.Prompt[0] == '"' {
		one, err := decodeField[string]("prompt", c.Prompt, form)
		if err != nil {
			return nil, err
		}
		p, err := encode(text, "prompt", one, addSpecial)
		return []prompt{p}, err
	}
	list, err := decodeField[[]json.RawMessage]("prompt", c.Prompt, form)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, badField("prompt", "prompt must not be an empty list")
	}
	if first := list[0][0]; first != '"' && first != '[' {
		p, err := fromIDs(text, "prompt", c.Prompt)
		return []prompt{p}, err
	}
	if len(list) > dispatch.MaxPrompts {
		return nil, badField("prompt", "prompt has %d entries, at most %d", len(list), dispatch.MaxPrompts)
	}
	var all []prompt
	for i, raw := range list {
		field := "prompt[" + strconv.Itoa(i) + "]"
		var p prompt
		var err error
		if raw[0] == '[' {
			p, err = fromIDs(text, field, raw)
		} else {
			var one string
			if one, err = decodeField[string](field, raw, "a string or a list of token ids"); err == nil {
				p, err = encode(text, field, one, addSpecial)
			}
		}
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
}

func encode(text *Text, field, prompted string, addSpecial bool) (prompt, error) {
	tokens, err := text.Tokenizer.Encode(prompted, addSpecial)
	if err != nil {
		return prompt{}, badField(field, "%s: %v", field, err)
	}
	return prompt{text: prompted, tokens: tokens}, nil
}

func fromIDs(text *Text, field string, raw json.RawMessage) (prompt, error) {
	tokens, err := decodeField[[]int32](field, raw, "a string or a list of token ids")
	if err != nil {
		return prompt{}, err
	}
	for i, token := range tokens {
		if token < 0 || int(token) >= text.Vocabulary {
			return prompt{}, badField(field, "%s[%d]: token id %d is out of vocabulary (%d)", field, i, token, text.Vocabulary)
		}
	}
	return prompt{text: text.Tokenizer.Decode(tokens, false), tokens: tokens}, nil
}

// textForm makes OpenAI's completion answers.
type textForm struct {
	job        *job
	echo       bool
	promptOnly bool   // echo with max_tokens=0
	echoed     []bool // by choice, in a stream: the prompt was sent
	offsets    []int  // by choice, in a stream: characters of text so far
}

type textChoice struct {
	Index          int                        `json:"index"`
	Text           string                     `json:"text"`
	Logprobs       *textLogprobs              `json:"logprobs"`
	FinishReason   *wire.FinishReason         `json:"finish_reason"`
	StopReason     any                        `json:"stop_reason"`
	PromptLogprobs []map[string]promptLogprob `json:"prompt_logprobs,omitempty"`
	TokenIDs       []int32                    `json:"token_ids,omitempty"`
	PromptTokenIDs []int32                    `json:"prompt_token_ids,omitempty"`
}

type textCompletion struct {
	ID      string       `json:"id"`
	Object  string       `json:"object"`
	Created int64        `json:"created"`
	Model   string       `json:"model"`
	Choices []textChoice `json:"choices"`
	Usage   *usage       `json:"usage,omitempty"`
}

func (f *textForm) frame(choices []textChoice, used *usage) *textCompletion {
	j := f.job
	return &textCompletion{
		ID: "cmpl-" + j.id.String(), Object: "text_completion", Created: j.created, Model: j.model.Name,
		Choices: choices, Usage: used,
	}
}

func (f *textForm) whole(all []gathered) *textCompletion {
	j := f.job
	var choices []textChoice
	for i := range all {
		for c := range all[i].choices {
			a := &all[i].choices[c]
			if f.promptOnly {
				*a = answer{finish: wire.FinishLength}
			}
			choices = append(choices, f.choice(i, c, a, all[i].prompt))
		}
	}
	return f.frame(choices, countUsage(j, all))
}

func (f *textForm) choice(at, c int, a *answer, prompted []wire.Logprob) textChoice {
	j, p := f.job, f.job.prompts[at]
	choice := textChoice{
		Index: at*j.n + c, Text: a.text, FinishReason: &a.finish, StopReason: a.reason,
		PromptLogprobs: j.promptLogprobs(p.tokens, prompted),
	}
	offset := 0
	if f.echo {
		choice.Text = p.text + a.text
	}
	if j.params.Logprobs >= 0 {
		choice.Logprobs = newTextLogprobs()
		if f.echo {
			offset = choice.Logprobs.addPrompt(j, p.tokens, prompted)
		}
		choice.Logprobs.add(j, offset, a.logprobs)
	}
	if j.tokenIDs {
		choice.TokenIDs, choice.PromptTokenIDs = a.tokens, p.tokens
	}
	return choice
}

func (f *textForm) begin(int) any { return nil }

func (f *textForm) chunk(at int, e *dispatch.Event, used *usage) any {
	j := f.job
	if f.promptOnly {
		e.Text, e.Logprobs = "", nil
	}
	first := !f.echoed[at] && j.resume == nil
	echo := f.echo && first
	logprobs := j.params.Logprobs >= 0 && (len(e.Logprobs) > 0 || echo)
	if e.Text == "" && e.Finish == wire.Unfinished && !logprobs && !echo && !(j.tokenIDs && len(e.Tokens) > 0) {
		return nil
	}
	f.echoed[at] = true
	p := j.prompts[at/j.n]
	choice := textChoice{Index: at, Text: e.Text, StopReason: stopReason(e)}
	if echo {
		choice.Text = p.text + e.Text
	}
	if logprobs {
		choice.Logprobs = newTextLogprobs()
		if echo {
			f.offsets[at] = choice.Logprobs.addPrompt(j, p.tokens, f.promptOf(at, e))
		}
		f.offsets[at] = choice.Logprobs.add(j, f.offsets[at], e.Logprobs)
	} else {
		f.offsets[at] += utf8.RuneCountInString(choice.Text)
	}
	if e.Finish != wire.Unfinished {
		choice.FinishReason = &e.Finish
	}
	if j.tokenIDs {
		choice.TokenIDs = e.Tokens
		if first {
			choice.PromptTokenIDs = p.tokens
		}
	}
	return f.frame([]textChoice{choice}, used)
}

// promptOf gives the prompt's logprobs that came with a choice's first event.
// They come with choice 0; the others of its prompt echo without.
func (f *textForm) promptOf(at int, e *dispatch.Event) []wire.Logprob {
	if e.Prompt != nil {
		return slices.Clone(e.Prompt)
	}
	return nil
}

// A choice's first chunk may echo the prompt.
func (f *textForm) plain(at int, e *dispatch.Event) bool {
	return f.echoed[at] && !f.promptOnly && f.job.plain(e)
}

func (f *textForm) last(used *usage) any { return f.frame([]textChoice{}, used) }

var (
	_ chunker = (*chatForm)(nil)
	_ chunker = (*textForm)(nil)
)
