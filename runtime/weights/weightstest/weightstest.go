// Package weightstest writes small models for tests: folders in Hugging Face form
// and GGUF files. It belongs to the tests of whoever opens models and never runs
// in the program.
package weightstest

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"

	"manta/kernels"
	"manta/kernels/ref"
)

// A Tensor is written as it is: Data holds Shape's values in DType, row-major,
// the outermost dimension first (GGUF's are reversed by the writer).
type Tensor struct {
	Name  string
	DType kernels.DType
	Shape []int
	Data  []byte
}

// F32 gives a float32 tensor.
func F32(name string, shape []int, values ...float32) Tensor {
	var data []byte
	for _, v := range values {
		data = binary.LittleEndian.AppendUint32(data, math.Float32bits(v))
	}
	return Tensor{Name: name, DType: kernels.F32, Shape: shape, Data: data}
}

// Ramp gives a tensor of any type whose bytes count up from seed. Its values mean
// nothing; its bytes tell whether they were found.
func Ramp(name string, kind kernels.DType, seed byte, shape ...int) Tensor {
	n := 1
	for _, d := range shape {
		n *= d
	}
	data := make([]byte, kind.Bytes(n))
	for i := range data {
		data[i] = seed + byte(i)
	}
	return Tensor{Name: name, DType: kind, Shape: shape, Data: data}
}

// Random gives a tensor of F32, F16 or BF16 with normally distributed values.
func Random(r *rand.Rand, name string, kind kernels.DType, mean, deviation float32, shape ...int) Tensor {
	n := 1
	for _, d := range shape {
		n *= d
	}
	var data []byte
	for range n {
		v := mean + deviation*float32(r.NormFloat64())
		switch kind {
		case kernels.F16:
			data = binary.LittleEndian.AppendUint16(data, ref.ToHalf(v))
		case kernels.BF16:
			data = binary.LittleEndian.AppendUint16(data, ref.ToBrain(v))
		default:
			data = binary.LittleEndian.AppendUint32(data, math.Float32bits(v))
		}
	}
	return Tensor{Name: name, DType: kind, Shape: shape, Data: data}
}

// WriteSafetensors writes config.json and model.safetensors into dir. config is
// marshalled; nil writes no config.json.
func WriteSafetensors(dir string, config any, tensors []Tensor) error {
	if config != nil {
		if err := WriteJSON(filepath.Join(dir, "config.json"), config); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, "model.safetensors"), Safetensors(tensors), 0o644)
}

// WriteSharded writes config.json, one shard for each list of tensors, and the index.
func WriteSharded(dir string, config any, shards ...[]Tensor) error {
	if err := WriteJSON(filepath.Join(dir, "config.json"), config); err != nil {
		return err
	}
	index := map[string]string{}
	for i, tensors := range shards {
		name := fmt.Sprintf("model-%05d-of-%05d.safetensors", i+1, len(shards))
		for _, t := range tensors {
			index[t.Name] = name
		}
		if err := os.WriteFile(filepath.Join(dir, name), Safetensors(tensors), 0o644); err != nil {
			return err
		}
	}
	return WriteJSON(filepath.Join(dir, "model.safetensors.index.json"), map[string]any{"weight_map": index})
}

// WriteJSON writes a value as a JSON file.
func WriteJSON(path string, value any) error {
	data, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o644)
}

// Bytes gives the texts that stand for the 256 bytes in byte-level vocabularies
// (Radford et al. 2019, §2.2).
func Bytes() []string {
	var texts []string
	next := rune(256)
	for b := range 256 {
		r := rune(b)
		if !(b >= '!' && b <= '~' || b >= 0xa1 && b <= 0xac || b >= 0xae) {
			r, next = next, next+1
		}
		texts = append(texts, string(r))
	}
	return texts
}

// WriteByteTokenizer makes tokenizer.json: a token for each byte, and others that no
// text becomes.
func WriteByteTokenizer(dir string, vocabulary int) error {
	ids := map[string]int{}
	for b, text := range Bytes() {
		ids[text] = b
	}
	for id := 256; id < vocabulary; id++ {
		ids[fmt.Sprintf("<%d>", id)] = id
	}
	type object = map[string]any
	return WriteJSON(filepath.Join(dir, "tokenizer.json"), object{
		"version": "1.0", "added_tokens": []any{}, "normalizer": nil, "post_processor": nil,
		"pre_tokenizer": object{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
		"decoder":       object{"type": "ByteLevel"},
		"model":         object{"type": "BPE", "vocab": ids, "merges": []string{}},
	})
}

// CopyWithBytes copies a model's folder, of safetensors and without a tokenizer, and
// adds one of single bytes.
func CopyWithBytes(from, to string) error {
	var config struct {
		Vocabulary int `json:"vocab_size"`
	}
	for _, name := range []string{"config.json", "generation_config.json", "model.safetensors"} {
		data, err := os.ReadFile(filepath.Join(from, name))
		if err == nil && name == "config.json" {
			err = json.Unmarshal(data, &config)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(to, name), data, 0o600)
		}
		if err != nil {
			return err
		}
	}
	return WriteByteTokenizer(to, config.Vocabulary)
}

