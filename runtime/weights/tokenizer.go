package weights

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"manta/runtime/token"
)

// Tokenizer gives what runtime/token builds the model's tokenizer from.
func (m *Model) Tokenizer() (token.Source, error) {
	if m.format == GGUF {
		v, err := m.vocabulary()
		if err != nil {
			return token.Source{}, fmt.Errorf("weights: %s: %w", m.path, err)
		}
		return token.Source{GGUF: v}, nil
	}
	data, err := readFile(m.folder, "tokenizer.json", maxTokenizer)
	if errors.Is(err, os.ErrNotExist) {
		hint := ""
		if _, err := os.Stat(filepath.Join(m.folder, "tokenizer.model")); err == nil {
			hint = " (tokenizer.model alone is not read: save the tokenizer with transformers, which writes tokenizer.json)"
		}
		return token.Source{}, fmt.Errorf("weights: %s: tokenizer.json: %w%s", m.path, ErrNotFound, hint)
	}
	if err != nil {
		return token.Source{}, fmt.Errorf("weights: %s: %w", m.path, err)
	}
	config, err := readFile(m.folder, "tokenizer_config.json", maxConfig)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return token.Source{}, fmt.Errorf("weights: %s: %w", m.path, err)
	}
	if config != nil && !json.Valid(config) {
		return token.Source{}, fmt.Errorf("weights: %s: tokenizer_config.json: not JSON: %w", m.path, ErrCorrupt)
	}
	return token.Source{JSON: data, Config: config}, nil
}

// vocabulary reads GGUF's tokenizer.ggml.* keys, with llama.cpp's defaults
// (llama-vocab.cpp) where they are missing.
func (m *Model) vocabulary() (*token.Vocabulary, error) {
	const prefix = "tokenizer.ggml."
	v := &token.Vocabulary{BOS: -1, EOS: -1, UNK: -1, PAD: -1}
	var ok bool
	if v.Model, ok = m.meta.String(prefix + "model"); !ok {
		return nil, fmt.Errorf("%smodel: %w: the file has no tokenizer", prefix, ErrNotFound)
	}
	if v.Tokens, ok = m.meta.Strings(prefix + "tokens"); !ok || len(v.Tokens) == 0 {
		return nil, fmt.Errorf("%stokens: no list of strings: %w", prefix, ErrCorrupt)
	}
	v.Pre, _ = m.meta.String(prefix + "pre")
	v.Merges, _ = m.meta.Strings(prefix + "merges")
	if scores, ok := m.meta.Floats(prefix + "scores"); ok {
		v.Scores = make([]float32, len(scores))
		for i, s := range scores {
			v.Scores[i] = float32(s)
		}
	}
	if types, ok := m.meta.Ints(prefix + "token_type"); ok {
		v.Types = make([]int32, len(types))
		for i, t := range types {
			v.Types[i] = int32(t)
		}
	}
	for _, list := range []struct {
		key string
		n   int
	}{{"scores", len(v.Scores)}, {"token_type", len(v.Types)}} {
		if list.n != 0 && list.n != len(v.Tokens) {
			return nil, fmt.Errorf("%s%s has %d entries for %d tokens: %w", prefix, list.key, list.n, len(v.Tokens), ErrCorrupt)
		}
	}
	switch v.Model {
	case "llama":
		v.BOS, v.EOS, v.UNK = 1, 2, 0
		v.AddBOS, v.AddSpacePrefix = true, true
	case "gpt2":
		switch v.Pre {
		case "llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral":
			v.AddBOS = true
		}
	}
	for _, flag := range []struct {
		key string
		to  *bool
	}{{"add_bos_token", &v.AddBOS}, {"add_eos_token", &v.AddEOS}, {"add_space_prefix", &v.AddSpacePrefix}} {
		if b, ok := m.meta.Bool(prefix + flag.key); ok {
			*flag.to = b
		}
	}
	for _, id := range []struct {
		key string
		to  *int32
	}{{"bos", &v.BOS}, {"eos", &v.EOS}, {"unknown", &v.UNK}, {"padding", &v.PAD}} {
		if n, ok, err := m.tokenID(id.key, len(v.Tokens)); err != nil {
			return nil, err
		} else if ok {
			*id.to = n
		}
		if int(*id.to) >= len(v.Tokens) { // a default past a tiny vocabulary
			*id.to = -1
		}
	}
	return v, nil
}

