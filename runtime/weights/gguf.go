package weights

import (
	"cmp"
	"fmt"
	"math"
	"path/filepath"
	"slices"

	"manta/kernels"
)

// GGUF, little-endian, versions 2 and 3 (ggml, docs/gguf.md):
//
//	"GGUF" version:u32 tensors:u64 pairs:u64
//	pairs   × { key:string type:u32 value }
//	tensors × { name:string rank:u32 dims:u64×rank type:u32 offset:u64 }
//	padding to the alignment, then the tensors at their offsets
//
// A string is length:u64 and bytes; an array is type:u32 count:u64 and values.
// dims[0] is the contiguous dimension.
const (
	ggufMagic     = 0x46554747
	ggufRank      = 4       // most dimensions that ggml has
	ggufAlignment = 32      // where general.alignment says nothing
	ggufMaxAlign  = 1 << 20 // no sane file asks for more
	ggufDepth     = 4       // arrays in arrays
)

var ggufTypes = map[uint32]kernels.DType{
	0: kernels.F32, 1: kernels.F16, 30: kernels.BF16,
	2: kernels.Q4_0, 3: kernels.Q4_1, 6: kernels.Q5_0, 7: kernels.Q5_1, 8: kernels.Q8_0,
	12: kernels.Q4_K, 13: kernels.Q5_K, 14: kernels.Q6_K,
}

// ggufRefused names the types that have no kernel.
var ggufRefused = map[uint32]string{
	9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS",
	19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16",
	26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}

// openGGUF maps a file, and its fellows where it is the first of several.
func (m *Model) openGGUF(path string) error {
	m.format = GGUF
	meta, err := m.addGGUF(path)
	if err != nil {
		return err
	}
	m.meta = meta
	if count, _ := meta.Uint("split.count"); count > 1 {
		if err := m.addSplits(path, count); err != nil {
			return err
		}
	}
	return m.ggufEnds()
}

// addSplits maps the other files of a split model: NAME-00001-of-00003.gguf.
func (m *Model) addSplits(path string, count uint64) error {
	suffix := fmt.Sprintf("-%05d-of-%05d.gguf", 1, count)
	base := path[:max(0, len(path)-len(suffix))]
	if count > 99999 || path != base+suffix {
		return fmt.Errorf("split.count is %d: open the first file, named …%s: %w", count, suffix, ErrUnsupported)
	}
	for i := uint64(2); i <= count; i++ {
		if _, err := m.addGGUF(fmt.Sprintf("%s-%05d-of-%05d.gguf", base, i, count)); err != nil {
			return fmt.Errorf("part %d of %d: %w", i, count, err)
		}
	}
	if want, ok := m.meta.Uint("split.tensors.count"); ok && want != uint64(len(m.names)) {
		return fmt.Errorf("split.tensors.count is %d, the files have %d: %w", want, len(m.names), ErrCorrupt)
	}
	return nil
}

func (m *Model) addGGUF(path string) (Metadata, error) {
	file, err := m.mapPath(path)
	if err != nil {
		return Metadata{}, err
	}
	g, err := parseGGUF(m.files[file].data)
	if err != nil {
		return Metadata{}, fmt.Errorf("%s: %w", filepath.Base(path), err)
	}
	m.files[file].header = m.files[file].data[:g.dataStart]
	for _, t := range g.tensors {
		t.tensor.file = file
		if err := m.add(t.name, t.tensor); err != nil {
			return Metadata{}, err
		}
	}
	return g.meta, nil
}

type ggufFile struct {
	meta      Metadata
	tensors   []namedTensor
	dataStart int
}

type namedTensor struct {
	name string
	tensor
}

// parseGGUF reads the header of data. What it allocates is bounded by data's length.
func parseGGUF(data []byte) (ggufFile, error) {
	r := &reader{data: data}
	version, err := ggufVersion(r)
	if err != nil {
		return ggufFile{}, err
	}
	tensors, pairs := r.u64("tensor count"), r.u64("metadata count")
	r.countFits("metadata count", pairs, 8+4+1) // an empty key, a type, one byte
	r.countFits("tensor count", tensors, 8+4+8+4+8)
	if r.err != nil {
		return ggufFile{}, r.err
	}
	g := ggufFile{meta: Metadata{values: make(map[string]any, pairs)}}
	for i := range pairs {
		start := r.at
		key := r.str("metadata key")
		value := r.value(fmt.Sprintf("metadata %q", key))
		if r.err != nil {
			return ggufFile{}, fmt.Errorf("GGUF v%d: pair %d of %d: %w", version, i+1, pairs, r.err)
		}
		if _, twice := g.meta.values[key]; twice {
			return ggufFile{}, fmt.Errorf("byte %d: metadata %q appears twice: %w", start, key, ErrCorrupt)
		}
		g.meta.values[key] = value
	}
	return g, g.readTensors(r, tensors)
}

