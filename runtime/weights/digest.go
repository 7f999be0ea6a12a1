package weights

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"slices"
)

// digestSample is how much of a tensor's begin and end Digest reads.
const digestSample = 4096

// Digest identifies the weights, for the prefix index and for ranks that must
// hold the same model. It is computed from content alone: equal files give equal
// digests on every machine, however they got there. It covers config.json, every
// file's name, length and header (all metadata, names, types, shapes, offsets) and
// the first and last 4 KiB of each tensor. Models that were trained apart, or
// converted differently, get different digests; two files that differ only
// inside a tensor, away from both ends, do not, so it is no proof against
// tampering: what a Library pulls is checked byte by byte while it is written.
func (m *Model) Digest() [32]byte { return m.digest() }

func (m *Model) hash() [32]byte {
	h := sha256.New()
	write(h, []byte("manta model 1"), m.config)
	for i, f := range m.files {
		name := f.name
		if m.format == GGUF && len(m.files) == 1 {
			name = "" // a .gguf is renamed at will
		}
		write(h, []byte(name), binary.LittleEndian.AppendUint64(nil, uint64(len(f.data))), f.header)
		for _, t := range m.inOrder(i) {
			data := f.data[t.offset : t.offset+t.size]
			n := min(len(data), digestSample)
			write(h, data[:n], data[len(data)-n:])
		}
	}
	return [32]byte(h.Sum(nil))
}

// inOrder gives the tensors of a file by offset.
func (m *Model) inOrder(file int) []tensor {
	var list []tensor
	for _, t := range m.tensors {
		if t.file == file {
			list = append(list, t)
		}
	}
	slices.SortFunc(list, func(a, b tensor) int { return cmp.Compare(a.offset, b.offset) })
	return list
}

// write hashes parts so that no two lists of parts look alike.
func write(h hash.Hash, parts ...[]byte) {
	for _, p := range parts {
		h.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(p))))
		h.Write(p)
	}
}
