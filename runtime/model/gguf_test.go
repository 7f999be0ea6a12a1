package model

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"manta/kernels"
	"manta/kernels/ref"
	"manta/parallel/shard"
	"manta/runtime/weights"
	"manta/runtime/weights/weightstest"
)

// A converter writes a Hugging Face model as llama.cpp's convert_hf_to_gguf does.
type converter struct {
	t       *testing.T
	source  *weights.Model
	spec    *Spec
	tensors []weightstest.Tensor
}

// add copies a tensor in float32, its rows and values rearranged by change.
func (c *converter) add(name, from string, change func(rows [][]float32) [][]float32) {
	c.t.Helper()
	m, ok := c.source.Tensor(from)
	if !ok {
		c.t.Fatalf("%s is missing", from)
	}
	rows := make([][]float32, m.Rows)
	for r := range rows {
		rows[r] = make([]float32, m.Cols)
		ref.Dequantize(m, r, rows[r])
	}
	if change != nil {
		rows = change(rows)
	}
	c.addRows(name, rows)
}

func (c *converter) addRows(name string, rows [][]float32) {
	var values []float32
	for _, r := range rows {
		values = append(values, r...)
	}
	shape := []int{len(rows), len(rows[0])}
	if len(rows) == 1 {
		shape = shape[1:]
	}
	c.tensors = append(c.tensors, weightstest.F32(name, shape, values...))
}

// permute reorders the rows of each head from halves to pairs, as the converter
// does for llama (LlamaModel.permute).
func permute(heads int) func([][]float32) [][]float32 {
	return func(rows [][]float32) [][]float32 {
		var out [][]float32
		d := len(rows) / heads
		for h := range heads {
			for i := range d / 2 {
				out = append(out, rows[h*d+i], rows[h*d+i+d/2])
			}
		}
		return out
	}
}

// regroup brings GPT-NeoX's rows, head by head q k v, to all q, all k, all v.
func regroup(heads int) func([][]float32) [][]float32 {
	return func(rows [][]float32) [][]float32 {
		if len(rows) == 1 { // a bias: regroup its values
			var columns [][]float32
			for _, v := range rows[0] {
				columns = append(columns, []float32{v})
			}
			return transposed(regroup(heads)(columns))
		}
		var out [][]float32
		d := len(rows) / heads / 3
		for part := range 3 {
			for h := range heads {
				out = append(out, rows[(3*h+part)*d:(3*h+part+1)*d]...)
			}
		}
		return out
	}
}

func transposed(rows [][]float32) [][]float32 {
	out := make([][]float32, len(rows[0]))
	for _, r := range rows {
		for i, v := range r {
			out[i] = append(out[i], v)
		}
	}
	return out
}

func plusOne(rows [][]float32) [][]float32 {
	for _, r := range rows {
		for i := range r {
			r[i]++
		}
	}
	return rows
}

