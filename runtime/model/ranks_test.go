package model

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"testing"

	"manta/kernels"
	"manta/parallel/shard"
	"manta/runtime/weights/weightstest"
)

// randomModel writes a model of a configuration with random weights into a folder.
func randomModel(t *testing.T, config string) string {
	t.Helper()
	s, err := describeConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(9, 9))
	var tensors []weightstest.Tensor
	add := func(name string, shape ...int) {
		n := 1
		for _, d := range shape {
			n *= d
		}
		values := make([]float32, n)
		for i := range values {
			values[i] = float32(r.NormFloat64()) * 0.2
		}
		tensors = append(tensors, weightstest.F32(name, shape, values...))
	}
	product := func(name string, out, in int, bias bool) {
		add(name+".weight", out, in)
		if bias {
			add(name+".bias", out)
		}
	}
	add(s.Names.Embedding+".weight", s.Vocab, s.Hidden)
	add(s.Names.Output+".weight", s.Vocab, s.Hidden)
	add(s.Names.FinalNorm+".weight", s.Hidden)
	for l := range s.Layers {
		name := func(template string) string { return at(template, l, 0) }
		add(name(s.Names.AttentionNorm)+".weight", s.Hidden)
		add(name(s.Names.FFNNorm)+".weight", s.Hidden)
		if s.QKNorm == PerHead {
			add(name(s.Names.QNorm)+".weight", s.HeadDim)
			add(name(s.Names.KNorm)+".weight", s.HeadDim)
		}
		product(name(s.Names.Q), s.Heads*s.HeadDim, s.Hidden, s.QKVBias)
		product(name(s.Names.K), s.KVHeads*s.HeadDim, s.Hidden, s.QKVBias)
		product(name(s.Names.V), s.KVHeads*s.HeadDim, s.Hidden, s.QKVBias)
		product(name(s.Names.Out), s.Hidden, s.Heads*s.HeadDim, s.OutBias)
		if !s.Layers[l].Sparse {
			product(name(s.Names.Gate), s.FFN, s.Hidden, s.FFNBias)
			product(name(s.Names.Up), s.FFN, s.Hidden, s.FFNBias)
			product(name(s.Names.Down), s.Hidden, s.FFN, s.FFNBias)
			continue
		}
		product(name(s.Names.Router), s.Experts.Count, s.Hidden, false)
		for e := range s.Experts.Count {
			product(at(s.Names.ExpertGate, l, e), s.Experts.FFN, s.Hidden, false)
			product(at(s.Names.ExpertUp, l, e), s.Experts.FFN, s.Hidden, false)
			product(at(s.Names.ExpertDown, l, e), s.Hidden, s.Experts.FFN, false)
		}
	}
	folder := t.TempDir()
	if err := weightstest.WriteSafetensors(folder, json.RawMessage(config), tensors); err != nil {
		t.Fatal(err)
	}
	return folder
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
			folder := randomModel(t, config)
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
					for j := range want[i] {
						if d := math.Abs(float64(got[i][j] - want[i][j])); !(d <= 1e-4) {
							t.Fatalf("%+v: row %d, logit %d is off by %g", layout, i, j, d)
						}
					}
				}
			}
		})
	}
}
