package weights

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"unsafe"

	"manta/kernels"
)

// Format is how a model's files are laid out; tensor names follow it.
type Format uint8

const (
	HuggingFace Format = iota // config.json, *.safetensors
	GGUF
)

func (f Format) String() string {
	if f == GGUF {
		return "GGUF"
	}
	return "HuggingFace"
}

// Progress reports bytes of one file. Total 0: not known yet.
type Progress struct {
	File        string
	Done, Total int64
}

// A Model is an open model. All methods may be called from many goroutines;
// Close only when no matrix is in use any more.
type Model struct {
	path    string
	folder  string // where tokenizer and template files lie
	format  Format
	files   []mapping
	tensors map[string]tensor
	names   []string // in the order of the files
	config  []byte
	meta    Metadata
	digest  func() [32]byte

	generation Generation
	ends       []int32

	closing sync.Once
	closed  error
}

// A mapping is one weight file.
type mapping struct {
	name   string
	header []byte // what precedes the numbers
	data   []byte
}

// A tensor lies at data[offset : offset+size] of a file.
//
// Invariant: within the file's bounds, and size is that of shape in kind.
type tensor struct {
	file         int
	kind         kernels.DType
	shape        []int // row-major: the last dimension is contiguous
	offset, size int
}

// Open maps the model at path: a folder in Hugging Face form, a folder with a
// single .gguf file, or a .gguf file. It reads headers, not weights.
func Open(path string) (*Model, error) {
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("weights: %s: %w: give a folder with config.json or a .gguf file", path, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("weights: %w", err)
	}
	m := &Model{path: path, tensors: map[string]tensor{}}
	m.digest = sync.OnceValue(m.hash)
	if info.IsDir() {
		err = m.openFolder(path)
	} else if strings.EqualFold(filepath.Ext(path), ".gguf") {
		err = m.openGGUF(path)
	} else {
		err = fmt.Errorf("%w: give a folder with config.json or a .gguf file", ErrUnsupported)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("weights: %s: %w", path, err), m.Close())
	}
	return m, nil
}

// OpenConfig opens config.json of a folder and what stands beside it, without any
// weights: for a model that is made up (runtime/model.Dummy).
func OpenConfig(folder string) (*Model, error) {
	m := &Model{path: folder, tensors: map[string]tensor{}}
	m.digest = sync.OnceValue(m.hash)
	if err := m.openConfig(folder); err != nil {
		return nil, fmt.Errorf("weights: %s: %w", folder, err)
	}
	return m, nil
}

// mapPath maps one file and gives its index in m.files.
func (m *Model) mapPath(path string) (int, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close() // the mapping holds the file
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if !info.Mode().IsRegular() {
		return 0, fmt.Errorf("%s: not a regular file: %w", filepath.Base(path), ErrUnsupported)
	}
	data, err := mapFile(f, info.Size())
	if err != nil {
		return 0, fmt.Errorf("%s: %w", filepath.Base(path), err)
	}
	m.files = append(m.files, mapping{name: filepath.Base(path), data: data})
	return len(m.files) - 1, nil
}

// add puts a tensor under its name.
func (m *Model) add(name string, t tensor) error {
	if _, twice := m.tensors[name]; twice {
		return fmt.Errorf("%s: tensor %q appears twice: %w", m.files[t.file].name, name, ErrCorrupt)
	}
	m.tensors[name] = t
	m.names = append(m.names, name)
	return nil
}

// Close unmaps the files. Matrices of the model must not be used afterwards.
func (m *Model) Close() error {
	m.closing.Do(func() {
		for _, f := range m.files {
			if err := unmap(f.data); err != nil {
				m.closed = errors.Join(m.closed, fmt.Errorf("weights: unmap %s: %w", f.name, err))
			}
		}
	})
	return m.closed
}

// Path is what was opened.
func (m *Model) Path() string { return m.path }

// Format tells which names the tensors carry.
func (m *Model) Format() Format { return m.format }

// Config is config.json; nil for GGUF.
func (m *Model) Config() []byte { return m.config }

// Meta is GGUF's metadata; empty for Hugging Face.
func (m *Model) Meta() Metadata { return m.meta }

// Names lists the tensors in the order of the files. The caller may not change it.
func (m *Model) Names() []string { return m.names }

// Bytes is the size of all tensors as stored.
func (m *Model) Bytes() int64 {
	var sum int64
	for _, t := range m.tensors {
		sum += int64(t.size)
	}
	return sum
}

// Shape gives the dimensions, outermost first (GGUF's are reversed to that).
func (m *Model) Shape(name string) ([]int, bool) {
	t, ok := m.tensors[name]
	return append([]int(nil), t.shape...), ok
}

// Tensor gives a tensor as a matrix: one dimension is one row; of more than two,
// all but the last are rows. Data begins at an address that fits the element's
// size, but at no greater one.
func (m *Model) Tensor(name string) (kernels.Matrix, bool) {
	t, ok := m.tensors[name]
	if !ok {
		return kernels.Matrix{}, false
	}
	rows, cols := t.matrix()
	data := m.files[t.file].data[t.offset : t.offset+t.size : t.offset+t.size]
	return kernels.Matrix{
		Name: name, Type: t.kind, Rows: rows, Cols: cols,
		Stride: t.kind.Bytes(cols), Data: aligned(data, t.kind),
	}, true
}

func (t tensor) matrix() (rows, cols int) {
	rows, cols = 1, 1
	if n := len(t.shape); n > 0 {
		cols = t.shape[n-1]
		for _, d := range t.shape[:n-1] {
			rows *= d
		}
	}
	return rows, cols
}

// aligned gives data as it is, or a copy where a writer has put numbers at an odd
// address (safetensors before 0.3 did not pad its header). That copy is the one
// case in which weights lie on the heap.
func aligned(data []byte, kind kernels.DType) []byte {
	unit := uintptr(1)
	if kind.BlockSize() == 1 {
		unit = uintptr(kind.BlockBytes())
	}
	if len(data) == 0 || uintptr(unsafe.Pointer(unsafe.SliceData(data)))%unit == 0 {
		return data
	}
	return append(make([]byte, 0, len(data)), data...)
}

// measure gives the bytes of a shape, or why there is no such tensor. It bounds
// the product before anything is computed from it.
func measure(shape []int, kind kernels.DType, limit int) (int, error) {
	count := uint64(1)
	for _, d := range shape {
		if d <= 0 {
			return 0, fmt.Errorf("shape %v has a dimension of %d: %w", shape, d, ErrCorrupt)
		}
		high, low := bits.Mul64(count, uint64(d))
		if high != 0 || low > 1<<56 {
			return 0, fmt.Errorf("shape %v overflows: %w", shape, ErrCorrupt)
		}
		count = low
	}
	last := 1
	if len(shape) > 0 {
		last = shape[len(shape)-1]
	}
	if last%kind.BlockSize() != 0 {
		return 0, fmt.Errorf("rows of %d values are no whole number of %v blocks of %d: %w", last, kind, kind.BlockSize(), ErrCorrupt)
	}
	size := count / uint64(kind.BlockSize()) * uint64(kind.BlockBytes()) // < 2^56 · 4
	if size > uint64(limit) {
		return 0, fmt.Errorf("shape %v takes %d bytes, the file has %d: %w", shape, size, limit, ErrCorrupt)
	}
	return int(size), nil
}