// convert writes the GGUF and gives its path.
func (c *converter) convert(architecture string, meta []weightstest.Pair) string {
	s, n := c.spec, ggufNames()
	norm := func(name, from string) {
		if from == "" {
			return
		}
		var change func([][]float32) [][]float32
		if s.NormShift == 1 {
			change = plusOne
		}
		c.add(name+".weight", from+".weight", change)
		if s.NormBias {
			c.add(name+".bias", from+".bias", nil)
		}
	}
	product := func(name, from string, bias bool, change func([][]float32) [][]float32) {
		if s.Transposed {
			change = transposed
		}
		c.add(name+".weight", from+".weight", change)
		if bias {
			if s.Transposed {
				change = nil
			}
			c.add(name+".bias", from+".bias", change)
		}
	}
	c.add("token_embd.weight", s.Names.Embedding+".weight", nil)
	if s.Names.Positions != "" {
		c.add("position_embd.weight", s.Names.Positions+".weight", nil)
	}
	if !s.Tied {
		c.add("output.weight", s.Names.Output+".weight", nil)
	}
	norm("output_norm", s.Names.FinalNorm)
	for l := range s.Layers {
		from := func(name string) string { return at(name, l, 0) }
		blk := func(name string) string { return fmt.Sprintf("blk.%d.%s", l, name) }
		norm(blk("attn_norm"), from(s.Names.AttentionNorm))
		norm(blk("ffn_norm"), from(s.Names.FFNNorm))
		norm(blk("post_attention_norm"), from(s.Names.AttentionPostNorm))
		norm(blk("post_ffw_norm"), from(s.Names.FFNPostNorm))
		norm(blk("attn_q_norm"), from(s.Names.QNorm))
		norm(blk("attn_k_norm"), from(s.Names.KNorm))
		var q, k, qkv func([][]float32) [][]float32
		if architecture == "llama" {
			q, k = permute(s.Heads), permute(s.KVHeads)
		}
		if s.Fused == FusedHead {
			qkv = regroup(s.Heads)
		}
		if s.Fused == Separate {
			product(at(n.Q, l, 0), from(s.Names.Q), s.QKVBias, q)
			product(at(n.K, l, 0), from(s.Names.K), s.QKVBias, k)
			product(at(n.V, l, 0), from(s.Names.V), s.QKVBias, nil)
		} else {
			product(blk("attn_qkv"), from(s.Names.QKV), s.QKVBias, qkv)
		}
		product(at(n.Out, l, 0), from(s.Names.Out), s.OutBias, nil)
		if s.Layers[l].Sparse {
			c.experts(l)
			continue
		}
		switch {
		case s.Names.GateUp != "":
			product(blk("ffn_up"), from(s.Names.GateUp), false, nil)
		case s.Gated:
			product(blk("ffn_gate"), from(s.Names.Gate), s.FFNBias, nil)
			fallthrough
		default:
			product(blk("ffn_up"), from(s.Names.Up), s.FFNBias, nil)
		}
		product(blk("ffn_down"), from(s.Names.Down), s.FFNBias, nil)
	}
	meta = append([]weightstest.Pair{{Key: "general.architecture", Value: architecture}}, meta...)
	path := filepath.Join(c.t.TempDir(), "model.gguf")
	if err := weightstest.WriteGGUF(path, meta, c.tensors); err != nil {
		c.t.Fatal(err)
	}
	return path
}

func (c *converter) experts(l int) {
	s := c.spec
	c.add(fmt.Sprintf("blk.%d.ffn_gate_inp.weight", l), at(s.Names.Router, l, 0)+".weight", nil)
	for _, kind := range []struct{ name, from string }{
		{"ffn_gate_exps", s.Names.ExpertGate}, {"ffn_up_exps", s.Names.ExpertUp}, {"ffn_down_exps", s.Names.ExpertDown},
	} {
		var data weightstest.Tensor
		for e := range s.Experts.Count {
			c.add("part", at(kind.from, l, e)+".weight", nil)
			part := c.tensors[len(c.tensors)-1]
			c.tensors = c.tensors[:len(c.tensors)-1]
			data.Data = append(data.Data, part.Data...)
			data.Shape = append([]int{s.Experts.Count}, part.Shape...)
		}
		data.Name = fmt.Sprintf("blk.%d.%s.weight", l, kind.name)
		c.tensors = append(c.tensors, data)
	}
}

// families maps model_type to llama.cpp's name for it.
var families = map[string]string{
	"llama": "llama", "mistral": "llama", "mixtral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "qwen3_moe": "qwen3moe",
	"phi3": "phi3", "gemma2": "gemma2", "gemma3_text": "gemma3", "olmo2": "olmo2", "gpt2": "gpt2", "gpt_neox": "gptneox",
}

