package model

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"manta/kernels"
	"manta/kernels/cpu"
	"manta/parallel/shard"
	"manta/runtime/model/modeltest"
	"manta/runtime/weights/weightstest"
)

// randomModel writes a model of a configuration with random weights into a folder.
func randomModel(t *testing.T, config string, kind kernels.DType) string {
	t.Helper()
	s, err := FromConfig([]byte(config))
	if err != nil {
		t.Fatalf("%v: %s", err, config)
	}
	r := rand.New(rand.NewPCG(9, 9))
	var tensors []weightstest.Tensor
	for want := range s.Tensors() {
		shape, mean, deviation := []int{want.Rows, want.Cols}, float32(0), float32(0.2)
		if want.Rows == 1 {
			shape = shape[1:]
		}
		if strings.Contains(want.Name, "norm") || strings.Contains(want.Name, "ln_") {
			mean = 1 - s.NormShift
		}
		tensors = append(tensors, weightstest.Random(r, want.Name, kind, mean, deviation, shape...))
	}
	folder := t.TempDir()
	if err := weightstest.WriteSafetensors(folder, json.RawMessage(config), tensors); err != nil {
		t.Fatal(err)
	}
	return folder
}

// keys is a configuration.
type keys = map[string]any

// randomConfig gives a small model of a family with sizes that no kernel would
// choose: widths that fill no register, heads of 20, three KV heads, one expert
// more than is used.
func randomConfig(r *rand.Rand, family string) keys {
	kvHeads := 1 + r.IntN(4)
	heads := kvHeads * (1 + r.IntN(4))
	headDim := []int{8, 16, 20, 24, 32, 36, 40, 48, 64, 80}[r.IntN(10)]
	layers := 1 + r.IntN(5)
	pick := func(low, high int) int { return low + r.IntN(high-low) }
	c := keys{
		"model_type": family, "hidden_size": pick(17, 110), "intermediate_size": pick(17, 130), "vocab_size": pick(40, 400),
		"num_attention_heads": heads, "num_key_value_heads": kvHeads, "head_dim": headDim, "num_hidden_layers": layers,
		"max_position_embeddings": 256, "tie_word_embeddings": r.IntN(2) == 0, "rms_norm_eps": 1e-5,
		"rope_theta": []float64{1e4, 5e5, 1e6}[r.IntN(3)],
	}
	window := pick(1, 40)
	switch family {
	case "llama":
		c["attention_bias"], c["mlp_bias"] = r.IntN(2) == 0, r.IntN(2) == 0
		c["rope_scaling"] = []any{
			nil,
			keys{"type": "linear", "factor": 3.5},
			keys{"type": "dynamic", "factor": 2.0},
			keys{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
			keys{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
		}[r.IntN(5)]
	case "mistral":
		c["sliding_window"] = window
	case "mixtral":
		c["num_local_experts"], c["num_experts_per_tok"] = 3, 2
	case "qwen2", "qwen3", "qwen3_moe":
		c["use_sliding_window"], c["sliding_window"], c["max_window_layers"] = r.IntN(2) == 0, window, r.IntN(layers+1)
		if family == "qwen3_moe" {
			c["num_experts"], c["num_experts_per_tok"], c["moe_intermediate_size"] = 5, pick(1, 5), pick(9, 60)
			c["decoder_sparse_step"], c["norm_topk_prob"] = 1+r.IntN(2), r.IntN(2) == 0
		}
	case "phi3":
		factors := func(around float64) []float64 {
			list := make([]float64, headDim/4)
			for i := range list {
				list[i] = around + r.Float64()
			}
			return list
		}
		c["partial_rotary_factor"] = float64(headDim/4*2) / float64(headDim)
		if r.IntN(2) == 0 {
			c["original_max_position_embeddings"] = 64
			c["rope_scaling"] = keys{"type": "longrope", "short_factor": factors(1), "long_factor": factors(4)}
		}
	case "gemma2", "gemma3_text":
		c["sliding_window"], c["query_pre_attn_scalar"] = window, pick(8, 64)
		if family == "gemma3_text" {
			c["sliding_window_pattern"], c["rope_local_base_freq"] = 1+r.IntN(4), 1e4
		}
	case "gpt_neox":
		delete(c, "num_key_value_heads")
		c["rotary_pct"], c["use_parallel_residual"] = 0.5, r.IntN(2) == 0
	case "gpt2":
		c = keys{
			"model_type": "gpt2", "n_embd": kvHeads * headDim, "n_head": kvHeads, "n_layer": layers, "n_positions": 256,
			"vocab_size": c["vocab_size"], "n_inner": c["intermediate_size"],
		}
	}
	return c
}

// What no reference has: sizes that fit no register and no power of two. The
// processor's own kernels agree with ref, whole, in chunks and on several ranks
// of several stages.
func TestRandomModels(t *testing.T) {
	for family := range huggingFace {
		for seed := range 2 {
			r := rand.New(rand.NewPCG(uint64(seed), 77))
			config, err := json.Marshal(randomConfig(r, family))
			if err != nil {
				t.Fatal(err)
			}
			kind := []kernels.DType{kernels.F32, kernels.BF16, kernels.F16}[r.IntN(3)]
			t.Run(fmt.Sprintf("%s/%d", family, seed), func(t *testing.T) { checkRandomModel(t, r, string(config), kind) })
		}
	}
}

func checkRandomModel(t *testing.T, r *rand.Rand, config string, kind kernels.DType) {
	folder := randomModel(t, config, kind)
	reference := newRunner(t, folder, kernels.F32, testContext)
	shape := reference.spec.Shape()
	prompt := make([]int32, 40)
	for i := range prompt {
		prompt[i] = int32(r.IntN(shape.Vocab))
	}
	want := reference.step(part{reference.sequence(prompt), len(prompt)})[0]

	// The bound is made for logits of up to ten.
	largest := 10.0
	for _, row := range want {
		largest = max(largest, distance(row, make([]float32, len(row))))
	}
	bound := modeltest.LogitTolerance * largest / 10

	before := newOps
	defer func() { newOps = before }()
	newOps = func(t testing.TB) kernels.Ops {
		o, err := cpu.New(cpu.Options{Threads: 1})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := o.Close(); err != nil {
				t.Error(err)
			}
		})
		return o
	}
	for _, layout := range []shard.Layout{
		{Tensor: 1, Pipeline: 1},
		{Tensor: 1 + r.IntN(min(3, shape.MaxTensor())), Pipeline: 1 + r.IntN(min(3, shape.Layers))},
	} {
		c := newCluster(t, folder, kernels.F32, testContext, layout)
		for _, chunk := range []int{len(prompt), 7, 1} {
			s := c.sequence(prompt)
			for s.computed < len(prompt) {
				at := s.computed
				for i, row := range c.step(part{s, min(chunk, len(prompt)-at)})[0] {
					if off := distance(row, want[at+i]); !(off <= bound) {
						t.Fatalf("%d×%d, chunks of %d: position %d is off by %g\n%s", layout.Tensor, layout.Pipeline, chunk, at+i, off, config)
					}
				}
			}
		}
	}
}