func ggufVersion(r *reader) (uint32, error) {
	if magic := r.u32("magic"); r.err == nil && magic != ggufMagic {
		return 0, fmt.Errorf("byte 0: magic is %#08x, not \"GGUF\": %w", magic, ErrCorrupt)
	}
	version := r.u32("version")
	switch {
	case r.err != nil:
		return 0, r.err
	case version == 2 || version == 3:
		return version, nil
	case version != 0 && version&0xffff == 0:
		return 0, fmt.Errorf("byte 4: big-endian GGUF: %w", ErrUnsupported)
	default:
		return 0, fmt.Errorf("byte 4: GGUF version %d: %w: versions 2 and 3 are", version, ErrUnsupported)
	}
}

func (g *ggufFile) readTensors(r *reader, count uint64) error {
	align := uint64(ggufAlignment)
	if _, set := g.meta.values["general.alignment"]; set {
		v, ok := g.meta.Uint("general.alignment")
		if !ok || v == 0 || v&(v-1) != 0 || v > ggufMaxAlign {
			return fmt.Errorf("general.alignment is %v, not a power of two up to %d: %w", g.meta.values["general.alignment"], ggufMaxAlign, ErrCorrupt)
		}
		align = v
	}
	type entry struct {
		namedTensor
		offset uint64
		at     int
	}
	entries := make([]entry, 0, count)
	for i := range count {
		e := entry{at: r.at}
		e.name = r.str("tensor name")
		shape, kind, offset := r.tensorInfo(e.name)
		if r.err != nil {
			return fmt.Errorf("tensor %d of %d: %w", i+1, count, r.err)
		}
		e.shape, e.kind, e.offset = shape, kind, offset
		entries = append(entries, e)
	}
	start := (uint64(r.at) + align - 1) / align * align
	if start > uint64(len(r.data)) {
		if len(entries) > 0 {
			return fmt.Errorf("byte %d: the file ends before its tensors: %w", len(r.data), ErrCorrupt)
		}
		start = uint64(len(r.data))
	}
	g.dataStart = int(start)
	room := len(r.data) - g.dataStart
	for _, e := range entries {
		size, err := measure(e.shape, e.kind, room)
		if err != nil {
			return fmt.Errorf("byte %d: tensor %q: %w", e.at, e.name, err)
		}
		if e.offset%align != 0 {
			return fmt.Errorf("byte %d: tensor %q: offset %d is no multiple of %d: %w", e.at, e.name, e.offset, align, ErrCorrupt)
		}
		if e.offset > uint64(room-size) {
			return fmt.Errorf("byte %d: tensor %q: offset %d and %d bytes pass the end at %d (is the download complete?): %w", e.at, e.name, e.offset, size, room, ErrCorrupt)
		}
		e.tensor.offset, e.size = g.dataStart+int(e.offset), size
		g.tensors = append(g.tensors, e.namedTensor)
	}
	return disjoint(g.tensors)
}

// tensorInfo reads what follows a tensor's name. The shape is outermost first.
func (r *reader) tensorInfo(name string) (shape []int, kind kernels.DType, offset uint64) {
	at := r.at
	rank := r.u32("dimensions")
	if r.err == nil && (rank == 0 || rank > ggufRank) {
		r.fail(at, "tensor %q: %d dimensions, not 1 to %d", name, rank, ggufRank)
	}
	if r.err != nil {
		return nil, 0, 0
	}
	shape = make([]int, rank)
	for i := range shape {
		at := r.at
		d := r.u64("dimension")
		if d > math.MaxInt32*64 {
			r.fail(at, "tensor %q: dimension %d is %d", name, i, d)
			return nil, 0, 0
		}
		shape[len(shape)-1-i] = int(d)
	}
	at = r.at
	code := r.u32("type")
	offset = r.u64("offset")
	kind, ok := ggufTypes[code]
	if r.err == nil && !ok {
		label, known := ggufRefused[code]
		if !known {
			label = fmt.Sprint(code)
		}
		r.err = fmt.Errorf("byte %d: tensor %q: type %s: %w: use a file of F32, F16, BF16, Q8_0, Q4_K_M or another with a kernel", at, name, label, ErrUnsupported)
	}
	return shape, kind, offset
}

// disjoint refuses tensors that share bytes.
func disjoint(tensors []namedTensor) error {
	sorted := slices.Clone(tensors)
	slices.SortFunc(sorted, func(a, b namedTensor) int { return cmp.Compare(a.offset, b.offset) })
	for i := 1; i < len(sorted); i++ {
		if a, b := sorted[i-1], sorted[i]; a.offset+a.size > b.offset {
			return fmt.Errorf("tensors %q and %q overlap at byte %d: %w", a.name, b.name, b.offset, ErrCorrupt)
		}
	}
	return nil
}
