package chat

import (
	"encoding/json"
	"testing"

	"manta/internal/published"
)

// publishedTemplate gives the template and the special tokens of a published model.
func publishedTemplate(t *testing.T, name string) (*Template, map[string]string) {
	t.Helper()
	raw, _ := published.Tokenizer(t, name, "tokenizer_config.json")
	var config map[string]json.RawMessage
	if err := json.Unmarshal(raw, &config); err != nil {
		t.Fatal(err)
	}
	var source string
	if err := json.Unmarshal(config["chat_template"], &source); err != nil {
		t.Fatal(err)
	}
	template, err := Parse(source)
	if err != nil {
		t.Fatal(err)
	}
	special := map[string]string{}
	for _, token := range []string{"bos_token", "eos_token"} {
		var text string
		var added struct{ Content string }
		if json.Unmarshal(config[token], &text) != nil && json.Unmarshal(config[token], &added) == nil {
			text = added.Content
		}
		special[token] = text
	}
	return template, special
}
