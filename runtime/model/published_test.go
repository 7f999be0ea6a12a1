package model

import (
	"errors"
	"strings"
	"testing"

	"manta/kernels"
)

// published holds config.json files as their owners publish them (long factors
// cut short): the keys that real models carry must be honoured or known to be
// without effect.
var published = map[string]string{
	"meta-llama/Llama-2-7b-hf": `{"_name_or_path": "meta-llama/Llama-2-7b-hf", "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
		"hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 11008, "max_position_embeddings": 4096,
		"model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32, "pretraining_tp": 1,
		"rms_norm_eps": 1e-05, "rope_scaling": null, "tie_word_embeddings": false, "torch_dtype": "float16", "transformers_version": "4.31.0.dev0",
		"use_cache": true, "vocab_size": 32000}`,
	"meta-llama/Llama-3.1-8B-Instruct": `{"architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 128000,
		"eos_token_id": [128001, 128008, 128009], "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
		"max_position_embeddings": 131072, "mlp_bias": false, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
		"num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0,
		"high_freq_factor": 4.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "rope_theta": 500000.0,
		"tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.42.3", "use_cache": true, "vocab_size": 128256}`,
	"mistralai/Mistral-7B-v0.1": `{"architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096,
		"initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 32,
		"num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096,
		"tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.34.0.dev0", "use_cache": true, "vocab_size": 32000}`,
	"mistralai/Mixtral-8x7B-v0.1": `{"architectures": ["MixtralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
		"hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mixtral",
		"num_attention_heads": 32, "num_experts_per_tok": 2, "num_hidden_layers": 32, "num_key_value_heads": 8, "num_local_experts": 8,
		"output_router_logits": false, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02, "sliding_window": null,
		"tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.36.0.dev0", "use_cache": true, "vocab_size": 32000}`,
	"Qwen/Qwen2.5-7B-Instruct": `{"architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645,
		"hidden_act": "silu", "hidden_size": 3584, "initializer_range": 0.02, "intermediate_size": 18944, "max_position_embeddings": 32768,
		"max_window_layers": 28, "model_type": "qwen2", "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4,
		"rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 131072, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
		"transformers_version": "4.43.1", "use_cache": true, "use_sliding_window": false, "vocab_size": 152064,
		"rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}}`,
	"Qwen/Qwen3-0.6B": `{"architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645,
		"head_dim": 128, "hidden_act": "silu", "hidden_size": 1024, "initializer_range": 0.02, "intermediate_size": 3072, "max_position_embeddings": 40960,
		"max_window_layers": 28, "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
		"rope_scaling": null, "rope_theta": 1000000, "sliding_window": null, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
		"transformers_version": "4.51.0", "use_cache": true, "use_sliding_window": false, "vocab_size": 151936}`,
	"Qwen/Qwen3-30B-A3B": `{"architectures": ["Qwen3MoeForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 151643,
		"decoder_sparse_step": 1, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
		"intermediate_size": 6144, "max_position_embeddings": 40960, "max_window_layers": 48, "mlp_only_layers": [], "model_type": "qwen3_moe",
		"moe_intermediate_size": 768, "norm_topk_prob": true, "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8,
		"num_hidden_layers": 48, "num_key_value_heads": 4, "output_router_logits": false, "rms_norm_eps": 1e-06, "rope_scaling": null,
		"rope_theta": 1000000.0, "router_aux_loss_coef": 0.001, "sliding_window": null, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
		"transformers_version": "4.51.0", "use_cache": true, "use_sliding_window": false, "vocab_size": 151936}`,
	"openai-community/gpt2": `{"activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": 50256,
		"embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024,
		"n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "resid_pdrop": 0.1, "summary_activation": null,
		"summary_first_dropout": 0.1, "summary_proj_to_labels": true, "summary_type": "cls_index", "summary_use_proj": true,
		"task_specific_params": {"text-generation": {"do_sample": true, "max_length": 50}}, "vocab_size": 50257}`,
	"EleutherAI/pythia-160m": `{"architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "gelu", "hidden_size": 768,
		"initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-05, "max_position_embeddings": 2048, "model_type": "gpt_neox",
		"num_attention_heads": 12, "num_hidden_layers": 12, "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": false,
		"torch_dtype": "float16", "transformers_version": "4.24.0", "use_cache": true, "use_parallel_residual": true, "vocab_size": 50304}`,
	"microsoft/Phi-3-mini-4k-instruct": `{"_name_or_path": "Phi-3-mini-4k-instruct", "architectures": ["Phi3ForCausalLM"], "attention_bias": false,
		"attention_dropout": 0.0, "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"},
		"bos_token_id": 1, "embd_pdrop": 0.0, "eos_token_id": 32000, "hidden_act": "silu", "hidden_size": 3072, "initializer_range": 0.02,
		"intermediate_size": 8192, "max_position_embeddings": 4096, "model_type": "phi3", "num_attention_heads": 32, "num_hidden_layers": 32,
		"num_key_value_heads": 32, "original_max_position_embeddings": 4096, "pad_token_id": 32000, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05,
		"rope_scaling": null, "rope_theta": 10000.0, "sliding_window": 2047, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
		"transformers_version": "4.40.2", "use_cache": true, "vocab_size": 32064}`,
	"microsoft/Phi-4-mini-instruct": `{"architectures": ["Phi3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 199999,
		"embd_pdrop": 0.0, "eos_token_id": 199999, "full_attn_mod": 1, "hidden_act": "silu", "hidden_size": 64, "initializer_range": 0.02,
		"intermediate_size": 8192, "interpolate_factor": 1, "lm_head_bias": false, "max_position_embeddings": 131072, "mlp_bias": false,
		"model_type": "phi3", "num_attention_heads": 4, "num_hidden_layers": 32, "num_key_value_heads": 2, "original_max_position_embeddings": 4096,
		"pad_token_id": 199999, "partial_rotary_factor": 0.75, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05,
		"rope_scaling": {"long_factor": [1, 1.1, 1.2, 1.3, 1.4, 1.5], "short_factor": [1, 1, 1, 1, 1, 1], "type": "longrope"},
		"rope_theta": 10000.0, "sliding_window": 262144, "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.45.0",
		"use_cache": true, "vocab_size": 200064}`,
	"google/gemma-2-2b-it": `{"architectures": ["Gemma2ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "attn_logit_softcapping": 50.0,
		"bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": [1, 107], "final_logit_softcapping": 30.0, "head_dim": 256,
		"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304, "initializer_range": 0.02,
		"intermediate_size": 9216, "max_position_embeddings": 8192, "model_type": "gemma2", "num_attention_heads": 8, "num_hidden_layers": 26,
		"num_key_value_heads": 4, "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_theta": 10000.0,
		"sliding_window": 4096, "torch_dtype": "bfloat16", "transformers_version": "4.42.4", "use_cache": true, "vocab_size": 256000}`,
	"google/gemma-3-1b-it": `{"architectures": ["Gemma3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "attn_logit_softcapping": null,
		"bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": [1, 106], "final_logit_softcapping": null, "head_dim": 256,
		"hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152, "initializer_range": 0.02, "intermediate_size": 6912,
		"max_position_embeddings": 32768, "model_type": "gemma3_text", "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1,
		"pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000, "rope_scaling": null,
		"rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6, "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0",
		"use_cache": true, "vocab_size": 262144}`,
	"allenai/OLMo-2-1124-7B": `{"architectures": ["Olmo2ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "eos_token_id": 100257,
		"hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 11008, "max_position_embeddings": 4096,
		"model_type": "olmo2", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32, "pad_token_id": 100277,
		"rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 500000, "tie_word_embeddings": false, "torch_dtype": "float32",
		"transformers_version": "4.47.0.dev0", "use_cache": false, "vocab_size": 100352}`,
}

