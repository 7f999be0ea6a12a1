package cpu

import (
	"encoding/binary"
	"errors"
	"fmt"

	"manta/kernels"
	"manta/kernels/ref"
)

// ErrShape is wrapped by the errors of sizes that do not fit.
var ErrShape = errors.New("cpu: shapes do not fit")

// Packed formats: what the products read. 64 outputs form a group; its columns
// come in blocks: codes of 16 outputs each four times, then f16 scales d, then
// f16 minima m. An output i is acc += d·Σ code·x (+ (m+8d)·Σx) block by block.
const (
	formatF32 = iota
	formatF16
	formatBF16
	formatQ8  // signed bytes, x = d·q
	formatQ4  // nibbles, x = d·q + m
	formatQ4S // nibbles, x = d·(q-8)
	formatCount
)

// A format says how a packed group lies.
type format struct {
	kind           int
	columns        int // in a block
	panelBytes     int // codes of 16 outputs in a block
	scaled, offset bool
}

var formats = [formatCount]format{
	formatF32:  {kind: formatF32, columns: 8, panelBytes: 512},
	formatF16:  {kind: formatF16, columns: 8, panelBytes: 256},
	formatBF16: {kind: formatBF16, columns: 8, panelBytes: 256},
	formatQ8:   {kind: formatQ8, columns: 32, panelBytes: 512, scaled: true},
	formatQ4:   {kind: formatQ4, columns: 32, panelBytes: 256, scaled: true, offset: true},
	formatQ4S:  {kind: formatQ4S, columns: 32, panelBytes: 256, scaled: true},
}

func (f format) blockBytes() int {
	n := 4 * f.panelBytes
	if f.scaled {
		n += 2 * groupRows
	}
	if f.offset {
		n += 2 * groupRows
	}
	return n
}

// formatOf gives the packed format of a type; false where its rows are
// dequantized to float32 first.
func formatOf(t kernels.DType) (int, bool) {
	switch t {
	case kernels.F32:
		return formatF32, true
	case kernels.F16:
		return formatF16, true
	case kernels.BF16:
		return formatBF16, true
	case kernels.Q8_0:
		return formatQ8, true
	case kernels.Q4_1:
		return formatQ4, true
	case kernels.Q4_0:
		return formatQ4S, true
	}
	return formatF32, false
}

// packBlock writes the codes of row i of a group for one block of columns. src
// begins at the row's first of those columns; columns may be fewer than a block.
func (f format) packBlock(i int, dst, src []byte, columns int) {
	panel, lane := dst[i/16*f.panelBytes:], i%16
	scales := dst[4*f.panelBytes:]
	switch f.kind {
	case formatF32:
		for k := range columns {
			copy(panel[64*k+4*lane:][:4], src[4*k:])
		}
	case formatF16:
		for k := range columns {
			copy(panel[32*k+2*lane:][:2], src[2*k:])
		}
	case formatBF16: // pairs of columns in a lane
		for k := range columns {
			copy(panel[64*(k/2)+4*lane+2*(k%2):][:2], src[2*k:])
		}
	case formatQ8:
		copy(scales[2*i:][:2], src)
		codes := src[2:34]
		for k, q := range codes {
			panel[16*k+lane] = q
		}
	case formatQ4:
		copy(scales[2*i:][:2], src)
		copy(scales[2*groupRows+2*i:][:2], src[2:])
		packNibbles(panel, lane, src[4:20])
	case formatQ4S:
		copy(scales[2*i:][:2], src)
		packNibbles(panel, lane, src[2:18])
	}
}

// packNibbles takes ggml's order (low nibbles are columns 0 to 15, high ones 16
// to 31) to eight columns in a lane of 32 bits, the first lowest.
func packNibbles(panel []byte, lane int, src []byte) {
	for half := range 2 { // columns 8·half and on from low nibbles, 16+8·half from high
		q := binary.LittleEndian.Uint64(src[8*half:])
		binary.LittleEndian.PutUint32(panel[64*half+4*lane:], squeeze(q&0x0f0f0f0f0f0f0f0f))
		binary.LittleEndian.PutUint32(panel[64*(half+2)+4*lane:], squeeze(q>>4&0x0f0f0f0f0f0f0f0f))
	}
}

// squeeze joins the low nibbles of eight bytes.
func squeeze(q uint64) uint32 {
	q = (q | q>>4) & 0x00ff00ff00ff00ff
	q = (q | q>>8) & 0x0000ffff0000ffff
	return uint32(q | q>>16)
}

// expand reads one packed block: codes by column (64 outputs each), scales, and
// minima less the centre of the codes.
func (f format) expand(block []byte, codes, d, m []float32) {
	for i := range groupRows {
		panel, lane := block[i/16*f.panelBytes:], i%16
		for k := range f.columns {
			codes[k*groupRows+i] = code(f.kind, panel, k, lane)
		}
		if f.scaled {
			scales := block[4*f.panelBytes:]
			d[i] = ref.Half(binary.LittleEndian.Uint16(scales[2*i:]))
			if f.offset {
				m[i] = ref.Half(binary.LittleEndian.Uint16(scales[2*groupRows+2*i:])) + 8*d[i]
			}
		}
	}
}