// metadataOf writes what the converter would of a Spec.
func (c *converter) metadataOf(architecture string) []weightstest.Pair {
	s := c.spec
	var pairs []weightstest.Pair
	set := func(name string, value any) {
		pairs = append(pairs, weightstest.Pair{Key: architecture + "." + name, Value: value})
	}
	set("embedding_length", uint32(s.Hidden))
	set("block_count", uint32(len(s.Layers)))
	set("feed_forward_length", uint32(s.FFN))
	set("attention.head_count", uint32(s.Heads))
	set("attention.head_count_kv", uint32(s.KVHeads))
	set("attention.key_length", uint32(s.HeadDim))
	set("attention.value_length", uint32(s.HeadDim))
	if s.Norm == kernels.RMSNorm {
		set("attention.layer_norm_rms_epsilon", s.Eps)
	} else {
		set("attention.layer_norm_epsilon", s.Eps)
	}
	context := s.Context
	if len(s.Ropes) > 0 {
		r := s.Ropes[0]
		context = r.Trained
		set("rope.dimension_count", uint32(r.Dim))
		set("rope.freq_base", float32(r.Base))
		switch r.Kind {
		case RopeLinear, RopeYarn:
			set("rope.scaling.type", string(r.Kind))
			set("rope.scaling.factor", float32(r.Factor))
			set("rope.scaling.original_context_length", uint32(r.Original))
		case RopeLlama3: // as divisors of the plain frequencies
			plain, _ := Rope{Kind: RopeDefault, Dim: r.Dim, Base: r.Base}.Table(1)
			scaled, _ := r.Table(1)
			for i := range plain {
				plain[i] /= scaled[i]
			}
			c.addRows("rope_freqs.weight", [][]float32{plain})
		case RopeLongRope:
			_, attention := r.Table(1)
			set("rope.scaling.attn_factor", attention)
			set("rope.scaling.original_context_length", uint32(r.Original))
			c.addRows("rope_factors_long.weight", [][]float32{narrowed(r.Long)})
			c.addRows("rope_factors_short.weight", [][]float32{narrowed(r.Short)})
		}
	}
	set("context_length", uint32(context))
	for _, l := range s.Layers {
		if l.Window > 0 {
			set("attention.sliding_window", uint32(l.Window))
			break
		}
	}
	if s.AttentionCap > 0 {
		set("attn_logit_softcapping", s.AttentionCap)
		set("final_logit_softcapping", s.LogitCap)
	}
	if s.Experts.Count > 0 {
		set("expert_count", uint32(s.Experts.Count))
		set("expert_used_count", uint32(s.Experts.Used))
		set("expert_feed_forward_length", uint32(s.Experts.FFN))
	}
	if strings.HasPrefix(architecture, "gptneox") {
		set("use_parallel_residual", s.ParallelSums)
	}
	return pairs
}

func narrowed(wide []float64) []float32 {
	out := make([]float32, len(wide))
	for i, v := range wide {
		out[i] = float32(v)
	}
	return out
}

// A model converted to GGUF (weights kept in float32) is the same model: its
// references hold. gemma2's 24 in place of the head's size does not survive the
// format, which has no key for it, nor does gemma3's short pattern of layers.
func TestGoldenModelsAsGGUF(t *testing.T) {
	for _, folder := range goldenModels(t) {
		name := filepath.Base(folder)
		t.Run(name, func(t *testing.T) {
			w, err := weights.Open(folder)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			s, err := Describe(w)
			if err != nil {
				t.Fatal(err)
			}
			architecture := families[s.Architecture]
			c := &converter{t: t, source: w, spec: s}
			path := c.convert(architecture, c.metadataOf(architecture))
			converted, err := weights.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer converted.Close()
			again, err := Describe(converted)
			if err != nil {
				t.Fatal(err)
			}
			if name == "gemma2-4" && again.AttentionScale != inverseRoot(float64(s.HeadDim)) || name != "gemma2-4" && again.AttentionScale != s.AttentionScale {
				t.Fatalf("attention is scaled by %g, want %g", again.AttentionScale, s.AttentionScale)
			}
			if again.Context != s.Context {
				t.Errorf("context of %d, want %d", again.Context, s.Context)
			}
			again.AttentionScale = s.AttentionScale
			if strings.HasPrefix(name, "gemma3") {
				again.Layers = s.Layers
			}
			g := readGolden(t, folder)
			again.RoundFrequencies(g.Frequencies(s.stored.kind))
			r := clusterOf(t, converted, again, kernels.F32, testContext, shard.Layout{Tensor: 1, Pipeline: 1})
			for i, p := range g.Prompts {
				sequence := r.sequence(p.IDs)
				last := r.prompt(sequence, 64)
				compare(t, fmt.Sprintf("prompt %d", i), last, p.LogitsLast)
				checkGreedy(t, r, sequence, last, p.Greedy[:4], p.Margin)
			}
		})
	}
}