// The configurations that people have are read as their owners mean them.
func TestPublishedConfigurations(t *testing.T) {
	specs := map[string]*Spec{}
	for name, text := range published {
		s, err := FromConfig([]byte(text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		specs[name] = s
	}
	if t.Failed() {
		return
	}
	for _, c := range []struct {
		name string
		got  any
		want any
	}{
		{"Llama 2 has heads of 128", specs["meta-llama/Llama-2-7b-hf"].HeadDim, 128},
		{"Llama 3.1 stretches by wavelength", specs["meta-llama/Llama-3.1-8B-Instruct"].Ropes[0].Kind, RopeLlama3},
		{"its context is not stretched again", specs["meta-llama/Llama-3.1-8B-Instruct"].Context, 131072},
		{"Mistral slides everywhere", specs["mistralai/Mistral-7B-v0.1"].Layers[31].Window, 4096},
		{"Mixtral does not", specs["mistralai/Mixtral-8x7B-v0.1"].Layers[31].Window, 0},
		{"Qwen 2.5 with YaRN has four times its context", specs["Qwen/Qwen2.5-7B-Instruct"].Context, 131072},
		{"and slides nowhere", specs["Qwen/Qwen2.5-7B-Instruct"].Layers[27].Window, 0},
		{"Qwen 3 0.6B is tied", specs["Qwen/Qwen3-0.6B"].Tied, true},
		{"Qwen 3 MoE is sparse", specs["Qwen/Qwen3-30B-A3B"].Layers[0].Sparse, true},
		{"GPT-2 is tied though it does not say so", specs["openai-community/gpt2"].Tied, true},
		{"and four times as wide within", specs["openai-community/gpt2"].FFN, 3072},
		{"Pythia turns a quarter of each head", specs["EleutherAI/pythia-160m"].Ropes[0].Dim, 16},
		{"Phi 3 mini slides", specs["microsoft/Phi-3-mini-4k-instruct"].Layers[0].Window, 2047},
		{"Phi 4 mini turns three quarters", specs["microsoft/Phi-4-mini-instruct"].Ropes[0].Dim, 12},
		{"Gemma 2 slides in even layers", [2]int{specs["google/gemma-2-2b-it"].Layers[0].Window, specs["google/gemma-2-2b-it"].Layers[1].Window}, [2]int{4096, 0}},
		{"and is tied though it does not say so", specs["google/gemma-2-2b-it"].Tied, true},
		{"Gemma 3 slides in five of six", [2]int{specs["google/gemma-3-1b-it"].Layers[4].Window, specs["google/gemma-3-1b-it"].Layers[5].Window}, [2]int{512, 0}},
		{"with a rotation of its own", specs["google/gemma-3-1b-it"].Ropes[specs["google/gemma-3-1b-it"].Layers[4].Rope].Base, 10000.0},
		{"and no cap", specs["google/gemma-3-1b-it"].AttentionCap, float32(0)},
		{"OLMo 2 has no norm before", specs["allenai/OLMo-2-1124-7B"].Names.AttentionNorm, ""},
		{"and one across heads", specs["allenai/OLMo-2-1124-7B"].QKNorm, AcrossHeads},
		{"Pythia's activation is the exact one", specs["EleutherAI/pythia-160m"].Activation, kernels.GELU},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.got != c.want {
				t.Errorf("got %v, want %v", c.got, c.want)
			}
		})
	}
}