func code(kind int, panel []byte, k, lane int) float32 {
	switch kind {
	case formatF32:
		return floatOf(binary.LittleEndian.Uint32(panel[64*k+4*lane:]))
	case formatF16:
		return ref.Half(binary.LittleEndian.Uint16(panel[32*k+2*lane:]))
	case formatBF16:
		return ref.Brain(binary.LittleEndian.Uint16(panel[64*(k/2)+4*lane+2*(k%2):]))
	case formatQ8:
		return float32(int8(panel[16*k+lane]))
	}
	return float32(binary.LittleEndian.Uint32(panel[64*(k/8)+4*lane:])>>(4*(k%8))&15) - 8
}

// A weight is a matrix packed for products; a tall one (an embedding table) is
// packed at its first product, since most are only looked up.
//
// parts stay as the file stores them, for lookups of single rows: their Data must
// stay mapped until Close.
type weight struct {
	parts      []kernels.Matrix
	rows, cols int
	format     format
	groups     int // of 64 outputs
	blocks     int // of a group
	packed     []byte
}

func (w *weight) Shape() (int, int) { return w.rows, w.cols }

func (w *weight) groupBytes() int { return w.blocks * w.format.blockBytes() }

// group gives the packed bytes of 64 outputs.
func (w *weight) group(g int) *byte { return &w.packed[g*w.groupBytes()] }

// row writes the values of row r into dst.
func (w *weight) row(r int, dst []float32) {
	for _, m := range w.parts {
		if r < m.Rows {
			ref.Dequantize(m, r, dst)
			return
		}
		r -= m.Rows
	}
	panic("cpu: weight: no such row")
}

// Weight stacks and packs the parts.
func (o *Ops) Weight(parts ...kernels.Matrix) (kernels.Weight, error) {
	if len(parts) == 0 {
		return nil, fmt.Errorf("%w: weight of no parts", ErrShape)
	}
	kind, _ := formatOf(parts[0].Type)
	w := &weight{parts: append([]kernels.Matrix(nil), parts...), cols: parts[0].Cols}
	for _, m := range parts {
		if err := ref.CheckMatrix(m); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrShape, err)
		}
		if m.Cols != w.cols {
			return nil, fmt.Errorf("%w: %s has %d columns, %s has %d", ErrShape, m.Name, m.Cols, parts[0].Name, w.cols)
		}
		if m.Type != parts[0].Type {
			kind = formatF32
		}
		w.rows += m.Rows
	}
	w.format = formats[kind]
	w.groups = (w.rows + groupRows - 1) / groupRows
	w.blocks = (w.cols + w.format.columns - 1) / w.format.columns
	if w.rows >= tallRows && w.rows >= 8*w.cols {
		return w, nil
	}
	return w, o.pack(w)
}

// tallRows: at least so many rows, and eight times as many as columns, make a
// matrix tall, which means an embedding table.
const tallRows = 8192

// pack fills the packed form, once, on all workers.
func (o *Ops) pack(w *weight) error {
	if w.packed != nil || w.rows == 0 || w.cols == 0 {
		return nil
	}
	packed, err := o.memory.take(w.groups * w.groupBytes())
	if err != nil {
		return fmt.Errorf("weight %s: %w", w.parts[0].Name, err)
	}
	w.packed = packed
	o.packing = packTask{w}
	o.pool.run(&o.packing, w.groups)
	return nil
}

type packTask struct{ w *weight }

// do packs one group of 64 outputs.
func (t *packTask) do(_, g int) {
	w, f := t.w, t.w.format
	dst := w.packed[g*w.groupBytes():][:w.groupBytes()]
	first := 0
	for _, m := range w.parts {
		lo, hi := max(g*groupRows, first), min((g+1)*groupRows, first+m.Rows)
		_, exact := formatOf(m.Type)
		if !exact || f.kind == formatF32 && m.Type != kernels.F32 {
			wide := make([]float32, m.Cols)
			for r := lo; r < hi; r++ {
				ref.Dequantize(m, r-first, wide)
				w.packRow(dst, r-g*groupRows, bytesOf(wide), kernels.F32)
			}
		} else {
			for r := lo; r < hi; r++ {
				w.packRow(dst, r-g*groupRows, m.Data[(r-first)*m.Stride:], m.Type)
			}
		}
		first += m.Rows
	}
}

// packRow packs output i of a group.
func (w *weight) packRow(dst []byte, i int, src []byte, t kernels.DType) {
	f := w.format
	for b := range w.blocks {
		columns := min(f.columns, w.cols-b*f.columns)
		f.packBlock(i, dst[b*f.blockBytes():], src[t.Bytes(b*f.columns):], columns)
	}
}
