package cpu

import (
	"errors"
	"fmt"

	"manta/kernels"
	"manta/kernels/ref"
)

// ErrShape is wrapped by the errors of sizes that do not fit.
var ErrShape = errors.New("cpu: shapes do not fit")

// A weight is a matrix packed for products; a tall one (an embedding table) is
// packed at its first product, since most are only looked up.
//
// parts stay as the file stores them, for lookups of single rows: their Data must
// stay mapped until Close.
type weight struct {
	parts      []kernels.Matrix
	rows, cols int
	groups     int  // of 64 outputs
	offset     bool // some segment has minima
	form       form // of the activations that it meets
	packed     bool
	segments   []segment
}

// A segment is groups of one format: a weight of several types has several.
type segment struct {
	format        format
	first, groups int
	blocks        int // of a group
	data          []byte
}

func (w *weight) Shape() (int, int) { return w.rows, w.cols }

func (s *segment) groupBytes() int { return s.blocks * s.format.blockBytes() }

// group gives the packed bytes of group g of the weight.
func (s *segment) group(g int) []byte { return s.data[(g-s.first)*s.groupBytes():][:s.groupBytes()] }

// of gives the segment that holds a group.
func (w *weight) of(group int) *segment {
	for i := range w.segments {
		if s := &w.segments[i]; group < s.first+s.groups {
			return s
		}
	}
	panic("cpu: weight: no such group")
}

// tileRows is the most rows that one call of a kernel takes.
func (w *weight) tileRows() int {
	if w.integer() {
		return integerRows
	}
	return maxRows
}

// sumBlocks is the number of blocks of 32 columns whose sums products may want.
func (w *weight) sumBlocks() int { return (w.cols + 31) / 32 }

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

// tallRows: at least so many rows, and eight times as many as columns, make a
// matrix tall, which means an embedding table. squareRows times as many rows as
// columns at most, and no fewer rows than columns, mean a projection of attention.
const (
	tallRows   = 8192
	squareRows = 3
)

// Pair stacks and packs the factors of a gate.
func (o *Ops) Pair(gate, up kernels.Matrix) (kernels.Weight, error) {
	if err := ref.CheckPair(gate, up); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrShape, err)
	}
	return o.Weight(gate, up)
}

// Weight stacks and packs the parts.
func (o *Ops) Weight(parts ...kernels.Matrix) (kernels.Weight, error) {
	if len(parts) == 0 {
		return nil, fmt.Errorf("%w: weight of no parts", ErrShape)
	}
	w := &weight{parts: append([]kernels.Matrix(nil), parts...), cols: parts[0].Cols}
	for _, m := range parts {
		if err := ref.CheckMatrix(m); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrShape, err)
		}
		if m.Cols != w.cols {
			return nil, fmt.Errorf("%w: %s has %d columns, %s has %d", ErrShape, m.Name, m.Cols, parts[0].Name, w.cols)
		}
		w.rows += m.Rows
	}
	w.groups = (w.rows + groupRows - 1) / groupRows
	tall := w.rows >= tallRows && w.rows >= 8*w.cols
	w.form = o.formOf(w.parts)
	if w.form == byteForm && (tall || w.rows >= w.cols && w.rows <= squareRows*w.cols) {
		w.form = wordForm // few rows want logits, and attention's products are small: accuracy costs little here
	}
	w.cut()
	if tall {
		return w, nil
	}
	return w, o.pack(w)
}

// formOf is how activations meet the parts: as integers where all are quantized.
func (o *Ops) formOf(parts []kernels.Matrix) form {
	quantized, brain := 0, 0
	for _, m := range parts {
		switch {
		case m.Type.BlockSize() > 1:
			quantized++
		case m.Type == kernels.BF16:
			brain++
		}
	}
	switch len(parts) {
	case quantized:
		return o.integer
	case brain:
		return o.float
	}
	return floatForm
}

// integer tells whether activations are integers.
func (w *weight) integer() bool { return w.form == byteForm || w.form == wordForm }

// cut gives each run of parts of one format a segment. Where formats change
// inside a group of 64 outputs, all is kept as float32.
func (w *weight) cut() {
	row := 0
	for _, m := range w.parts {
		f := formats[formatOf(m.Type, w.integer())]
		if n := len(w.segments); n > 0 && w.segments[n-1].format.kind != f.kind && row%groupRows != 0 {
			w.segments, w.form = []segment{w.segment(formats[formatF32], 0, w.groups)}, floatForm
			break
		} else if n == 0 || w.segments[n-1].format.kind != f.kind {
			w.segments = append(w.segments, w.segment(f, row/groupRows, 0))
		}
		row += m.Rows
		s := &w.segments[len(w.segments)-1]
		s.groups = (row+groupRows-1)/groupRows - s.first
	}
	for _, s := range w.segments {
		w.offset = w.offset || s.format.offset
	}
}

func (w *weight) segment(f format, first, groups int) segment {
	return segment{format: f, first: first, groups: groups, blocks: (w.cols + f.columns - 1) / f.columns}
}

// pack fills the packed form, once, on all workers.
func (o *Ops) pack(w *weight) error {
	if w.packed || w.rows == 0 || w.cols == 0 {
		return nil
	}
	for i := range w.segments {
		s := &w.segments[i]
		data, err := o.memory.take(s.groups * s.groupBytes())
		if err != nil {
			return fmt.Errorf("weight %s: %w", w.parts[0].Name, err)
		}
		s.data = data
	}
	w.packed = true
	o.packing = packTask{o, w}
	o.pool.run(&o.packing, w.groups)
	o.packing = packTask{}
	return nil
}

type packTask struct {
	o *Ops
	w *weight
}

// do packs one group of 64 outputs, 16 at a time, a part's rows after another's.
func (t *packTask) do(worker, g int) {
	w := t.w
	s := w.of(g)
	k := &t.o.workers[worker].packer
	k.format, k.transpose = s.format, t.o.kernels.transpose
	dst := s.group(g)
	for p := range groupRows / 16 {
		lo, first := g*groupRows+16*p, 0
		var rows [16]packedRow
		for _, m := range w.parts {
			for r := max(lo, first); r < min(lo+16, first+m.Rows); r++ {
				row := packedRow{m.Data[(r-first)*m.Stride:], m.Type}
				if formatOf(m.Type, w.integer()) != s.format.kind {
					wide := make([]float32, m.Cols)
					ref.Dequantize(m, r-first, wide)
					row = packedRow{bytesOf(wide), kernels.F32}
				}
				rows[r-lo] = row
			}
			first += m.Rows
		}
		k.pack(dst, p, &rows, w.cols)
	}
}