// What a configuration asks for and is not done is refused by name, never ignored.
func TestRefusedConfigurations(t *testing.T) {
	llama := published["meta-llama/Llama-3.1-8B-Instruct"]
	replace := func(text, old, new string) string {
		if !strings.Contains(text, old) {
			t.Fatalf("the configuration has no %s", old)
		}
		return strings.Replace(text, old, new, 1)
	}
	for _, c := range []struct {
		name, text string
		kind       error
		says       string
	}{
		{"an unknown key", replace(llama, `"mlp_bias": false`, `"clip_qkv": 8.0`), ErrUnsupported, "clip_qkv"},
		{"an unknown rope", replace(llama, `"rope_type": "llama3"`, `"rope_type": "spiral"`), ErrUnsupported, "spiral"},
		{"an unknown key of a rope", replace(llama, `"factor": 8.0`, `"factor": 8.0, "mrope_section": [1]`), ErrUnsupported, "mrope_section"},
		{"a rope without its factor", replace(llama, `"factor": 8.0, `, ``), ErrConfig, "factor"},
		{"an unknown activation", replace(llama, `"silu"`, `"relu2"`), ErrUnsupported, "relu2"},
		{"no layers", replace(llama, `"num_hidden_layers": 32`, `"num_hidden_layers": 0`), ErrConfig, "num_hidden_layers"},
		{"a missing size", replace(llama, `"hidden_size": 4096, `, ``), ErrConfig, "hidden_size"},
		{"a huge size", replace(llama, `"hidden_size": 4096`, `"hidden_size": 1e30`), ErrConfig, "hidden_size"},
		{"half a head", replace(llama, `"num_attention_heads": 32`, `"num_attention_heads": 3.5`), ErrConfig, "num_attention_heads"},
		{"heads that do not divide", replace(llama, `"num_key_value_heads": 8`, `"num_key_value_heads": 5`), ErrConfig, "5 KV heads"},
		{"a word for a number", replace(llama, `"vocab_size": 128256`, `"vocab_size": "many"`), ErrConfig, "vocab_size"},
		{"cross attention", replace(published["openai-community/gpt2"], `"attn_pdrop"`, `"add_cross_attention": true, "attn_pdrop"`), ErrUnsupported, "add_cross_attention"},
		{"an unknown kind of layer", replace(published["Qwen/Qwen3-0.6B"], `"head_dim": 128`, `"head_dim": 128, "layer_types": ["linear_attention"]`), ErrConfig, "layer_types"},
		{"a bidirectional Gemma", replace(published["google/gemma-3-1b-it"], `"pad_token_id"`, `"use_bidirectional_attention": true, "pad_token_id"`), ErrUnsupported, "use_bidirectional_attention"},
		{"not an object", `[]`, ErrConfig, "config.json"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := FromConfig([]byte(c.text))
			if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %v that says %q", err, c.kind, c.says)
			}
		})
	}
}
