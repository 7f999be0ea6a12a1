package model

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"

	"manta/kernels"
)

// sizeLimit bounds every size in a configuration, so that products of two fit.
const sizeLimit = 1 << 24

// maxLayers bounds the layers, maxHeads the heads and experts of one.
const maxLayers, maxHeads = 1 << 12, 1 << 12

// A config is a Hugging Face config.json (or an object within one). It notes
// which keys were read: at the end, a key that nobody read and that is not known
// to be without effect is refused by name. The first error sticks.
type config struct {
	place  string // for errors: "config.json", "config.json: rope_scaling"
	values map[string]json.RawMessage
	read   map[string]bool
	err    *error

	hasTensor func(name string) bool
}

func parseConfig(data []byte, hasTensor func(string) bool) (*config, error) {
	c := &config{place: "config.json", read: map[string]bool{}, err: new(error), hasTensor: hasTensor}
	if err := json.Unmarshal(data, &c.values); err != nil {
		return nil, fmt.Errorf("%w: config.json: %w", ErrConfig, err)
	}
	return c, nil
}

func (c *config) fail(kind error, key, format string, args ...any) {
	if *c.err == nil {
		*c.err = fmt.Errorf("%w: %s: %s: %s", kind, c.place, key, fmt.Sprintf(format, args...))
	}
}

// has tells whether a key is there and not null.
func (c *config) has(key string) bool {
	raw, ok := c.values[key]
	return ok && string(raw) != "null"
}

func (c *config) decode(key string, into any) bool {
	c.read[key] = true
	if !c.has(key) {
		return false
	}
	if err := json.Unmarshal(c.values[key], into); err != nil {
		c.fail(ErrConfig, key, "%v", err)
		return false
	}
	return true
}

func (c *config) float(key string, otherwise float64) float64 {
	value := otherwise
	if c.decode(key, &value) && (math.IsNaN(value) || math.IsInf(value, 0)) {
		c.fail(ErrConfig, key, "not a finite number")
	}
	return value
}

func (c *config) integer(key string, otherwise int) int {
	value := c.float(key, float64(otherwise))
	if value != math.Trunc(value) || math.Abs(value) > sizeLimit {
		c.fail(ErrConfig, key, "%v is no whole number up to %d", value, sizeLimit)
		return otherwise
	}
	return int(value)
}

// size is an integer that must be there, or have another to stand for it, and be
// greater than 0.
func (c *config) size(key string, otherwise int) int {
	n := c.integer(key, otherwise)
	if n < 1 {
		if c.has(key) {
			c.fail(ErrConfig, key, "is %d, must be at least 1", n)
		} else {
			c.fail(ErrConfig, key, "is missing")
		}
	}
	return max(n, 1)
}

// layers makes as many layers as a key says.
func (c *config) layers(key string) []Layer {
	n := c.size(key, 0)
	if n > maxLayers {
		c.fail(ErrConfig, key, "is %d, more than %d", n, maxLayers)
		n = 1
	}
	return make([]Layer, n)
}

func (c *config) flag(key string, otherwise bool) bool {
	value := otherwise
	c.decode(key, &value)
	return value
}

func (c *config) text(key, otherwise string) string {
	value := otherwise
	c.decode(key, &value)
	return value
}

func (c *config) floats(key string) []float64 {
	var value []float64
	c.decode(key, &value)
	return value
}

// object gives the object under a key, or nil.
func (c *config) object(key string) *config {
	var values map[string]json.RawMessage
	if !c.decode(key, &values) || len(values) == 0 {
		return nil
	}
	return &config{place: c.place + ": " + key, values: values, read: map[string]bool{}, err: c.err}
}

// must refuses a key that has a value other than the one that is done here.
func (c *config) must(key string, want any) {
	c.read[key] = true
	if !c.has(key) {
		return
	}
	if text, _ := json.Marshal(want); string(text) != string(c.values[key]) {
		c.fail(ErrUnsupported, key, "%s (only %s is)", c.values[key], text)
	}
}

func (c *config) activation(key, otherwise string) kernels.Activation {
	switch name := c.text(key, otherwise); name {
	case "silu", "swish":
		return kernels.SiLU
	case "gelu":
		return kernels.GELU
	case "gelu_new", "gelu_pytorch_tanh", "gelu_fast":
		return kernels.GELUTanh
	default:
		c.fail(ErrUnsupported, key, "activation %q", name)
		return kernels.Identity
	}
}

// finish refuses what nobody has read. Keys without effect on inference pass, and
// so do null, false and empty values: they ask for nothing.
func (c *config) finish() error {
	var unread []string
	for key, raw := range c.values {
		asks := !slices.Contains([]string{"null", "false", "[]", "{}", `""`}, string(raw))
		if asks && !c.read[key] && !withoutEffect(key) {
			unread = append(unread, key)
		}
	}
	if len(unread) > 0 && *c.err == nil {
		slices.Sort(unread)
		*c.err = fmt.Errorf("%w: %s asks for %s", ErrUnsupported, c.place, strings.Join(unread, ", "))
	}
	return *c.err
}

// withoutEffect tells whether a key changes nothing that is computed here:
// training, text (head's business), defaults of generation, provenance.
func withoutEffect(key string) bool {
	for _, end := range []string{"_token_id", "_token_ids", "_version", "dropout", "_pdrop", "_dropout_prob", "_aux_loss_coef", "_loss_coef"} {
		if strings.HasSuffix(key, end) {
			return true
		}
	}
	return strings.HasPrefix(key, "_") || strings.HasPrefix(key, "summary_") || slices.Contains(effectless, key)
}

// effectless is read only.
var effectless = []string{
	"architectures", "auto_map", "model_type", "transformers_version", "torch_dtype", "dtype",
	"use_cache", "cache_implementation", "initializer_range", "vocab_size_multiple", "model_max_length",
	"output_attentions", "output_hidden_states", "output_router_logits", "return_dict", "return_dict_in_generate",
	"id2label", "label2id", "problem_type", "finetuning_task", "task_specific_params", "tokenizer_class", "prefix",
	"is_decoder", "pretraining_tp", "n_special", "predict_special_tokens", "gradient_checkpointing", "router_jitter_noise", "chunk_size_feed_forward", "torchscript", "unsloth_fixed",
	// Defaults of generation, which old configurations carry.
	"max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty",
	"temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size",
	"encoder_no_repeat_ngram_size", "num_return_sequences", "output_scores", "remove_invalid_values",
	"exponential_decay_length_penalty", "tf_legacy_loss", "use_bfloat16",
}
