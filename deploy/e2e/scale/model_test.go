//go:build e2e && linux

package scale

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

// vocabulary is small: what the tokenizer costs is not asked here.
const vocabulary = 4096

// llama8B writes what a model of Llama 3.1 8B's shapes needs to be served with
// made-up weights: its configuration, and a tokenizer of single bytes.
func llama8B(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	write := func(name string, value any) {
		data, err := json.Marshal(value)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	type object = map[string]any
	write("config.json", object{
		"architectures": []string{"LlamaForCausalLM"}, "model_type": "llama", "hidden_act": "silu", "hidden_size": 4096,
		"intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 32, "head_dim": 128,
		"max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "vocab_size": vocabulary,
		"tie_word_embeddings": false, "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2,
	})
	ids := map[string]int{}
	next := rune(256)
	for b := range 256 { // GPT-2's alphabet of bytes: Radford et al. 2019, §2.2
		r := rune(b)
		if b < '!' || b > '~' && b < 0xa1 || b == 0xad {
			r, next = next, next+1
		}
		ids[string(r)] = b
	}
	for id := 256; id < vocabulary; id++ {
		ids["w"+strconv.Itoa(id)] = id
	}
	write("tokenizer.json", object{
		"version": "1.0", "added_tokens": []any{}, "normalizer": nil, "post_processor": nil,
		"pre_tokenizer": object{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
		"decoder":       object{"type": "ByteLevel"},
		"model":         object{"type": "BPE", "vocab": ids, "merges": []string{}},
	})
	return dir
}