// Safetensors gives the bytes of a file.
func Safetensors(tensors []Tensor) []byte {
	var header, body bytes.Buffer
	header.WriteString(`{"__metadata__":{"format":"pt"}`)
	for _, t := range tensors {
		entry, err := json.Marshal(map[string]any{
			"dtype": t.DType.String(), "shape": append([]int{}, t.Shape...),
			"data_offsets": []int{body.Len(), body.Len() + len(t.Data)},
		})
		if err != nil {
			panic(err) // strings and integers always marshal
		}
		fmt.Fprintf(&header, ",%q:%s", t.Name, entry)
		body.Write(t.Data)
	}
	header.WriteByte('}')
	for header.Len()%8 != 0 {
		header.WriteByte(' ')
	}
	file := binary.LittleEndian.AppendUint64(nil, uint64(header.Len()))
	return append(append(file, header.Bytes()...), body.Bytes()...)
}

// A Pair is one metadata entry. Value is uint32, int32, uint64, float32, bool,
// string, []string, []int32, []float32 or []bool.
type Pair struct {
	Key   string
	Value any
}

// WriteGGUF writes a version 3 file.
func WriteGGUF(path string, meta []Pair, tensors []Tensor) error {
	data, err := GGUF(meta, tensors)
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o644)
}

var ggufCode = map[kernels.DType]uint32{
	kernels.F32: 0, kernels.F16: 1, kernels.BF16: 30, kernels.Q4_0: 2, kernels.Q4_1: 3, kernels.Q5_0: 6,
	kernels.Q5_1: 7, kernels.Q8_0: 8, kernels.Q4_K: 12, kernels.Q5_K: 13, kernels.Q6_K: 14,
}

// GGUF gives the bytes of a version 3 file with the usual alignment of 32.
func GGUF(meta []Pair, tensors []Tensor) ([]byte, error) {
	const alignment = 32
	e := binary.LittleEndian
	b := append([]byte("GGUF"), 3, 0, 0, 0)
	b = e.AppendUint64(b, uint64(len(tensors)))
	b = e.AppendUint64(b, uint64(len(meta)))
	for _, p := range meta {
		b = appendString(b, p.Key)
		var err error
		if b, err = appendValue(b, p.Value); err != nil {
			return nil, fmt.Errorf("weightstest: %s: %w", p.Key, err)
		}
	}
	offset := 0
	for _, t := range tensors {
		b = appendString(b, t.Name)
		b = e.AppendUint32(b, uint32(len(t.Shape)))
		for i := range t.Shape {
			b = e.AppendUint64(b, uint64(t.Shape[len(t.Shape)-1-i]))
		}
		b = e.AppendUint32(b, ggufCode[t.DType])
		b = e.AppendUint64(b, uint64(offset))
		offset += (len(t.Data) + alignment - 1) / alignment * alignment
	}
	pad := func() {
		for len(b)%alignment != 0 {
			b = append(b, 0)
		}
	}
	pad()
	for _, t := range tensors {
		b = append(b, t.Data...)
		pad()
	}
	return b, nil
}

func appendString(b []byte, s string) []byte {
	return append(binary.LittleEndian.AppendUint64(b, uint64(len(s))), s...)
}

func appendValue(b []byte, value any) ([]byte, error) {
	e := binary.LittleEndian
	array := func(kind uint32, n int) {
		b = e.AppendUint32(b, 9)
		b = e.AppendUint32(b, kind)
		b = e.AppendUint64(b, uint64(n))
	}
	switch v := value.(type) {
	case uint32:
		b = e.AppendUint32(e.AppendUint32(b, 4), v)
	case int32:
		b = e.AppendUint32(e.AppendUint32(b, 5), uint32(v))
	case float32:
		b = e.AppendUint32(e.AppendUint32(b, 6), math.Float32bits(v))
	case bool:
		b = append(e.AppendUint32(b, 7), flag(v))
	case string:
		b = appendString(e.AppendUint32(b, 8), v)
	case uint64:
		b = e.AppendUint64(e.AppendUint32(b, 10), v)
	case []int32:
		array(5, len(v))
		for _, n := range v {
			b = e.AppendUint32(b, uint32(n))
		}
	case []float32:
		array(6, len(v))
		for _, f := range v {
			b = e.AppendUint32(b, math.Float32bits(f))
		}
	case []bool:
		array(7, len(v))
		for _, f := range v {
			b = append(b, flag(f))
		}
	case []string:
		array(8, len(v))
		for _, s := range v {
			b = appendString(b, s)
		}
	default:
		return nil, fmt.Errorf("a value of type %T has no GGUF type here", value)
	}
	return b, nil
}

func flag(b bool) byte {
	if b {
		return 1
	}
	return 0
}
