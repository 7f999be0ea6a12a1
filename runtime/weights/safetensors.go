package weights

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strings"

	"manta/kernels"
)

// safetensors (github.com/huggingface/safetensors, README «Format»):
//
//	n:u64 little-endian, then n bytes of JSON, then the tensors
//	{"NAME": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, "__metadata__": {…}}
//
// Offsets count from the end of the JSON. The tensors fill the rest of the file
// without gap or overlap.
const safetensorsMaxHeader = 100_000_000 // the reference implementation's

var safetensorsTypes = map[string]kernels.DType{"F32": kernels.F32, "F16": kernels.F16, "BF16": kernels.BF16}

// safetensorsBuffers are types that weights never have, but masks and position
// tables of older files do: bytes of one element.
var safetensorsBuffers = map[string]int{"BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4, "U64": 8, "I64": 8, "F64": 8}

// safetensorsScheme guesses who stores numbers in a type that no plain model has.
var safetensorsScheme = map[string]string{
	"F8_E4M3": "FP8", "F8_E5M2": "FP8", "F8_E4M3FNUZ": "FP8", "F8_E5M2FNUZ": "FP8", "F8_E8M0": "MX", "F4": "MXFP4",
	"F6_E2M3": "MXFP6", "F6_E3M2": "MXFP6", "C64": "complex numbers",
}

type safetensorsEntry struct {
	DType   string   `json:"dtype"`
	Shape   []int    `json:"shape"`
	Offsets []uint64 `json:"data_offsets"`
}

type safetensorsFile struct {
	tensors   []namedTensor
	skipped   []string // buffers
	dataStart int
}

// parseSafetensors reads the header of data. What it allocates is bounded by data's length.
func parseSafetensors(data []byte) (safetensorsFile, error) {
	if len(data) < 8 {
		return safetensorsFile{}, fmt.Errorf("byte 0: header length needs 8 bytes, the file has %d: %w", len(data), ErrCorrupt)
	}
	n := binary.LittleEndian.Uint64(data)
	if n > safetensorsMaxHeader || n > uint64(len(data)-8) {
		return safetensorsFile{}, fmt.Errorf("byte 0: header length %d passes the file's %d bytes or the limit of %d: %w", n, len(data), safetensorsMaxHeader, ErrCorrupt)
	}
	file := safetensorsFile{dataStart: 8 + int(n)}
	entries, err := safetensorsHeader(data[8:file.dataStart])
	if err != nil {
		return safetensorsFile{}, fmt.Errorf("header: %w", err)
	}
	room := len(data) - file.dataStart
	var all []namedTensor
	for _, e := range entries {
		t, buffer, err := e.tensor(room)
		if err != nil {
			return safetensorsFile{}, fmt.Errorf("tensor %q: %w", e.name, err)
		}
		t.offset += file.dataStart
		all = append(all, namedTensor{e.name, t})
		if buffer {
			file.skipped = append(file.skipped, e.name)
		} else {
			file.tensors = append(file.tensors, namedTensor{e.name, t})
		}
	}
	if err := disjoint(all); err != nil {
		return safetensorsFile{}, err
	}
	sum := 0
	for _, t := range all {
		sum += t.size
	}
	if sum != room {
		return safetensorsFile{}, fmt.Errorf("the tensors take %d bytes, the file has %d for them: %w", sum, room, ErrCorrupt)
	}
	return file, nil
}

type safetensorsNamed struct {
	name string
	safetensorsEntry
}

// safetensorsHeader reads the JSON in order and refuses names that repeat.
func safetensorsHeader(header []byte) ([]safetensorsNamed, error) {
	d := json.NewDecoder(bytes.NewReader(header))
	if open, err := d.Token(); err != nil || open != json.Delim('{') {
		return nil, fmt.Errorf("not a JSON object: %w", ErrCorrupt)
	}
	var entries []safetensorsNamed
	seen := map[string]bool{}
	for d.More() {
		at := d.InputOffset()
		key, err := d.Token()
		name, ok := key.(string)
		if err != nil || !ok {
			return nil, fmt.Errorf("byte %d: no tensor name: %w", at+8, ErrCorrupt)
		}
		if seen[name] {
			return nil, fmt.Errorf("byte %d: tensor %q appears twice: %w", at+8, name, ErrCorrupt)
		}
		seen[name] = true
		if name == "__metadata__" {
			var ignored json.RawMessage
			if err := d.Decode(&ignored); err != nil {
				return nil, fmt.Errorf("byte %d: __metadata__: %v: %w", at+8, err, ErrCorrupt)
			}
			continue
		}
		e := safetensorsNamed{name: name}
		if err := d.Decode(&e.safetensorsEntry); err != nil {
			return nil, fmt.Errorf("byte %d: tensor %q: %v: %w", at+8, name, err, ErrCorrupt)
		}
		entries = append(entries, e)
	}
	if _, err := d.Token(); err != nil {
		return nil, fmt.Errorf("byte %d: the JSON object does not end: %w", d.InputOffset()+8, ErrCorrupt)
	}
	if rest := bytes.TrimSpace(header[d.InputOffset():]); len(rest) > 0 {
		return nil, fmt.Errorf("byte %d: text after the JSON object: %w", d.InputOffset()+8, ErrCorrupt)
	}
	return entries, nil
}

// tensor checks an entry against the room that the file has for tensors.
func (e safetensorsNamed) tensor(room int) (t tensor, buffer bool, err error) {
	if len(e.Offsets) != 2 {
		return t, false, fmt.Errorf("data_offsets has %d numbers, not 2: %w", len(e.Offsets), ErrCorrupt)
	}
	begin, end := e.Offsets[0], e.Offsets[1]
	if begin > end || end > uint64(room) {
		return t, false, fmt.Errorf("data_offsets [%d, %d] pass the end at %d (is the download complete?): %w", begin, end, room, ErrCorrupt)
	}
	t = tensor{shape: e.Shape, offset: int(begin), size: int(end - begin)}
	if scheme, ok := safetensorsScheme[e.DType]; ok {
		return t, false, fmt.Errorf("dtype %s: %s weights are %w: use a BF16 or F16 version of the model", e.DType, scheme, ErrUnsupported)
	}
	if size, ok := safetensorsBuffers[e.DType]; ok {
		if isWeight(e.name) {
			return t, false, fmt.Errorf("dtype %s: quantized weights (GPTQ, AWQ, bitsandbytes) are %w: use a BF16, F16 or GGUF version of the model", e.DType, ErrUnsupported)
		}
		// A buffer is not read: its shape matters only for the file's sum.
		if t.size%size != 0 {
			return t, false, fmt.Errorf("%d bytes are no whole number of %s: %w", t.size, e.DType, ErrCorrupt)
		}
		return t, true, nil
	}
	kind, ok := safetensorsTypes[e.DType]
	if !ok {
		return t, false, fmt.Errorf("dtype %q: %w: F32, F16 and BF16 are", e.DType, ErrUnsupported)
	}
	t.kind = kind
	size, err := measure(e.Shape, kind, room)
	if err != nil {
		return t, false, err
	}
	if size != t.size {
		return t, false, fmt.Errorf("data_offsets [%d, %d] hold %d bytes, shape %v of %s takes %d: %w", begin, end, t.size, e.Shape, e.DType, size, ErrCorrupt)
	}
	return t, false, nil
}

// isWeight tells a tensor that takes part in the products from a buffer.
func isWeight(name string) bool {
	for _, suffix := range []string{"weight", "qweight", "qzeros", "g_idx", "weight_packed", "scales", "SCB"} {
		if name == suffix || strings.HasSuffix(name, "."+suffix) {
			return true
		}
	}
	return false
}
