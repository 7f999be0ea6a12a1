package model

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"

	"manta/kernels"
	"manta/runtime/token"
	"manta/runtime/weights"
)

// A Made is a model without weights: every tensor that its configuration asks for
// is there, with random values. It is for measuring: what it says means nothing.
//
// All matrices lie in one stretch of random numbers of a few megabytes: each begins
// somewhere in it, and a row begins dummyStep values after the one before. So rows
// differ, and a model of any size is there at once; a device loads it as it would
// load a file that is cached.
type Made struct {
	*weights.Model
	tensors map[string]StoredTensor
	random  []byte
	// vocabulary counts the tokens.
	vocabulary int
}

var _ Source = (*Made)(nil)

const (
	dummyStep = 33   // odd: rows begin at every phase of a cache line
	dummyPlay = 4096 // matrices begin within so many values
	// dummyScale is what models are initialised with before they are trained
	// (Radford et al. 2019, code: 0.02), as the deviation of an even distribution.
	dummyScale = 0.02 * 1.732
)

// Dummy makes up what a configuration asks for (vLLM's --load-format dummy). It
// takes the model over: closing one closes the other.
func Dummy(m *weights.Model) (*Made, error) {
	spec, err := FromConfig(m.Config())
	if err != nil {
		return nil, err
	}
	d := &Made{Model: m, tensors: map[string]StoredTensor{}, vocabulary: spec.Vocab}
	need := 0
	for t := range spec.Tensors() {
		d.tensors[t.Name] = t
		need = max(need, dummyPlay+t.Rows*dummyStep+t.Cols)
	}
	draw := rand.New(rand.NewPCG(1, 2))
	d.random = make([]byte, 0, 2*need)
	for range need {
		value := dummyScale * (2*draw.Float32() - 1)
		d.random = binary.LittleEndian.AppendUint16(d.random, uint16(math.Float32bits(value)>>16))
	}
	return d, nil
}

// Tensor implements Source.
func (d *Made) Tensor(name string) (kernels.Matrix, bool) {
	t, ok := d.tensors[name]
	if !ok {
		return kernels.Matrix{}, false
	}
	m := kernels.Matrix{Name: name, Type: kernels.BF16, Rows: t.Rows, Cols: t.Cols, Stride: 2 * dummyStep}
	if t.Rows > 1 {
		place := fnv.New32a()
		place.Write([]byte(name))
		m.Data = d.random[2*(place.Sum32()%dummyPlay):]
		return m, true
	}
	// A norm of ones, a bias of zeros.
	one := uint16(0)
	if name[len(name)-len("weight"):] == "weight" {
		one = uint16(math.Float32bits(1) >> 16)
	}
	for range t.Cols {
		m.Data = binary.LittleEndian.AppendUint16(m.Data, one)
	}
	return m, true
}

// Names implements Source.
func (d *Made) Names() []string {
	var names []string
	for name := range d.tensors {
		names = append(names, name)
	}
	return names
}

// Tokenizer gives the folder's own or, where it has none, one whose tokens are
// numbers: text can't be encoded with it, so prompts must be token ids.
func (d *Made) Tokenizer() (token.Source, error) {
	source, err := d.Model.Tokenizer()
	if !errors.Is(err, weights.ErrNotFound) {
		return source, err
	}
	vocabulary := make(map[string]int, d.vocabulary)
	for id := range d.vocabulary {
		vocabulary[fmt.Sprint("Ġ", id)] = id // Ġ is a space there
	}
	numbers, err := json.Marshal(map[string]any{
		"pre_tokenizer": map[string]any{"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
		"decoder":       map[string]any{"type": "ByteLevel"},
		"model":         map[string]any{"type": "BPE", "vocab": vocabulary, "merges": []string{}},
	})
	return token.Source{JSON: numbers}, err
}
