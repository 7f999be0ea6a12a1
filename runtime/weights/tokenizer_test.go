package weights

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"manta/kernels"
	"manta/runtime/weights/weightstest"
)

// small is a folder that opens; more replaces or adds files.
func small(t testing.TB, more map[string]string) (*Model, error) {
	t.Helper()
	files := map[string]string{
		"config.json":       `{"eos_token_id":2}`,
		"model.safetensors": string(weightstest.Safetensors([]weightstest.Tensor{weightstest.Ramp("a", kernels.F32, 0, 2)})),
	}
	for name, content := range more {
		files[name] = content
	}
	m, err := openBytes(t, files)
	if err == nil {
		t.Cleanup(func() {
			if err := m.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	return m, err
}

// End tokens: generation_config.json, or else config.json, and the tokenizer's.
func TestEndTokens(t *testing.T) {
	added := `{"version":"1.0","added_tokens":[{"id":9,"content":"<|eot|>"}],"model":{"vocab":{`
	for _, c := range []struct {
		name  string
		files map[string]string
		want  []int32
	}{
		{"config", nil, []int32{2}},
		{"text config", map[string]string{"config.json": `{"text_config":{"eos_token_id":[4]}}`}, []int32{4}},
		{"none", map[string]string{"config.json": `{"eos_token_id":null}`}, nil},
		{"generation config", map[string]string{"generation_config.json": `{"eos_token_id":[7,3]}`}, []int32{3, 7}},
		{"generation config without", map[string]string{"generation_config.json": `{}`}, []int32{2}},
		{"tokenizer's by its list", map[string]string{"tokenizer_config.json": `{"eos_token":"<x>","added_tokens_decoder":{"5":{"content":"<x>"}}}`}, []int32{2, 5}},
		{"tokenizer's as object", map[string]string{"tokenizer_config.json": `{"eos_token":{"content":"<x>"},"added_tokens_decoder":{"5":{"content":"<x>"}}}`}, []int32{2, 5}},
		// The vocabulary behind added_tokens is broken on purpose: it is not read.
		{"tokenizer's in tokenizer.json", map[string]string{"tokenizer_config.json": `{"eos_token":"<|eot|>"}`, "tokenizer.json": added}, []int32{2, 9}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, err := small(t, c.files)
			if err != nil {
				t.Fatal(err)
			}
			if got := m.EndTokens(); !slices.Equal(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
	if _, err := small(t, map[string]string{"generation_config.json": `{"eos_token_id":"x"}`}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a broken generation_config.json: %v", err)
	}
}

// Advice that is not given stays nil: 0 and absent differ.
func TestGeneration(t *testing.T) {
	m, err := small(t, map[string]string{"generation_config.json": `{"temperature":0,"top_k":20,"repetition_penalty":1.05,"do_sample":true}`})
	if err != nil {
		t.Fatal(err)
	}
	g := m.Generation()
	if g.Temperature == nil || *g.Temperature != 0 || g.TopK == nil || *g.TopK != 20 || g.RepetitionPenalty == nil || *g.RepetitionPenalty != 1.05 || g.TopP != nil || g.MaxNewTokens != nil {
		t.Errorf("got %+v", g)
	}
}

// A template is found in any of its places, the .jinja file first.
func TestChatTemplate(t *testing.T) {
	inConfig := map[string]string{"tokenizer_config.json": `{"chat_template":"config"}`}
	for _, c := range []struct {
		name  string
		files map[string]string
		want  string
		tools string
	}{
		{"none", nil, "", ""},
		{"null", map[string]string{"tokenizer_config.json": `{"chat_template":null}`}, "", ""},
		{"text", inConfig, "config", ""},
		{"list", map[string]string{"tokenizer_config.json": `{"chat_template":[{"name":"default","template":"d"},{"name":"tool_use","template":"t"}]}`}, "d", "t"},
		{"file first", map[string]string{"tokenizer_config.json": `{"chat_template":"config"}`, "chat_template.jinja": "file"}, "file", ""},
		{"processor's", map[string]string{"chat_template.json": `{"chat_template":"json"}`}, "json", ""},
		{"more", map[string]string{"chat_template.jinja": "file", "additional_chat_templates/tool_use.jinja": "t"}, "file", "t"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, err := small(t, c.files)
			if err != nil {
				t.Fatal(err)
			}
			got, ok := m.ChatTemplate()
			if got != c.want || ok != (c.want != "") || m.ChatTemplates()["tool_use"] != c.tools {
				t.Errorf("got %q, %v", got, m.ChatTemplates())
			}
		})
	}
}

// The tokenizer's files are handed on as they are; what is missing is named.
func TestTokenizer(t *testing.T) {
	m, err := small(t, map[string]string{"tokenizer.json": "{}", "tokenizer_config.json": `{"a":1}`})
	if err != nil {
		t.Fatal(err)
	}
	if s, err := m.Tokenizer(); err != nil || string(s.JSON) != "{}" || string(s.Config) != `{"a":1}` || s.GGUF != nil {
		t.Errorf("got %+v, %v", s, err)
	}
	for _, c := range []struct {
		files map[string]string
		is    error
		says  string
	}{
		{nil, ErrNotFound, "tokenizer.json"},
		{map[string]string{"tokenizer.model": ""}, ErrNotFound, "tokenizer.model alone is not read"},
		{map[string]string{"tokenizer.json": "{}", "tokenizer_config.json": "{"}, ErrCorrupt, "tokenizer_config.json"},
	} {
		m, err := small(t, c.files)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.Tokenizer(); !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%v: got %v", c.files, err)
		}
	}
}

// Any config.json, generation_config.json and tokenizer_config.json opens or is an error.
func FuzzConfig(f *testing.F) {
	f.Add(`{"eos_token_id":[1,2],"quantization_config":null}`, `{"eos_token_id":3}`, `{"eos_token":"x","chat_template":[{"name":"a"}]}`)
	f.Add(`{"quantization_config":{"quant_method":"awq"}}`, `{"temperature":1e309}`, `{"eos_token":{"content":"x"},"added_tokens_decoder":{"1":{"content":"x"}}}`)
	weights := string(weightstest.Safetensors([]weightstest.Tensor{weightstest.Ramp("a", kernels.F32, 0, 2)}))
	f.Fuzz(func(t *testing.T, config, generation, tokenizer string) {
		m, err := openBytes(t, map[string]string{"config.json": config, "generation_config.json": generation,
			"tokenizer_config.json": tokenizer, "model.safetensors": weights})
		if err != nil {
			if m != nil {
				t.Error("a model and an error")
			}
			return
		}
		for _, id := range m.EndTokens() {
			if id < 0 {
				t.Errorf("end token %d", id)
			}
		}
		m.ChatTemplates()
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
}
