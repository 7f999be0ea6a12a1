package hub

import (
	"encoding/json"
	"fmt"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// File names of the Hugging Face form.
const (
	configFile = "config.json"
	weightFile = "model.safetensors"
	indexFile  = "model.safetensors.index.json"
)

// besides are the small files that a model needs beside its weights.
var besides = []string{configFile, "generation_config.json", "tokenizer.json", "tokenizer_config.json",
	"special_tokens_map.json", "added_tokens.json", "tokenizer.model", "vocab.json", "merges.txt",
	"chat_template.jinja", "chat_template.json"}

// A choice is what of a repository is fetched: one weight format.
type choice struct {
	gguf  string   // the first or only GGUF file; "": Hugging Face form
	small []string // fetched first
	index bool     // the weights are those that indexFile names
	heavy []string // weights, where index is false
}

// choose picks safetensors before GGUF, unless a variant asks for GGUF.
func choose(names []string, variant string) (choice, error) {
	has := func(name string) bool { return slices.Contains(names, name) }
	var c choice
	if variant == "" && has(configFile) && (has(weightFile) || has(indexFile)) {
		for _, name := range besides {
			if has(name) {
				c.small = append(c.small, name)
			}
		}
		for _, name := range names {
			if path.Dir(name) == "additional_chat_templates" && path.Ext(name) == ".jinja" {
				c.small = append(c.small, name)
			}
		}
		if c.index = has(indexFile); c.index {
			c.small = append(c.small, indexFile)
		} else {
			c.heavy = []string{weightFile}
		}
		return c, nil
	}
	models := ggufModels(names)
	if len(models) == 0 {
		return c, fmt.Errorf("no weights that are read here%s: %w: safetensors (with config.json) and GGUF are", OtherWeights(names), ErrUnsupported)
	}
	fit := models
	if variant != "" {
		fit = slices.DeleteFunc(slices.Clone(models), func(m string) bool { return !matches(m, variant) })
	}
	switch {
	case len(fit) == 0:
		return c, fmt.Errorf("no GGUF file is a %q: %w: there is %s", variant, ErrNotFound, strings.Join(models, ", "))
	case len(fit) > 1:
		return c, fmt.Errorf("%d GGUF models: %w together: add :VARIANT (such as :Q4_K_M) or :FILE to name one of %s", len(fit), ErrUnsupported, strings.Join(fit, ", "))
	}
	c.gguf, c.heavy = fit[0], parts(names, fit[0])
	return c, nil
}

var splitName = regexp.MustCompile(`^(.*)-(\d{5})-of-(\d{5})\.gguf$`)

// ggufModels lists GGUF files that are models: of split ones the first part, and
// neither vision projectors nor importance matrices.
func ggufModels(names []string) []string {
	var models []string
	for _, name := range names {
		base := strings.ToLower(path.Base(name))
		if path.Ext(base) != ".gguf" || strings.Contains(base, "mmproj") || strings.Contains(base, "imatrix") {
			continue
		}
		if m := splitName.FindStringSubmatch(name); m != nil && m[2] != "00001" {
			continue
		}
		models = append(models, name)
	}
	slices.Sort(models)
	return models
}

// parts gives all files of a split model, whether the repository has them or not:
// a missing one is an error when it is fetched.
func parts(names []string, model string) []string {
	m := splitName.FindStringSubmatch(model)
	if m == nil {
		return []string{model}
	}
	var count int
	if _, err := fmt.Sscanf(m[3], "%d", &count); err != nil || count < 1 {
		return []string{model}
	}
	list := make([]string, 0, min(count, len(names)+1))
	for i := 1; i <= min(count, len(names)+1); i++ {
		list = append(list, fmt.Sprintf("%s-%05d-of-%s.gguf", m[1], i, m[3]))
	}
	return list
}

// matches tells whether a file is the variant: its name, or a name in which the
// variant stands between separators. Q4_K does not match Q4_K_M.
func matches(name, variant string) bool {
	if strings.EqualFold(name, variant) || strings.EqualFold(path.Base(name), variant) {
		return true
	}
	pattern := `(?i)(^|[-._/])` + regexp.QuoteMeta(variant) + `([-./]|$)`
	ok, err := regexp.MatchString(pattern, name)
	return err == nil && ok
}

// OtherWeights says which weights of a form that is not read are among names of
// files, and what to do; "" for none.
func OtherWeights(names []string) string {
	for _, known := range []struct{ name, what string }{
		{"adapter_config.json", "a LoRA adapter: merge it into its base model"},
		{"consolidated.safetensors", "Mistral's own format: use the Hugging Face form"},
		{"pytorch_model.bin", "PyTorch pickles, which can run code: convert them to safetensors"},
		{"pytorch_model.bin.index.json", "PyTorch pickles, which can run code: convert them to safetensors"},
	} {
		if slices.Contains(names, known.name) {
			return " (there is " + known.name + ", " + known.what + ")"
		}
	}
	return ""
}

// ParseIndex reads a model.safetensors.index.json: which file has each tensor, and
// the files in alphabetical order. Names that leave the folder are refused.
func ParseIndex(index []byte) (files map[string]string, shards []string, err error) {
	var content struct {
		Weights map[string]string `json:"weight_map"`
	}
	if err := json.Unmarshal(index, &content); err != nil {
		return nil, nil, fmt.Errorf("%s: %v: %w", indexFile, err, ErrCorrupt)
	}
	for tensor, file := range content.Weights {
		if path.Base(file) != file || !safeName(file) {
			return nil, nil, fmt.Errorf("%s: tensor %q: %q is not a file name: %w", indexFile, tensor, file, ErrCorrupt)
		}
		shards = append(shards, file)
	}
	if len(shards) == 0 {
		return nil, nil, fmt.Errorf("%s: weight_map is empty: %w", indexFile, ErrCorrupt)
	}
	slices.Sort(shards)
	return content.Weights, slices.Compact(shards), nil
}

// safeName tells whether a name from the network may become a file below a folder.
func safeName(name string) bool {
	return name != "" && name != "." && len(name) < 1024 && filepath.IsLocal(name) && path.Clean(name) == name &&
		!strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == '\\' || r == 0x7f })
}