// tokenID reads tokenizer.ggml.NAME_token_id. Ids past the vocabulary are refused;
// 2^32-1 is how some writers say «none».
func (m *Model) tokenID(name string, vocabulary int) (int32, bool, error) {
	key := "tokenizer.ggml." + name + "_token_id"
	id, ok := m.meta.Uint(key)
	if !ok || id == math.MaxUint32 {
		return -1, false, nil
	}
	if id >= uint64(vocabulary) || id > math.MaxInt32 {
		return -1, false, fmt.Errorf("%s is %d of %d tokens: %w", key, id, vocabulary, ErrCorrupt)
	}
	return int32(id), true, nil
}

// turnEnds are control tokens that end a turn in the templates that use them
// (llama.cpp, llama_vocab::impl::load, «maintain a list of tokens that cause
// end-of-generation»).
var turnEnds = []string{"<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>",
	"<|eom_id|>", "<EOT>", "_<EOT>", "<|return|>", "<｜end▁of▁sentence｜>", "<end_of_utterance>"}

// ggufControl is llama.cpp's token type of control tokens.
const ggufControl = 3

func (m *Model) ggufEnds() error {
	tokens, ok := m.meta.Strings("tokenizer.ggml.tokens")
	if !ok {
		return nil // the file has no tokenizer: Tokenizer says so
	}
	if v, err := m.vocabulary(); err != nil {
		return err
	} else if v.EOS >= 0 {
		m.ends = append(m.ends, v.EOS)
	}
	for _, name := range []string{"eot", "eom"} {
		if id, ok, err := m.tokenID(name, len(tokens)); err != nil {
			return err
		} else if ok {
			m.ends = append(m.ends, id)
		}
	}
	types, _ := m.meta.Ints("tokenizer.ggml.token_type")
	for id, t := range types {
		if t == ggufControl && id < len(tokens) && slices.Contains(turnEnds, tokens[id]) {
			m.ends = append(m.ends, int32(id))
		}
	}
	m.ends = distinct(m.ends)
	return nil
}

// ChatTemplate gives the model's default template.
func (m *Model) ChatTemplate() (string, bool) {
	t, ok := m.ChatTemplates()["default"]
	return t, ok
}

// ChatTemplates gives all templates by name: «default», and where a model has
// them others, such as «tool_use». chat_template.jinja is preferred to
// tokenizer_config.json, as transformers does.
func (m *Model) ChatTemplates() map[string]string {
	templates := map[string]string{}
	if m.format == GGUF {
		const key = "tokenizer.chat_template"
		for _, k := range m.meta.Keys() {
			if name, ok := strings.CutPrefix(k, key); ok && (name == "" || name[0] == '.') {
				if t, ok := m.meta.String(k); ok {
					templates[templateName(strings.TrimPrefix(name, "."))] = t
				}
			}
		}
		return templates
	}
	for _, file := range []string{"chat_template.json", "tokenizer_config.json"} {
		if data, err := readFile(m.folder, file, maxConfig); err == nil {
			templatesOf(data, templates)
		}
	}
	if data, err := readFile(m.folder, "chat_template.jinja", maxConfig); err == nil {
		templates["default"] = string(data)
	}
	const more = "additional_chat_templates"
	entries, _ := os.ReadDir(filepath.Join(m.folder, more)) // most models have none
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".jinja"); ok {
			if data, err := readFile(m.folder, filepath.Join(more, e.Name()), maxConfig); err == nil {
				templates[name] = string(data)
			}
		}
	}
	return templates
}

func templateName(name string) string {
	if name == "" {
		return "default"
	}
	return name
}

// templatesOf reads the key chat_template: a text, or a list of named ones.
func templatesOf(data []byte, into map[string]string) {
	var c struct {
		Template json.RawMessage `json:"chat_template"`
	}
	if json.Unmarshal(data, &c) != nil || c.Template == nil {
		return
	}
	var text string
	var list []struct{ Name, Template string }
	if json.Unmarshal(c.Template, &text) == nil && text != "" {
		into["default"] = text
	} else if json.Unmarshal(c.Template, &list) == nil {
		for _, t := range list {
			into[templateName(t.Name)] = t.Template
		}
	}
}