// distance is the greatest difference between two rows.
func distance(a, b []float32) float64 {
	worst := 0.0
	for i := range b {
		if d := math.Abs(float64(a[i] - b[i])); !(d <= worst) {
			worst = d
		}
	}
	return worst
}

// What no reference has (biases on every product, dense layers of another width
// among sparse ones, six query heads over three KV heads) is the same model on
// one rank and on many: a bias counts once, and cuts meet.
func TestRandomModelsOnManyRanks(t *testing.T) {
	for name, config := range map[string]string{
		"biases": `{"model_type": "llama", "hidden_size": 48, "intermediate_size": 70, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 32,
			"num_hidden_layers": 4, "vocab_size": 101, "max_position_embeddings": 256, "attention_bias": true, "mlp_bias": true}`,
		"dense among sparse": `{"model_type": "qwen3_moe", "hidden_size": 48, "intermediate_size": 70, "moe_intermediate_size": 22, "num_experts": 5,
			"num_experts_per_tok": 2, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 32, "num_hidden_layers": 4, "vocab_size": 101,
			"max_position_embeddings": 256, "mlp_only_layers": [1, 3], "norm_topk_prob": true}`,
	} {
		t.Run(name, func(t *testing.T) {
			folder := randomModel(t, config, kernels.F32)
			prompt := make([]int32, 40)
			for i := range prompt {
				prompt[i] = int32(i * 37 % 101)
			}
			whole := newRunner(t, folder, kernels.F32, testContext)
			want := whole.step(part{whole.sequence(prompt), len(prompt)})[0]
			for _, layout := range []shard.Layout{
				{Tensor: 2, Pipeline: 1}, {Tensor: 3, Pipeline: 2}, {Tensor: 6, Pipeline: 1},
				{Tensor: 1, Pipeline: 4}, {Tensor: 4, Pipeline: 2, StageLayers: []int{1, 3}, TensorShares: []int{1, 1, 3, 2}},
			} {
				r := newCluster(t, folder, kernels.F32, testContext, layout)
				got := r.step(part{r.sequence(prompt), len(prompt)})[0]
				for i := range want {
					if off := distance(got[i], want[i]); !(off <= 1e-4) {
						t.Fatalf("%+v: row %d is off by %g", layout, i, off)
					}
				}
			}
		})
	}
}
