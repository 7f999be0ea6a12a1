//go:build e2e && linux

package scale

import (
	"path/filepath"
	"testing"

	"manta/runtime/weights/weightstest"
)

// vocabulary is small: what the tokenizer costs is not asked here.
const vocabulary = 4096

// llama8B writes what a model of Llama 3.1 8B's shapes needs to be served with
// made-up weights: its configuration, and a tokenizer of single bytes.
func llama8B(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	type object = map[string]any
	config := object{
		"architectures": []string{"LlamaForCausalLM"}, "model_type": "llama", "hidden_act": "silu", "hidden_size": 4096,
		"intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 32, "head_dim": 128,
		"max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "vocab_size": vocabulary,
		"tie_word_embeddings": false, "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2,
	}
	err := weightstest.WriteJSON(filepath.Join(dir, "config.json"), config)
	if err == nil {
		err = weightstest.WriteByteTokenizer(dir, vocabulary)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}
