package jobs

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"manta/head/state"
)

// An entrypoint is a manta command with that command's flags. Whatever else it is,
// and every character that a shell would look at, is refused by name.
func TestParseEntrypoint(t *testing.T) {
	for text, want := range map[string]string{
		"manta serve MODEL": `{"model":"MODEL"}`,
		"manta  serve hf:org/x@main --tensor-parallel-size 2 --max-model-len=4096": `{"max_model_len":4096,"model":"hf:org/x@main","tensor_parallel_size":2}`,
		"manta serve m --served-model-name a,b --no-enable-prefix-caching":         `{"aliases":["b"],"enable_prefix_caching":false,"model":"m","name":"a"}`,
		"manta serve m --gpu-memory-utilization 0.5 --replicas 3 --dtype int8":     `{"dtype":"int8","gpu_memory_utilization":0.5,"model":"m","replicas":3}`,
		"manta serve m --replicas auto":                                            `{"model":"m","replicas":"auto"}`,
	} {
		got, err := ParseEntrypoint(text)
		body, _ := json.Marshal(got.Serve)
		if err != nil || got.Kind != state.Serve || string(body) != want {
			t.Errorf("%s: %s %v, want %s", text, body, err, want)
		}
	}
	got, err := ParseEntrypoint("manta batch --input file-X --output o.jsonl --endpoint /v1/completions --completion-window 2h")
	if b := got.Batch; err != nil || got.Kind != state.Batch || b.Input != "file-X" || b.Output != "o.jsonl" || b.Endpoint != "/v1/completions" || b.Window.Hours() != 2 {
		t.Errorf("%+v, %v", got, err)
	}
	for text, says := range map[string]string{
		"": "must be given", "   ": "must be given", "manta": "alone", "python x.py": `"python"`, "/bin/manta serve m": `"/bin/manta"`,
		"manta up m": "manta up", "manta serve": "one MODEL", "manta serve a b": "one MODEL", "manta serve m --frob": "frob",
		"manta serve m --max-model-len x": "max-model-len", "manta serve m --replicas": "replicas", "manta batch": "--input",
		"manta batch --input a b": "flags alone", "manta batch --input a --completion-window -1h": "--completion-window",
		"manta batch --input a --endpoint /v1/embeddings": "--endpoint", "manta serve m; id": "';'", "manta serve m && id": "'&'",
		"manta serve $(id)": "'$'", "manta serve `id`": "'`'", "manta serve m | x": "'|'", "manta serve m > f": "'>'", "manta serve m < f": "'<'",
		"manta serve 'a b'": `'\''`, `manta serve "a"`: `'"'`, `manta serve a\ b`: `'\\'`, "manta serve *": "'*'", "manta serve ~/m": "'~'",
		"manta serve m\nid": `'\n'`, "manta serve {a,b}": "'{'", "manta serve m # x": "'#'", "manta serve é": "'é'", "manta serve m!": "'!'",
		"manta serve " + strings.Repeat("m", 5000): "bytes",
	} {
		if _, err := ParseEntrypoint(text); !errors.Is(err, ErrEntrypoint) || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want it to name %s", text, err, says)
		}
	}
}

// No entrypoint makes the parser fail otherwise than by an error, and what it takes
// has no character that means anything to a shell.
func FuzzParseEntrypoint(f *testing.F) {
	f.Add("manta serve MODEL --tensor-parallel-size 2")
	f.Add("manta batch --input file-1 --completion-window 1h")
	f.Add("manta serve m --replicas=auto --served-model-name a,b;c")
	f.Fuzz(func(t *testing.T, text string) {
		got, err := ParseEntrypoint(text)
		if err != nil {
			return
		}
		if strings.ContainsAny(text, ";&|<>$`'\"\\*?[]{}()!#~^\n\t\x00") {
			t.Errorf("%q was taken", text)
		}
		if _, err := json.Marshal(got.Serve); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	})
}

// A line that is no request is named with what is wrong, and never run.
func FuzzParseLine(f *testing.F) {
	f.Add([]byte(`{"custom_id":"a","method":"POST","url":"/v1/completions","body":{"prompt":"x"}}`))
	f.Add([]byte(`{"custom_id":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := parseLine(data, 0, "")
		if err == nil && (l.CustomID == "" || l.Method != "POST" || !json.Valid(l.Body)) {
			t.Errorf("%q was taken as %+v", data, l)
		}
	})
}
