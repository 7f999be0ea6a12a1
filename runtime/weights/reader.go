package weights

import (
	"encoding/binary"
	"fmt"
	"math"
)

// A reader walks little-endian bytes. The first error stays; after it every read
// gives zero. Invariant: 0 <= at <= len(data).
type reader struct {
	data []byte
	at   int
	err  error
}

func (r *reader) fail(at int, format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("byte %d: %s: %w", at, fmt.Sprintf(format, args...), ErrCorrupt)
	}
}

// take gives the next n bytes; they alias the file.
func (r *reader) take(n uint64, field string) []byte {
	if r.err != nil {
		return nil
	}
	if left := uint64(len(r.data) - r.at); n > left {
		r.fail(r.at, "%s needs %d bytes, %d are left (is the download complete?)", field, n, left)
		return nil
	}
	b := r.data[r.at : r.at+int(n)]
	r.at += int(n)
	return b
}

func (r *reader) u32(field string) uint32 {
	if b := r.take(4, field); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (r *reader) u64(field string) uint64 {
	if b := r.take(8, field); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

// str copies, since the mapping may go before the string does.
func (r *reader) str(field string) string {
	return string(r.take(r.u64(field), field))
}

// countFits refuses a count whose items, of at least size bytes each, can't be there.
func (r *reader) countFits(field string, count uint64, size int) {
	if left := uint64(len(r.data) - r.at); r.err == nil && count > left/uint64(size) {
		r.fail(r.at, "%s is %d, more than fits the %d bytes left", field, count, left)
	}
}

// GGUF value types: the size of one (0: not fixed) and how it is read.
var ggufValues = [...]struct {
	size int
	read func([]byte) any
}{
	0:  {1, func(b []byte) any { return uint64(b[0]) }},
	1:  {1, func(b []byte) any { return int64(int8(b[0])) }},
	2:  {2, func(b []byte) any { return uint64(binary.LittleEndian.Uint16(b)) }},
	3:  {2, func(b []byte) any { return int64(int16(binary.LittleEndian.Uint16(b))) }},
	4:  {4, func(b []byte) any { return uint64(binary.LittleEndian.Uint32(b)) }},
	5:  {4, func(b []byte) any { return int64(int32(binary.LittleEndian.Uint32(b))) }},
	6:  {4, func(b []byte) any { return float64(math.Float32frombits(binary.LittleEndian.Uint32(b))) }},
	7:  {1, func(b []byte) any { return b[0] != 0 }},
	8:  {0, nil}, // string
	9:  {0, nil}, // array
	10: {8, func(b []byte) any { return binary.LittleEndian.Uint64(b) }},
	11: {8, func(b []byte) any { return int64(binary.LittleEndian.Uint64(b)) }},
	12: {8, func(b []byte) any { return math.Float64frombits(binary.LittleEndian.Uint64(b)) }},
}

const (
	ggufString = 8
	ggufArray  = 9
)

func (r *reader) value(field string) any {
	at := r.at
	kind := r.u32(field + " type")
	if r.err == nil && int(kind) >= len(ggufValues) {
		r.fail(at, "%s: unknown value type %d", field, kind)
	}
	if r.err != nil {
		return nil
	}
	switch kind {
	case ggufString:
		return r.str(field)
	case ggufArray:
		return r.array(field, 1)
	default:
		v := ggufValues[kind]
		if b := r.take(uint64(v.size), field); b != nil {
			return v.read(b)
		}
		return nil
	}
}

// array gives []string, []bool, []int64 or []float64. Arrays of arrays are walked
// over and given as nil: no model's key that is read has them.
func (r *reader) array(field string, depth int) any {
	at := r.at
	kind := r.u32(field + " item type")
	count := r.u64(field + " item count")
	if r.err == nil && int(kind) >= len(ggufValues) {
		r.fail(at, "%s: unknown item type %d", field, kind)
	}
	if r.err == nil && depth > ggufDepth {
		r.fail(at, "%s: arrays nested more than %d deep", field, ggufDepth)
	}
	if r.err != nil {
		return nil
	}
	switch kind {
	case ggufString:
		r.countFits(field+" item count", count, 8)
		return r.strings(field, count)
	case ggufArray:
		r.countFits(field+" item count", count, 12)
		for i := uint64(0); i < count && r.err == nil; i++ {
			r.array(field, depth+1)
		}
		return nil
	default:
		v := ggufValues[kind]
		r.countFits(field+" item count", count, v.size)
		if r.err != nil {
			return nil
		}
		return numbers(r.take(count*uint64(v.size), field), v.size, v.read)
	}
}

func (r *reader) strings(field string, count uint64) any {
	if r.err != nil {
		return nil
	}
	list := make([]string, 0, count)
	for i := uint64(0); i < count && r.err == nil; i++ {
		list = append(list, r.str(field))
	}
	return list
}

// numbers reads b as items of size bytes. An empty array has no type left to
// keep and is given as []int64.
func numbers(b []byte, size int, read func([]byte) any) any {
	if len(b) == 0 {
		return []int64{}
	}
	switch read(b).(type) {
	case bool:
		return collect(b, size, func(b []byte) bool { return b[0] != 0 })
	case float64:
		return collect(b, size, func(b []byte) float64 { return read(b).(float64) })
	case uint64:
		return collect(b, size, func(b []byte) int64 { return int64(read(b).(uint64)) })
	default:
		return collect(b, size, func(b []byte) int64 { return read(b).(int64) })
	}
}

func collect[T any](b []byte, size int, item func([]byte) T) []T {
	list := make([]T, 0, len(b)/size)
	for at := 0; at < len(b); at += size {
		list = append(list, item(b[at:]))
	}
	return list
}
