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

	"manta/runtime/weights/hub"
)

// Limits on files that are read whole, well above what is published.
const (
	maxConfig    = 16 << 20
	maxIndex     = 64 << 20
	maxTokenizer = 512 << 20
)

// openConfig reads config.json and generation_config.json.
func (m *Model) openConfig(folder string) error {
	m.folder = folder
	config, err := readFile(folder, "config.json", maxConfig)
	if err != nil {
		return err
	}
	if err := checkConfig(config); err != nil {
		return fmt.Errorf("config.json: %w", err)
	}
	m.config = config
	return m.openGeneration()
}

// openFolder opens config.json and the weights beside it.
func (m *Model) openFolder(folder string) error {
	err := m.openConfig(folder)
	if errors.Is(err, os.ErrNotExist) {
		return m.openBare(folder)
	}
	if err != nil {
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
		return fmt.Errorf("model.safetensors and model.safetensors.index.json: %w%s", ErrNotFound, hub.OtherWeights(fileNames(folder)))
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

// fileNames lists a folder; one that can't be read has none.
func fileNames(folder string) []string {
	entries, _ := os.ReadDir(folder) // the caller has already failed to read it
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// ggufFiles lists a folder's GGUF models, each by its first part.
func ggufFiles(folder string) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(escapeGlob(folder), "*.gguf"))
	return slices.DeleteFunc(files, laterSplit), err
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

func (m *Model) openIndex(folder string, data []byte) error {
	files, shards, err := hub.ParseIndex(data)
	if err != nil {
		return err
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
	for name, shard := range files {
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
