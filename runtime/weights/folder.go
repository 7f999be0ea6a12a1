package weights

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Limits on files that are read whole, well above what is published.
const (
	maxConfig    = 16 << 20
	maxIndex     = 64 << 20
	maxTokenizer = 512 << 20
)

// openFolder opens config.json and the weights beside it.
func (m *Model) openFolder(folder string) error {
	m.folder = folder
	config, err := readFile(folder, "config.json", maxConfig)
	if errors.Is(err, os.ErrNotExist) {
		return m.openBare(folder)
	}
	if err != nil {
		return err
	}
	if err := checkConfig(config); err != nil {
		return fmt.Errorf("config.json: %w", err)
	}
	m.config = config
	if err := m.openGeneration(); err != nil {
		return err
	}
	index, err := readFile(folder, "model.safetensors.index.json", maxIndex)
	switch {
	case err == nil:
		return m.openIndex(folder, index)
	case !errors.Is(err, os.ErrNotExist):
		return err
	}
	_, err = m.addSafetensors(folder, "model.safetensors")
	if errors.Is(err, os.ErrNotExist) {
		if files, err := ggufFiles(folder); err == nil && len(files) > 0 { // GGUF repositories carry a config.json too
			m.config, m.generation, m.ends = nil, Generation{}, nil
			return m.openBare(folder)
		}
		return fmt.Errorf("model.safetensors and model.safetensors.index.json: %w%s", ErrNotFound, otherWeights(folder))
	}
	return err
}

// openBare opens a folder without config.json: one .gguf, or a reason.
func (m *Model) openBare(folder string) error {
	if _, err := os.Stat(filepath.Join(folder, "adapter_config.json")); err == nil {
		return fmt.Errorf("adapter_config.json: LoRA adapters are %w: merge the adapter into its base model", ErrUnsupported)
	}
	files, err := ggufFiles(folder)
	if err != nil {
		return err
	}
	switch len(files) {
	case 0:
		return fmt.Errorf("config.json: %w: give a folder in Hugging Face form or a .gguf file", ErrNotFound)
	case 1:
		m.folder = ""
		return m.openGGUF(files[0])
	default:
		for i := range files {
			files[i] = filepath.Base(files[i])
		}
		return fmt.Errorf("%d .gguf files: %w: name one of %s", len(files), ErrUnsupported, strings.Join(files, ", "))
	}
}

// ggufFiles lists a folder's GGUF models, each by its first part.
func ggufFiles(folder string) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(escapeGlob(folder), "*.gguf"))
	return slices.DeleteFunc(files, laterSplit), err
}

// otherWeights names weights of a form that is not read.
func otherWeights(folder string) string {
	for _, known := range []struct{ file, what string }{
		{"adapter_config.json", "a LoRA adapter: merge it into its base model"},
		{"consolidated.safetensors", "Mistral's own format: use the Hugging Face form"},
		{"pytorch_model.bin", "PyTorch pickles, which can run code: convert to safetensors"},
		{"pytorch_model.bin.index.json", "PyTorch pickles, which can run code: convert to safetensors"},
	} {
		if _, err := os.Stat(filepath.Join(folder, known.file)); err == nil {
			return fmt.Sprintf(" (the folder has %s, %s)", known.file, known.what)
		}
	}
	return ""
}

// checkConfig refuses what would be read wrong: quantized weights above all.
func checkConfig(config []byte) error {
	type quantized struct {
		Quantization *struct {
			Method string `json:"quant_method"`
		} `json:"quantization_config"`
		Compression *json.RawMessage `json:"compression_config"`
	}
	var c struct {
		quantized
		Text quantized `json:"text_config"`
	}
	if err := json.Unmarshal(config, &c); err != nil {
		return fmt.Errorf("%v: %w", err, ErrCorrupt)
	}
	for _, q := range []quantized{c.quantized, c.Text} {
		if q.Quantization != nil {
			return fmt.Errorf("quantization_config: quant_method %q is %w: use a BF16, F16 or GGUF version of the model", q.Quantization.Method, ErrUnsupported)
		}
		if q.Compression != nil {
			return fmt.Errorf("compression_config is %w: use a BF16, F16 or GGUF version of the model", ErrUnsupported)
		}
	}
	return nil
}

type safetensorsIndex struct {
	Weights map[string]string `json:"weight_map"`
}

// parseIndex gives the shards in alphabetical order. Names that leave the folder are refused.
func parseIndex(data []byte) (index safetensorsIndex, shards []string, err error) {
	if err := json.Unmarshal(data, &index); err != nil {
		return index, nil, fmt.Errorf("%v: %w", err, ErrCorrupt)
	}
	if len(index.Weights) == 0 {
		return index, nil, fmt.Errorf("weight_map is empty: %w", ErrCorrupt)
	}
	for name, shard := range index.Weights {
		if shard == "" || shard != filepath.Base(shard) || shard == "." || shard == ".." || strings.ContainsAny(shard, "\\\x00") {
			return index, nil, fmt.Errorf("weight_map: tensor %q: %q is not a file name: %w", name, shard, ErrCorrupt)
		}
		shards = append(shards, shard)
	}
	slices.Sort(shards)
	return index, slices.Compact(shards), nil
}

func (m *Model) openIndex(folder string, data []byte) error {
	index, shards, err := parseIndex(data)
	if err != nil {
		return fmt.Errorf("model.safetensors.index.json: %w", err)
	}
	skipped := map[string]bool{}
	for _, shard := range shards {
		buffers, err := m.addSafetensors(folder, shard)
		if errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("model.safetensors.index.json names %s: %w (is the download complete?)", shard, ErrNotFound)
		}
		if err != nil {
			return err
		}
		for _, name := range buffers {
			skipped[name] = true
		}
	}
	for name, shard := range index.Weights {
		t, ok := m.tensors[name]
		switch {
		case skipped[name]:
		case !ok:
			return fmt.Errorf("model.safetensors.index.json: tensor %q is not in %s: %w", name, shard, ErrCorrupt)
		case m.files[t.file].name != shard:
			return fmt.Errorf("model.safetensors.index.json: tensor %q lies in %s, not in %s: %w", name, m.files[t.file].name, shard, ErrCorrupt)
		}
	}
	return nil
}

// addSafetensors maps one file and gives the names of its buffers, which are not
// offered as tensors.
func (m *Model) addSafetensors(folder, name string) (buffers []string, err error) {
	file, err := m.mapPath(filepath.Join(folder, name))
	if err != nil {
		return nil, err
	}
	m.files[file].name = name
	s, err := parseSafetensors(m.files[file].data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	m.files[file].header = m.files[file].data[:s.dataStart]
	for _, t := range s.tensors {
		t.tensor.file = file
		if err := m.add(t.name, t.tensor); err != nil {
			return nil, err
		}
	}
	return s.skipped, nil
}

// readFile reads a small file of a model whole.
func readFile(folder, name string, limit int64) ([]byte, error) {
	f, err := os.Open(filepath.Join(folder, name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s: larger than %d bytes: %w", name, limit, ErrCorrupt)
	}
	return data, nil
}

// escapeGlob quotes what Glob would take for a pattern.
func escapeGlob(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

// laterSplit tells NAME-00002-of-00003.gguf, which its first part brings along.
func laterSplit(path string) bool {
	base := strings.TrimSuffix(filepath.Base(path), ".gguf")
	if len(base) < len("-00001-of-00001") {
		return false
	}
	var part, of int
	n, err := fmt.Sscanf(base[len(base)-len("-00001-of-00001"):], "-%05d-of-%05d", &part, &of)
	return err == nil && n == 2 && part > 1
}
