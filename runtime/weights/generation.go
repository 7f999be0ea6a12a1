package weights

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
)

// Generation is what the model's makers advise (generation_config.json), the
// fields that vLLM's --generation-config auto takes as defaults. nil: no advice.
type Generation struct {
	Temperature       *float64 `json:"temperature"`
	TopP              *float64 `json:"top_p"`
	TopK              *int     `json:"top_k"`
	MinP              *float64 `json:"min_p"`
	RepetitionPenalty *float64 `json:"repetition_penalty"`
	MaxNewTokens      *int     `json:"max_new_tokens"`
}

type generationFile struct {
	Generation
	EOS tokenIDs `json:"eos_token_id"`
}

// tokenIDs is one id, a list of ids, or null.
type tokenIDs []int32

func (t *tokenIDs) UnmarshalJSON(data []byte) error {
	var one *int32
	if json.Unmarshal(data, &one) == nil {
		if one != nil {
			*t = tokenIDs{*one}
		}
		return nil
	}
	var list []int32
	if err := json.Unmarshal(data, &list); err != nil {
		return fmt.Errorf("neither a token id nor a list of them: %s", bytes.TrimSpace(data[:min(len(data), 40)]))
	}
	*t = list
	return nil
}

// openGeneration reads generation_config.json, and the end tokens of config.json
// for folders without it.
func (m *Model) openGeneration() error {
	data, err := readFile(m.folder, "generation_config.json", maxConfig)
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return err
	default:
		var g generationFile
		if err := json.Unmarshal(data, &g); err != nil {
			return fmt.Errorf("generation_config.json: %v: %w", err, ErrCorrupt)
		}
		m.generation, m.ends = g.Generation, g.EOS
	}
	if len(m.ends) == 0 {
		var c struct {
			EOS  tokenIDs `json:"eos_token_id"`
			Text struct {
				EOS tokenIDs `json:"eos_token_id"`
			} `json:"text_config"`
		}
		if err := json.Unmarshal(m.config, &c); err != nil {
			return fmt.Errorf("config.json: %v: %w", err, ErrCorrupt)
		}
		m.ends = append(c.EOS, c.Text.EOS...)
	}
	if id, ok := m.tokenizerEnd(); ok {
		m.ends = append(m.ends, id)
	}
	m.ends = distinct(m.ends)
	return nil
}

// Generation gives the makers' advice; GGUF files carry none.
func (m *Model) Generation() Generation { return m.generation }

// EndTokens lists the tokens that end an answer, ascending: those of
// generation_config.json, or else of config.json, and the tokenizer's own (a chat
// model's config often names only the base model's); for GGUF the eos, eot and
// eom ids and, as llama.cpp does, control tokens that are known to end a turn.
func (m *Model) EndTokens() []int32 { return slices.Clone(m.ends) }

func distinct(ids []int32) []int32 {
	ids = slices.DeleteFunc(slices.Clone(ids), func(id int32) bool { return id < 0 })
	slices.Sort(ids)
	return slices.Compact(ids)
}

// tokenizerEnd finds the id of tokenizer_config.json's eos_token.
func (m *Model) tokenizerEnd() (int32, bool) {
	data, err := readFile(m.folder, "tokenizer_config.json", maxConfig)
	if err != nil {
		return 0, false // Tokenizer reports what is wrong with it
	}
	var c struct {
		EOS   addedToken                 `json:"eos_token"`
		Added map[string]json.RawMessage `json:"added_tokens_decoder"`
	}
	if json.Unmarshal(data, &c) != nil || c.EOS.Content == "" {
		return 0, false
	}
	for key, raw := range c.Added {
		var t addedToken
		var id int32
		if json.Unmarshal(raw, &t) == nil && t.Content == c.EOS.Content {
			if _, err := fmt.Sscanf(key, "%d", &id); err == nil {
				return id, true
			}
		}
	}
	return addedID(filepath.Join(m.folder, "tokenizer.json"), c.EOS.Content)
}

// addedToken is a token as text, or as an object with its content.
type addedToken struct {
	ID      int32  `json:"id"`
	Content string `json:"content"`
}

func (t *addedToken) UnmarshalJSON(data []byte) error {
	type plain addedToken
	if json.Unmarshal(data, &t.Content) == nil {
		return nil
	}
	return json.Unmarshal(data, (*plain)(t))
}

// addedID looks for text among tokenizer.json's added_tokens. They stand before
// the vocabulary, so the megabytes of that are not read.
func addedID(path, text string) (int32, bool) {
	f, err := os.Open(path)
	if err != nil {
		return 0, false
	}
	defer f.Close()
	d := json.NewDecoder(io.LimitReader(f, maxTokenizer))
	if open, err := d.Token(); err != nil || open != json.Delim('{') {
		return 0, false
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return 0, false
		}
		if key != "added_tokens" {
			var skipped json.RawMessage
			if d.Decode(&skipped) != nil {
				return 0, false
			}
			continue
		}
		var list []addedToken
		if d.Decode(&list) != nil {
			return 0, false
		}
		for _, t := range list {
			if t.Content == text {
				return t.ID, true
			}
		}
		return 0, false
	}
	return 0, false
}
