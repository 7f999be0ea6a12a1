package weights_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"manta/kernels"
	"manta/runtime/weights"
	"manta/runtime/weights/weightstest"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, path string) *weights.Model {
	t.Helper()
	m, err := weights.Open(path)
	must(t, err)
	t.Cleanup(func() { must(t, m.Close()) })
	return m
}

var llamaConfig = map[string]any{"model_type": "llama", "eos_token_id": 2}

// The bytes that Tensor gives are those that the file holds, whatever the form of
// the model, the type, or the number of dimensions.
func TestTensor(t *testing.T) {
	tensors := []weightstest.Tensor{
		weightstest.Ramp("matrix", kernels.F32, 1, 3, 8),
		weightstest.Ramp("vector", kernels.BF16, 2, 7),
		weightstest.Ramp("cube", kernels.F16, 3, 4, 2, 6),
	}
	quantized := append(slices.Clone(tensors),
		weightstest.Ramp("q8", kernels.Q8_0, 4, 5, 64),
		weightstest.Ramp("q41", kernels.Q4_1, 5, 2, 3, 32),
		weightstest.Ramp("q6k", kernels.Q6_K, 6, 2, 512))
	for _, form := range []struct {
		name    string
		tensors []weightstest.Tensor
		write   func(dir string) error
	}{
		{"safetensors", tensors, func(dir string) error {
			return weightstest.WriteSafetensors(dir, llamaConfig, tensors)
		}},
		{"sharded", tensors, func(dir string) error {
			return weightstest.WriteSharded(dir, llamaConfig, tensors[:1], tensors[1:])
		}},
		{"gguf", quantized, func(dir string) error {
			return weightstest.WriteGGUF(filepath.Join(dir, "m.gguf"), nil, quantized)
		}},
	} {
		t.Run(form.name, func(t *testing.T) {
			dir := t.TempDir()
			must(t, form.write(dir))
			m := open(t, dir)
			if len(m.Names()) != len(form.tensors) {
				t.Fatalf("names %v", m.Names())
			}
			for _, want := range form.tensors {
				got, ok := m.Tensor(want.Name)
				if !ok {
					t.Fatalf("%s: missing", want.Name)
				}
				cols := want.Shape[len(want.Shape)-1]
				if got.Type != want.DType || got.Cols != cols || got.Stride != want.DType.Bytes(cols) || got.Rows*got.Stride != len(want.Data) {
					t.Errorf("%s: %v %d×%d stride %d", want.Name, got.Type, got.Rows, got.Cols, got.Stride)
				}
				if !bytes.Equal(got.Data, want.Data) {
					t.Errorf("%s: other bytes", want.Name)
				}
				if shape, _ := m.Shape(want.Name); !slices.Equal(shape, want.Shape) {
					t.Errorf("%s: shape %v, want %v", want.Name, shape, want.Shape)
				}
			}
			if _, ok := m.Tensor("other"); ok {
				t.Error("a tensor that is not there was given")
			}
		})
	}
}

// A GGUF repository's config.json does not make its folder a Hugging Face model.
func TestConfigBesideGGUF(t *testing.T) {
	dir := t.TempDir()
	must(t, weightstest.WriteJSON(filepath.Join(dir, "config.json"), llamaConfig))
	must(t, weightstest.WriteGGUF(filepath.Join(dir, "m.gguf"), nil, []weightstest.Tensor{weightstest.Ramp("a", kernels.F32, 0, 2)}))
	if m := open(t, dir); m.Format() != weights.GGUF || m.Config() != nil || len(m.EndTokens()) != 0 {
		t.Errorf("format %v, config %s, end tokens %v", m.Format(), m.Config(), m.EndTokens())
	}
}

// A safetensors header of odd length puts numbers at odd addresses; kernels get
// them at even ones.
func TestUnpaddedHeader(t *testing.T) {
	dir := t.TempDir()
	must(t, weightstest.WriteJSON(filepath.Join(dir, "config.json"), llamaConfig))
	header := `{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}`
	for len(header)%4 != 1 {
		header += " "
	}
	file := append([]byte{byte(len(header)), 0, 0, 0, 0, 0, 0, 0}, header...)
	file = append(file, 1, 2, 3, 4, 5, 6, 7, 8)
	must(t, os.WriteFile(filepath.Join(dir, "model.safetensors"), file, 0o644))
	got, _ := open(t, dir).Tensor("a")
	if !bytes.Equal(got.Data, []byte{1, 2, 3, 4, 5, 6, 7, 8}) {
		t.Errorf("data %v", got.Data)
	}
}

