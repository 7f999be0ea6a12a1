package model

import (
	"errors"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"manta/kernels"
	"manta/runtime/weights"
	"manta/runtime/weights/weightstest"
)

// altered is a model with another configuration or other tensors.
type altered struct {
	*weights.Model
	config []byte
	shapes map[string][2]int // rows and columns; 0, 0: hidden
	extra  []string
}

func (a *altered) Config() []byte  { return a.config }
func (a *altered) Names() []string { return append(slices.Clone(a.Model.Names()), a.extra...) }

func (a *altered) Tensor(name string) (kernels.Matrix, bool) {
	m, ok := a.Model.Tensor(name)
	if shape, other := a.shapes[name]; other {
		m.Rows, m.Cols = shape[0], shape[1]
		return m, m.Rows > 0
	}
	return m, ok
}

// A model whose tensors are not those of its configuration is refused by the
// tensor's name, and so is one that holds more than would be used.
func TestDescribeRefuses(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(a *altered)
		kind   error
		says   string
	}{
		{"quantized weights", func(a *altered) { a.add(`"quantization_config": {"quant_method": "gptq", "bits": 4}`) }, ErrUnsupported, "quantization_config"},
		{"an architecture", func(a *altered) {
			a.config = []byte(strings.Replace(string(a.config), `"model_type": "llama"`, `"model_type": "mamba"`, 1))
		}, ErrUnsupported, "mamba"},
		{"a missing tensor", func(a *altered) { a.shapes["model.layers.1.mlp.up_proj.weight"] = [2]int{} }, ErrTensor, "model.layers.1.mlp.up_proj.weight"},
		{"another shape", func(a *altered) { a.shapes["model.layers.0.self_attn.k_proj.weight"] = [2]int{64, 64} }, ErrTensor, "model.layers.0.self_attn.k_proj.weight"},
		{"a bias that is not there", func(a *altered) { a.add(`"mlp_bias": true`) }, ErrTensor, "bias"},
		{"a tensor without use", func(a *altered) { a.extra = []string{"model.layers.0.self_attn.sinks"} }, ErrUnsupported, "sinks"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, err := weights.Open("testdata/models/llama")
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			a := &altered{Model: w, config: w.Config(), shapes: map[string][2]int{}}
			c.change(a)
			if _, err := Describe(a); !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %v that says %q", err, c.kind, c.says)
			}
		})
	}
}

// add puts a key in front of the others, in place of one of that name.
func (a *altered) add(entry string) {
	text := strings.Replace(string(a.config), `"mlp_bias": false,`, "", 1)
	a.config = []byte("{" + entry + "," + strings.TrimPrefix(strings.TrimSpace(text), "{"))
}

// A GGUF's metadata are held to the same: what they ask for and is not done is
// refused by name.
func TestDescribeRefusesGGUF(t *testing.T) {
	whole := map[string]any{
		"general.architecture": "llama", "llama.embedding_length": uint32(8), "llama.block_count": uint32(1),
		"llama.feed_forward_length": uint32(8), "llama.attention.head_count": uint32(2), "llama.context_length": uint32(32),
		"llama.attention.layer_norm_rms_epsilon": float32(1e-5), "llama.rope.dimension_count": uint32(4),
	}
	for _, c := range []struct {
		name string
		set  map[string]any
		kind error
		says string
	}{
		{"nothing", nil, nil, ""},
		{"an architecture", map[string]any{"general.architecture": "rwkv6"}, ErrUnsupported, "rwkv6"},
		{"a key", map[string]any{"llama.attention.clamp_kqv": float32(8)}, ErrUnsupported, "llama.attention.clamp_kqv"},
		{"a number for each layer", map[string]any{"llama.attention.head_count_kv": []int32{1, 2}}, ErrUnsupported, "head_count_kv"},
		{"a rope", map[string]any{"llama.rope.scaling.type": "spiral"}, ErrUnsupported, "spiral"},
		{"no heads", map[string]any{"llama.attention.head_count": uint32(0)}, ErrConfig, "head_count"},
		{"too many layers", map[string]any{"llama.block_count": uint32(1 << 20)}, ErrConfig, "block_count"},
		{"another shape", map[string]any{"llama.feed_forward_length": uint32(16)}, ErrTensor, "blk.0.ffn_gate.weight"},
	} {
		t.Run(c.name, func(t *testing.T) {
			values := maps.Clone(whole)
			maps.Copy(values, c.set)
			var meta []weightstest.Pair
			for _, key := range slices.Sorted(maps.Keys(values)) {
				meta = append(meta, weightstest.Pair{Key: key, Value: values[key]})
			}
			var tensors []weightstest.Tensor
			for _, name := range []string{"token_embd", "blk.0.attn_q", "blk.0.attn_k", "blk.0.attn_v", "blk.0.attn_output", "blk.0.ffn_gate", "blk.0.ffn_up", "blk.0.ffn_down"} {
				tensors = append(tensors, weightstest.Ramp(name+".weight", kernels.BF16, 1, 8, 8))
			}
			for _, name := range []string{"output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"} {
				tensors = append(tensors, weightstest.Ramp(name+".weight", kernels.F32, 1, 8))
			}
			path := t.TempDir() + "/model.gguf"
			if err := weightstest.WriteGGUF(path, meta, tensors); err != nil {
				t.Fatal(err)
			}
			w, err := weights.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			_, err = Describe(w)
			if !errors.Is(err, c.kind) || c.kind != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %v that says %q", err, c.kind, c.says)
			}
		})
	}
}

// Whatever a config.json says, it is an error or a Spec whose numbers fit.
func FuzzConfig(f *testing.F) {
	for _, text := range published {
		f.Add([]byte(text))
	}
	for _, folder := range goldenModels(f) {
		text, err := os.ReadFile(folder + "/config.json")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, describe := range huggingFace {
			c, err := parseConfig(data, func(string) bool { return false })
			if err != nil {
				return
			}
			s, err := describe(c)
			if err != nil || s.check() != nil {
				continue
			}
			for _, r := range s.Ropes {
				r.Table(64)
			}
			if s.Heads%s.KVHeads != 0 || len(s.Shapes().Windows) != len(s.Layers) {
				t.Fatalf("%+v", s)
			}
		}
	})
}
