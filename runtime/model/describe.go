package model

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"manta/kernels"
	"manta/runtime/weights"
)

// A Source is an opened model. *weights.Model is one.
type Source interface {
	Tensor(name string) (kernels.Matrix, bool)
	Names() []string
	Config() []byte         // config.json, or nil for GGUF
	Meta() weights.Metadata // GGUF's
}

var _ Source = (*weights.Model)(nil)

// huggingFace gives the architecture of each model_type. Read only.
var huggingFace = map[string]func(*config) (*Spec, error){
	"gemma2":      gemma2,
	"gemma3_text": gemma3,
	"gpt2":        gpt2,
	"gpt_neox":    gptNeoX,
	"llama":       llama,
	"mistral":     mistral,
	"mixtral":     mixtral,
	"olmo2":       olmo2,
	"phi3":        phi3,
	"qwen2":       qwen2,
	"qwen3":       qwen3,
	"qwen3_moe":   qwen3MoE,
}

// Describe reads the configuration and checks every tensor against it. What the
// model asks for and is not done here is refused by name.
func Describe(w Source) (*Spec, error) {
	s, err := specOf(w)
	if err != nil {
		return nil, err
	}
	if err := s.check(); err != nil {
		return nil, err
	}
	return s, s.inspect(w)
}

func specOf(w Source) (*Spec, error) {
	config := w.Config()
	if config == nil {
		return describeGGUF(w)
	}
	return specOfConfig(config, func(name string) bool { _, ok := w.Tensor(name); return ok })
}

// FromConfig reads config.json alone. The Spec's Tensors are what the weights must
// hold; what depends on how they are stored is not known.
func FromConfig(config []byte) (*Spec, error) {
	s, err := specOfConfig(config, func(string) bool { return false })
	if err != nil {
		return nil, err
	}
	return s, s.check()
}

func specOfConfig(config []byte, hasTensor func(string) bool) (*Spec, error) {
	c, err := parseConfig(config, hasTensor)
	if err != nil {
		return nil, err
	}
	kind := c.text("model_type", "")
	describe, ok := huggingFace[kind]
	if !ok {
		return nil, fmt.Errorf("%w: config.json: model_type %q; this program knows %s", ErrUnsupported, kind, known(huggingFace))
	}
	return describe(c)
}

func known[V any](architectures map[string]V) string {
	return strings.Join(slices.Sorted(maps.Keys(architectures)), ", ")
}

// check tells whether the numbers of a configuration fit each other.
func (s *Spec) check() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrConfig, fmt.Sprintf(format, args...))
	}
	switch {
	case s.Context < 1 || s.Context > sizeLimit:
		return bad("a context of %d positions", s.Context)
	case s.KVHeads > s.Heads || s.Heads%s.KVHeads != 0:
		return bad("%d query heads over %d KV heads", s.Heads, s.KVHeads)
	case s.HeadDim > maxHeads || s.Heads > maxHeads:
		return bad("%d heads of %d", s.Heads, s.HeadDim)
	case !(s.Eps >= 0):
		return bad("norm epsilon %g", s.Eps)
	}
	for i, r := range s.Ropes {
		if r.Dim > s.HeadDim {
			return bad("rope %d turns %d values of heads of %d", i, r.Dim, s.HeadDim)
		}
	}
	for l, layer := range s.Layers {
		switch {
		case layer.Rope != NoRope && (layer.Rope < 0 || layer.Rope >= len(s.Ropes)):
			return bad("layer %d has rope %d of %d", l, layer.Rope, len(s.Ropes))
		case layer.Sparse && (s.Experts.Count < 1 || s.Experts.Used < 1 || s.Experts.Used > s.Experts.Count || s.Experts.FFN < 1 || s.Experts.Count > maxHeads):
			return bad("layer %d uses %d of %d experts of width %d", l, s.Experts.Used, s.Experts.Count, s.Experts.FFN)
		}
	}
	return nil
}