// What the project does not do is refused by its name, with what to do instead.
func TestOpenRefuses(t *testing.T) {
	weight := []weightstest.Tensor{weightstest.Ramp("w", kernels.F32, 0, 2, 2)}
	for _, c := range []struct {
		name  string
		write func(dir string) error
		is    error
		says  string
	}{
		{"nothing there", func(dir string) error { return os.Remove(dir) }, weights.ErrNotFound, "config.json or a .gguf"},
		{"empty folder", func(string) error { return nil }, weights.ErrNotFound, "config.json"},
		{"no weights", func(dir string) error {
			return weightstest.WriteJSON(filepath.Join(dir, "config.json"), llamaConfig)
		}, weights.ErrNotFound, "model.safetensors"},
		{"pickles", func(dir string) error {
			return errors.Join(weightstest.WriteJSON(filepath.Join(dir, "config.json"), llamaConfig),
				os.WriteFile(filepath.Join(dir, "pytorch_model.bin"), nil, 0o644))
		}, weights.ErrNotFound, "convert them to safetensors"},
		{"lora", func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "adapter_config.json"), []byte("{}"), 0o644)
		}, weights.ErrUnsupported, "merge the adapter"},
		{"gptq", func(dir string) error {
			return weightstest.WriteSafetensors(dir, map[string]any{"quantization_config": map[string]any{"quant_method": "gptq"}}, weight)
		}, weights.ErrUnsupported, `quant_method "gptq"`},
		{"awq in the text part", func(dir string) error {
			return weightstest.WriteSafetensors(dir, map[string]any{"text_config": map[string]any{"quantization_config": map[string]any{"quant_method": "awq"}}}, weight)
		}, weights.ErrUnsupported, `quant_method "awq"`},
		{"broken config", func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "config.json"), []byte("{"), 0o644)
		}, weights.ErrCorrupt, "config.json"},
		{"broken end token", func(dir string) error {
			return weightstest.WriteSafetensors(dir, map[string]any{"eos_token_id": "two"}, weight)
		}, weights.ErrCorrupt, "neither a token id"},
		{"several gguf", func(dir string) error {
			return errors.Join(weightstest.WriteGGUF(filepath.Join(dir, "a.gguf"), nil, weight),
				weightstest.WriteGGUF(filepath.Join(dir, "b.gguf"), nil, weight))
		}, weights.ErrUnsupported, "name one of a.gguf, b.gguf"},
		{"missing shard", func(dir string) error {
			return errors.Join(weightstest.WriteSharded(dir, llamaConfig, weight),
				os.Remove(filepath.Join(dir, "model-00001-of-00001.safetensors")))
		}, weights.ErrNotFound, "model-00001-of-00001.safetensors"},
		{"missing tensor", func(dir string) error {
			return errors.Join(weightstest.WriteSharded(dir, llamaConfig, weight),
				weightstest.WriteJSON(filepath.Join(dir, "model.safetensors.index.json"),
					map[string]any{"weight_map": map[string]string{"v": "model-00001-of-00001.safetensors"}}))
		}, weights.ErrCorrupt, `"v"`},
		{"shard outside", func(dir string) error {
			return errors.Join(weightstest.WriteSharded(dir, llamaConfig, weight),
				weightstest.WriteJSON(filepath.Join(dir, "model.safetensors.index.json"),
					map[string]any{"weight_map": map[string]string{"w": "../secret"}}))
		}, weights.ErrCorrupt, "not a file name"},
		{"tensor twice", func(dir string) error {
			other := weightstest.Ramp("v", kernels.F32, 0, 2)
			return weightstest.WriteSharded(dir, llamaConfig, append(weight[:1:1], other), weight)
		}, weights.ErrCorrupt, "twice"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			must(t, c.write(dir))
			m, err := weights.Open(dir)
			if m != nil || !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %v saying %q", err, c.is, c.says)
			}
		})
	}
}

// Equal content has an equal digest wherever it lies; any change of a header or of
// a tensor's ends changes it.
func TestDigest(t *testing.T) {
	write := func(name string, seed byte) [32]byte {
		path := filepath.Join(t.TempDir(), name)
		must(t, weightstest.WriteGGUF(path, []weightstest.Pair{{Key: "k", Value: "v"}},
			[]weightstest.Tensor{weightstest.Ramp("a", kernels.F32, 0, 4, 4), weightstest.Ramp("b", kernels.F32, seed, 4, 4)}))
		return open(t, path).Digest()
	}
	one := write("one.gguf", 1)
	if write("two.gguf", 1) != one {
		t.Error("the same content under another name has another digest")
	}
	if write("one.gguf", 2) == one {
		t.Error("other weights have the same digest")
	}
}

// Prefetch reports every byte once and stops when it is told to.
func TestPrefetch(t *testing.T) {
	dir := t.TempDir()
	must(t, weightstest.WriteSafetensors(dir, llamaConfig, []weightstest.Tensor{weightstest.Ramp("a", kernels.F32, 0, 64, 64)}))
	m := open(t, dir)
	var last weights.Progress
	must(t, m.Prefetch(context.Background(), func(p weights.Progress) { last = p }))
	if last.Done != last.Total || last.Total < 64*64*4 || last.File != "model.safetensors" {
		t.Errorf("progress %+v", last)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := m.Prefetch(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled prefetch gave %v", err)
	}
}

// A model split over several GGUF files opens from its first one, whole or not at all.
func TestSplitGGUF(t *testing.T) {
	dir := t.TempDir()
	meta := []weightstest.Pair{{Key: "split.count", Value: uint32(2)}, {Key: "split.tensors.count", Value: int32(2)}}
	first, second := filepath.Join(dir, "m-00001-of-00002.gguf"), filepath.Join(dir, "m-00002-of-00002.gguf")
	must(t, weightstest.WriteGGUF(first, meta, []weightstest.Tensor{weightstest.Ramp("a", kernels.F32, 0, 2)}))
	must(t, weightstest.WriteGGUF(second, nil, []weightstest.Tensor{weightstest.Ramp("b", kernels.F32, 0, 2)}))
	for _, path := range []string{first, dir} {
		if names := open(t, path).Names(); !slices.Equal(names, []string{"a", "b"}) {
			t.Errorf("%s: names %v", path, names)
		}
	}
	must(t, os.Remove(second))
	if _, err := weights.Open(first); err == nil || !strings.Contains(err.Error(), "part 2 of 2") {
		t.Errorf("without its second part: %v", err)
	}
}
