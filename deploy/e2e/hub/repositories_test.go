//go:build e2e

package hub

import (
	"encoding/json"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"encoding/binary"

	"manta/kernels"
	"manta/kernels/ref"
	"manta/runtime/model"
	"manta/runtime/weights/weightstest"
)

// A repository is a small model laid out as the family's own are.
type repository struct {
	name       string
	config     string // without what the vocabulary decides
	vocabulary vocabulary
	padding    int // rows of the embedding past the vocabulary
	kind       kernels.DType
	shards     int    // 0: one model.safetensors
	template   string // "": a base model
	asFile     bool   // the template is chat_template.jinja
	generation string
	beside     []string // files that must not be fetched
}

const (
	llama3Split = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	qwenSplit   = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`

	inst   = `{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}`
	header = `{{- bos_token }}{%- for m in messages %}{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}`
	chatML = `{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}`
	turns  = `{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + (m['role'] if m['role'] != 'assistant' else 'model') + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}`
	phi    = `{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}`
)

// repositories are one of each family, with the keys that its published
// config.json has.
func repositories() []repository {
	llama2 := func() vocabulary {
		return sentencePiece(true, []string{"<unk>", "<s>", "</s>"}, "<s>", "</s>", "<unk>")
	}
	gemma := func() vocabulary {
		return sentencePiece(false, []string{"<pad>", "<eos>", "<bos>", "<unk>"}, "<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>")
	}
	return []repository{
		{
			name: "meta-llama/Llama-2-tiny-chat-hf", vocabulary: llama2(), kind: kernels.F16, shards: 2, template: inst,
			config: `{"_name_or_path": "meta-llama/Llama-2-tiny-chat-hf", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "hidden_size": 48,
				"initializer_range": 0.02, "intermediate_size": 88, "max_position_embeddings": 512, "model_type": "llama", "num_attention_heads": 6,
				"num_hidden_layers": 3, "num_key_value_heads": 6, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": null,
				"tie_word_embeddings": false, "torch_dtype": "float16", "transformers_version": "4.32.0.dev0", "use_cache": true}`,
			generation: `{"do_sample": true, "temperature": 0.6, "max_length": 4096, "top_p": 0.9, "transformers_version": "4.32.0.dev0"}`,
			beside:     []string{"pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "pytorch_model.bin.index.json", "LICENSE.txt"},
		},
		{
			name: "meta-llama/Llama-3.2-tiny-Instruct", kind: kernels.BF16, template: header,
			vocabulary: byteLevel(llama3Split, "<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>"),
			config: `{"architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "head_dim": 32, "hidden_act": "silu",
				"hidden_size": 64, "initializer_range": 0.02, "intermediate_size": 96, "max_position_embeddings": 512, "mlp_bias": false,
				"model_type": "llama", "num_attention_heads": 6, "num_hidden_layers": 3, "num_key_value_heads": 3, "pretraining_tp": 1,
				"rms_norm_eps": 1e-05, "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
				"original_max_position_embeddings": 64, "rope_type": "llama3"}, "rope_theta": 500000.0, "tie_word_embeddings": true,
				"torch_dtype": "bfloat16", "transformers_version": "4.45.0.dev0", "use_cache": true}`,
			generation: `{"do_sample": true, "temperature": 0.6, "top_p": 0.9, "transformers_version": "4.45.0.dev0"}`,
			beside:     []string{"original/consolidated.00.pth", "original/params.json", "original/tokenizer.model", "USE_POLICY.md"},
		},
		{
			name: "mistralai/Mistral-tiny-Instruct-v0.1", vocabulary: llama2(), kind: kernels.BF16, shards: 2, template: inst,
			config: `{"architectures": ["MistralForCausalLM"], "hidden_act": "silu", "hidden_size": 64, "initializer_range": 0.02, "intermediate_size": 112,
				"max_position_embeddings": 512, "model_type": "mistral", "num_attention_heads": 4, "num_hidden_layers": 3, "num_key_value_heads": 2,
				"rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 24, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
				"transformers_version": "4.34.0.dev0", "use_cache": true}`,
			beside: []string{"consolidated.safetensors", "params.json", "tekken.json"},
		},
		{
			name: "mistralai/Mixtral-tiny-Instruct-v0.1", vocabulary: llama2(), kind: kernels.BF16, shards: 3, template: inst,
			config: `{"architectures": ["MixtralForCausalLM"], "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": 48, "initializer_range": 0.02,
				"intermediate_size": 72, "max_position_embeddings": 512, "model_type": "mixtral", "num_attention_heads": 4, "num_experts_per_tok": 2,
				"num_hidden_layers": 2, "num_key_value_heads": 2, "num_local_experts": 4, "output_router_logits": false, "rms_norm_eps": 1e-05,
				"rope_theta": 1000000.0, "router_aux_loss_coef": 0.02, "sliding_window": null, "tie_word_embeddings": false,
				"torch_dtype": "bfloat16", "transformers_version": "4.36.0.dev0", "use_cache": true}`,
			beside: []string{"consolidated.00.pt"},
		},
		{
			name: "Qwen/Qwen2.5-tiny-Instruct", vocabulary: byteLevel(qwenSplit, "", "<|im_end|>", "<|endoftext|>", "<|im_start|>"), padding: 9,
			kind: kernels.BF16, template: chatML,
			config: `{"architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": 56, "initializer_range": 0.02,
				"intermediate_size": 80, "max_position_embeddings": 512, "max_window_layers": 21, "model_type": "qwen2", "num_attention_heads": 7,
				"num_hidden_layers": 3, "num_key_value_heads": 1, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768,
				"tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.43.1", "use_cache": true, "use_sliding_window": false}`,
			generation: `{"do_sample": true, "repetition_penalty": 1.1, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "transformers_version": "4.37.0"}`,
			beside:     []string{"LICENSE"},
		},
		{
			name: "Qwen/Qwen3-tiny", vocabulary: byteLevel(qwenSplit, "", "<|im_end|>", "<|endoftext|>", "<|im_start|>"), padding: 7,
			kind: kernels.BF16, shards: 2, template: chatML,
			config: `{"architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "head_dim": 32, "hidden_act": "silu",
				"hidden_size": 64, "initializer_range": 0.02, "intermediate_size": 96, "max_position_embeddings": 512, "max_window_layers": 28,
				"model_type": "qwen3", "num_attention_heads": 6, "num_hidden_layers": 3, "num_key_value_heads": 3, "rms_norm_eps": 1e-06,
				"rope_scaling": null, "rope_theta": 1000000, "sliding_window": null, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
				"transformers_version": "4.51.0", "use_cache": true, "use_sliding_window": false}`,
		},
		{
			name: "Qwen/Qwen3-tiny-MoE", vocabulary: byteLevel(qwenSplit, "", "<|im_end|>", "<|endoftext|>", "<|im_start|>"),
			kind: kernels.BF16, shards: 2, template: chatML,
			config: `{"architectures": ["Qwen3MoeForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "decoder_sparse_step": 1, "head_dim": 16,
				"hidden_act": "silu", "hidden_size": 48, "initializer_range": 0.02, "intermediate_size": 96, "max_position_embeddings": 512,
				"max_window_layers": 48, "mlp_only_layers": [], "model_type": "qwen3_moe", "moe_intermediate_size": 40, "norm_topk_prob": true,
				"num_attention_heads": 4, "num_experts": 6, "num_experts_per_tok": 2, "num_hidden_layers": 2, "num_key_value_heads": 2,
				"output_router_logits": false, "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001,
				"sliding_window": null, "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.51.0",
				"use_cache": true, "use_sliding_window": false}`,
		},
		{
			name: "openai-community/gpt2-tiny", vocabulary: byteLevel("", "", "<|endoftext|>"), kind: kernels.F32,
			config: `{"activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "embd_pdrop": 0.1, "initializer_range": 0.02,
				"layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 256, "n_embd": 60, "n_head": 3, "n_layer": 3, "n_positions": 256,
				"resid_pdrop": 0.1, "summary_activation": null, "summary_first_dropout": 0.1, "summary_proj_to_labels": true, "summary_type": "cls_index",
				"summary_use_proj": true, "task_specific_params": {"text-generation": {"do_sample": true, "max_length": 50}}}`,
			beside: []string{"pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "rust_model.ot", "64.tflite", "onnx/decoder_model.onnx"},
		},
		{
			name: "EleutherAI/pythia-tiny", vocabulary: byteLevel("", "", "<|endoftext|>"), padding: 5, kind: kernels.F16,
			config: `{"architectures": ["GPTNeoXForCausalLM"], "hidden_act": "gelu", "hidden_size": 64, "initializer_range": 0.02, "intermediate_size": 128,
				"layer_norm_eps": 1e-05, "max_position_embeddings": 512, "model_type": "gpt_neox", "num_attention_heads": 4, "num_hidden_layers": 3,
				"rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": false, "torch_dtype": "float16",
				"transformers_version": "4.24.0", "use_cache": true, "use_parallel_residual": true}`,
			beside: []string{"pytorch_model.bin"},
		},
		{
			name: "microsoft/Phi-3-tiny-128k-instruct", kind: kernels.BF16, shards: 2, template: phi, padding: 3,
			vocabulary: sentencePiece(true, []string{"<unk>", "<s>", "</s>"}, "<s>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
			config: `{"architectures": ["Phi3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
				"auto_map": {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}, "embd_pdrop": 0.0,
				"hidden_act": "silu", "hidden_size": 64, "initializer_range": 0.02, "intermediate_size": 80, "max_position_embeddings": 512,
				"model_type": "phi3", "num_attention_heads": 4, "num_hidden_layers": 3, "num_key_value_heads": 4,
				"original_max_position_embeddings": 64, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05, "rope_scaling": {"type": "longrope",
				"long_factor": [1.07, 1.12, 1.15, 1.43, 2.1, 4.2, 9.5, 17.1], "short_factor": [1.05, 1.05, 1.06, 1.1, 1.2, 1.3, 1.9, 2.3]},
				"rope_theta": 10000.0, "sliding_window": 262144, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
				"transformers_version": "4.40.2", "use_cache": true}`,
			beside: []string{"configuration_phi3.py", "modeling_phi3.py"},
		},
		{
			name: "google/gemma-2-tiny-it", vocabulary: gemma(), kind: kernels.BF16, shards: 2, template: turns,
			config: `{"architectures": ["Gemma2ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "attn_logit_softcapping": 50.0,
				"cache_implementation": "hybrid", "final_logit_softcapping": 30.0, "head_dim": 32, "hidden_act": "gelu_pytorch_tanh",
				"hidden_activation": "gelu_pytorch_tanh", "hidden_size": 48, "initializer_range": 0.02, "intermediate_size": 96,
				"max_position_embeddings": 512, "model_type": "gemma2", "num_attention_heads": 6, "num_hidden_layers": 4, "num_key_value_heads": 3,
				"query_pre_attn_scalar": 24, "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "sliding_window": 24, "torch_dtype": "bfloat16",
				"transformers_version": "4.42.4", "use_cache": true}`,
			beside: []string{"gemma-2-tiny-it.gguf"},
		},
		{
			name: "google/gemma-3-tiny-it", vocabulary: gemma(), kind: kernels.BF16, template: turns, asFile: true,
			config: `{"architectures": ["Gemma3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "attn_logit_softcapping": null,
				"cache_implementation": "hybrid", "final_logit_softcapping": null, "head_dim": 32, "hidden_activation": "gelu_pytorch_tanh",
				"hidden_size": 48, "initializer_range": 0.02, "intermediate_size": 96, "max_position_embeddings": 512, "model_type": "gemma3_text",
				"num_attention_heads": 4, "num_hidden_layers": 4, "num_key_value_heads": 1, "query_pre_attn_scalar": 32, "rms_norm_eps": 1e-06,
				"rope_local_base_freq": 10000, "rope_scaling": null, "rope_theta": 1000000, "sliding_window": 24, "sliding_window_pattern": 3,
				"torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0", "use_cache": true}`,
			generation: `{"cache_implementation": "hybrid", "do_sample": true, "top_k": 64, "top_p": 0.95, "transformers_version": "4.50.0.dev0"}`,
		},
		{
			name: "allenai/OLMo-2-tiny", vocabulary: byteLevel(llama3Split, "", "<|endoftext|>", "<|pad|>"), kind: kernels.F32, shards: 2,
			config: `{"architectures": ["Olmo2ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": 60,
				"initializer_range": 0.02, "intermediate_size": 100, "max_position_embeddings": 512, "model_type": "olmo2", "num_attention_heads": 3,
				"num_hidden_layers": 3, "num_key_value_heads": 3, "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 500000,
				"tie_word_embeddings": false, "torch_dtype": "float32", "transformers_version": "4.47.0.dev0", "use_cache": false}`,
		},
	}
}

// write lays the repository out in a folder. seed picks the weights.
func (r repository) write(t *testing.T, folder string, seed uint64) {
	t.Helper()
	var config object
	must(t, json.Unmarshal([]byte(r.config), &config))
	v := r.vocabulary
	eos := v.id(v.config["eos_token"].(string))
	config["vocab_size"], config["eos_token_id"], config["bos_token_id"] = v.size+r.padding, eos, nil
	if bos, ok := v.config["bos_token"].(string); ok {
		config["bos_token_id"] = v.id(bos)
	}
	data, err := json.MarshalIndent(config, "", "  ")
	must(t, err)
	spec, err := model.FromConfig(data)
	must(t, err)
	tensors := randomTensors(spec, r.kind, seed)
	if r.shards == 0 {
		must(t, weightstest.WriteSafetensors(folder, config, tensors))
	} else {
		per := (len(tensors) + r.shards - 1) / r.shards
		must(t, weightstest.WriteSharded(folder, config, slices.Collect(slices.Chunk(tensors, per))...))
	}
	tokenizerConfig := maps.Clone(v.config)
	if r.template != "" && !r.asFile {
		tokenizerConfig["chat_template"] = r.template
	}
	must(t, weightstest.WriteJSON(filepath.Join(folder, "tokenizer.json"), v.tokenizer))
	must(t, weightstest.WriteJSON(filepath.Join(folder, "tokenizer_config.json"), tokenizerConfig))
	texts := map[string]string{"README.md": "# " + r.name, ".gitattributes": "*.safetensors filter=lfs"}
	if r.asFile {
		texts["chat_template.jinja"] = r.template
	}
	if r.generation != "" {
		texts["generation_config.json"] = r.generation
	}
	for _, name := range r.beside {
		texts[name] = "this file must not be fetched"
	}
	for name, text := range texts {
		path := filepath.Join(folder, name)
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must(t, os.WriteFile(path, []byte(text), 0o644))
	}
}

func randomTensors(spec *model.Spec, kind kernels.DType, seed uint64) []weightstest.Tensor {
	r := rand.New(rand.NewPCG(seed, 1))
	var tensors []weightstest.Tensor
	for want := range spec.Tensors() {
		shape, mean := []int{want.Rows, want.Cols}, float32(0)
		if want.Rows == 1 {
			shape = shape[1:]
		}
		if strings.Contains(want.Name, "norm") || strings.Contains(want.Name, "ln_") {
			mean = 1 - spec.NormShift
		}
		tensors = append(tensors, weightstest.Random(r, want.Name, kind, mean, 0.2, shape...))
	}
	return tensors
}

// ggufNames turns names of safetensors into llama.cpp's.
var ggufNames = strings.NewReplacer("model.embed_tokens", "token_embd", "model.layers.", "blk.", "model.norm", "output_norm", "lm_head", "output",
	"input_layernorm", "attn_norm", "post_attention_layernorm", "ffn_norm", "self_attn.q_proj", "attn_q", "self_attn.k_proj", "attn_k",
	"self_attn.v_proj", "attn_v", "self_attn.o_proj", "attn_output", "self_attn.q_norm", "attn_q_norm", "self_attn.k_norm", "attn_k_norm",
	"mlp.gate_proj", "ffn_gate", "mlp.up_proj", "ffn_up", "mlp.down_proj", "ffn_down")

// gguf gives the bytes of a random model of an architecture, its matrices in
// blocks of Q8_0 where quantized is set, with its vocabulary and template.
func (r repository) gguf(t *testing.T, architecture, kindOfVocabulary, pre string, quantized bool) []byte {
	t.Helper()
	var config object
	must(t, json.Unmarshal([]byte(r.config), &config))
	v := r.vocabulary
	config["vocab_size"] = v.size
	data, err := json.Marshal(config)
	must(t, err)
	spec, err := model.FromConfig(data)
	must(t, err)
	tensors := randomTensors(spec, kernels.F32, 9)
	for i, w := range tensors {
		tensors[i].Name = ggufNames.Replace(w.Name)
		if quantized && len(w.Shape) == 2 {
			tensors[i].DType, tensors[i].Data = kernels.Q8_0, toQ8(w.Data)
		}
	}
	key := func(name string) string { return architecture + "." + name }
	types, scores := make([]int32, v.size), make([]float32, v.size)
	for id, p := range v.pieces {
		types[id], scores[id] = 1, float32(-id)
		switch {
		case strings.HasPrefix(p, "<0x") && len(p) == 6:
			types[id] = 6 // llama.cpp: byte
		case strings.HasPrefix(p, "<") && len(p) > 2:
			types[id] = 3 // control
		}
	}
	meta := []weightstest.Pair{
		{Key: "general.architecture", Value: architecture}, {Key: "general.name", Value: r.name},
		{Key: key("block_count"), Value: uint32(len(spec.Layers))}, {Key: key("context_length"), Value: uint32(spec.Context)},
		{Key: key("embedding_length"), Value: uint32(spec.Hidden)}, {Key: key("feed_forward_length"), Value: uint32(spec.FFN)},
		{Key: key("attention.head_count"), Value: uint32(spec.Heads)}, {Key: key("attention.head_count_kv"), Value: uint32(spec.KVHeads)},
		{Key: key("attention.key_length"), Value: uint32(spec.HeadDim)}, {Key: key("attention.value_length"), Value: uint32(spec.HeadDim)},
		{Key: key("attention.layer_norm_rms_epsilon"), Value: float32(1e-6)}, {Key: key("rope.freq_base"), Value: float32(10000)},
		{Key: key("rope.dimension_count"), Value: uint32(spec.HeadDim)},
		{Key: "tokenizer.ggml.model", Value: kindOfVocabulary}, {Key: "tokenizer.ggml.pre", Value: pre},
		{Key: "tokenizer.ggml.tokens", Value: v.pieces}, {Key: "tokenizer.ggml.token_type", Value: types},
		{Key: "tokenizer.ggml.eos_token_id", Value: uint32(v.id(v.config["eos_token"].(string)))},
		{Key: "tokenizer.chat_template", Value: r.template},
	}
	if kindOfVocabulary == "llama" {
		meta = append(meta, weightstest.Pair{Key: "tokenizer.ggml.scores", Value: scores})
	} else {
		meta = append(meta, weightstest.Pair{Key: "tokenizer.ggml.merges", Value: v.merges})
	}
	file, err := weightstest.GGUF(meta, tensors)
	must(t, err)
	return file
}

// toQ8 writes float32 values as blocks of 32: a half-precision scale and 8-bit
// integers (ggml's block_q8_0).
func toQ8(data []byte) []byte {
	var out []byte
	for block := range slices.Chunk(data, 32*4) {
		values, largest := make([]float64, len(block)/4), 0.0
		for i := range values {
			values[i] = float64(math.Float32frombits(binary.LittleEndian.Uint32(block[4*i:])))
			largest = max(largest, math.Abs(values[i]))
		}
		out = binary.LittleEndian.AppendUint16(out, ref.ToHalf(float32(largest/127)))
		for _, v := range values {
			out = append(out, byte(int8(math.Round(v*127/max(largest, 1e-9)))))
		}
	}
	return out
}
