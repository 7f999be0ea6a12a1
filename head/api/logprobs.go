package api

import (
	"fmt"
	"strconv"
	"unicode/utf8"

	"manta/node/wire"
)

// least stands for minus infinity, which JSON lacks, as in vLLM.
const least = -9999

func finite(logprob float32) float64 { return max(float64(logprob), least) }

// tokenName is how logprobs show a token.
func (j *job) tokenName(token int32) string {
	if j.tokensAsID {
		return fmt.Sprintf("token_id:%d", token)
	}
	return j.model.text.Tokenizer.Token(token)
}

// chatLogprobs is OpenAI's form for chat.
type chatLogprobs struct {
	Content []chatLogprob `json:"content"`
}

type chatLogprob struct {
	Token   string        `json:"token"`
	Logprob float64       `json:"logprob"`
	Bytes   []int         `json:"bytes"`
	Top     []chatTopProb `json:"top_logprobs"`
}

type chatTopProb struct {
	Token   string  `json:"token"`
	Logprob float64 `json:"logprob"`
	Bytes   []int   `json:"bytes"`
}

func (j *job) chatLogprobs(list []wire.Logprob) *chatLogprobs {
	content := make([]chatLogprob, 0, len(list))
	for _, l := range list {
		entry := chatLogprob{
			Token: j.tokenName(l.Token), Logprob: finite(l.Logprob), Bytes: j.tokenBytes(l.Token), Top: []chatTopProb{},
		}
		for _, top := range l.Top {
			entry.Top = append(entry.Top, chatTopProb{
				Token: j.tokenName(top.Token), Logprob: finite(top.Logprob), Bytes: j.tokenBytes(top.Token),
			})
		}
		content = append(content, entry)
	}
	return &chatLogprobs{Content: content}
}

// tokenBytes as numbers: encoding/json would write []byte as base64.
func (j *job) tokenBytes(token int32) []int {
	bytes := []int{}
	for _, b := range j.model.text.Tokenizer.Bytes(token) {
		bytes = append(bytes, int(b))
	}
	return bytes
}

// textLogprobs is OpenAI's form for completions. The first token of a prompt has
// no logprob.
type textLogprobs struct {
	TextOffset    []int                `json:"text_offset"`
	TokenLogprobs []*float64           `json:"token_logprobs"`
	Tokens        []string             `json:"tokens"`
	TopLogprobs   []map[string]float64 `json:"top_logprobs"`
}

// add appends entries; offset is the length of the text before them in
// characters, and what it is after them is given back.
func (t *textLogprobs) add(j *job, offset int, list []wire.Logprob) int {
	for _, l := range list {
		name, logprob := j.tokenName(l.Token), finite(l.Logprob)
		top := map[string]float64{name: logprob}
		for _, other := range l.Top {
			top[j.tokenName(other.Token)] = finite(other.Logprob)
		}
		t.TextOffset = append(t.TextOffset, offset)
		t.TokenLogprobs = append(t.TokenLogprobs, &logprob)
		t.Tokens = append(t.Tokens, name)
		t.TopLogprobs = append(t.TopLogprobs, top)
		offset += utf8.RuneCountInString(name)
	}
	return offset
}

// addFirst appends a prompt's first token, which nothing predicts.
func (t *textLogprobs) addFirst(j *job, token int32) int {
	name := j.tokenName(token)
	t.TextOffset = append(t.TextOffset, 0)
	t.TokenLogprobs = append(t.TokenLogprobs, nil)
	t.Tokens = append(t.Tokens, name)
	t.TopLogprobs = append(t.TopLogprobs, nil)
	return utf8.RuneCountInString(name)
}

// addPrompt appends an echoed prompt.
func (t *textLogprobs) addPrompt(j *job, tokens []int32, list []wire.Logprob) int {
	offset := t.addFirst(j, tokens[0])
	return t.add(j, offset, afterFirst(tokens, list))
}

// afterFirst gives the logprobs of a prompt's tokens but the first, whether or
// not the driver sent an entry for that one.
func afterFirst(tokens []int32, list []wire.Logprob) []wire.Logprob {
	if len(list) == len(tokens) && len(list) > 0 {
		return list[1:]
	}
	return list
}

func newTextLogprobs() *textLogprobs {
	return &textLogprobs{TextOffset: []int{}, TokenLogprobs: []*float64{}, Tokens: []string{}, TopLogprobs: []map[string]float64{}}
}

// promptLogprob is an entry of vLLM's prompt_logprobs.
type promptLogprob struct {
	Logprob float64 `json:"logprob"`
	Rank    *int32  `json:"rank"`
	Decoded string  `json:"decoded_token"`
}

// promptLogprobs is vLLM's form: for each prompt token, by id; the first is null.
func (j *job) promptLogprobs(tokens []int32, list []wire.Logprob) []map[string]promptLogprob {
	if j.params.PromptLogprobs < 0 || list == nil {
		return nil
	}
	all := []map[string]promptLogprob{nil}
	for _, l := range afterFirst(tokens, list) {
		entry := map[string]promptLogprob{}
		for i, top := range l.Top {
			rank := int32(i + 1)
			entry[strconv.Itoa(int(top.Token))] = promptLogprob{
				Logprob: finite(top.Logprob), Rank: &rank, Decoded: j.model.text.Tokenizer.Token(top.Token),
			}
		}
		rank := l.Rank
		entry[strconv.Itoa(int(l.Token))] = promptLogprob{
			Logprob: finite(l.Logprob), Rank: &rank, Decoded: j.model.text.Tokenizer.Token(l.Token),
		}
		all = append(all, entry)
	}
	return all
}
