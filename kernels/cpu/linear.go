package cpu

import (
	"manta/kernels"
)

// A linearTask is a product in units of one packed group (with Gated the group of
// the gates and the group of what they gate) times some tiles of rows.
type linearTask struct {
	o    *Ops
	a    kernels.Linear
	w    *weight
	out  buffer
	x    buffer
	rows int
	cols int // of out
	id   uint64

	tiles, tilesPerUnit, unitsPerGroup int
	groups                             int  // of outputs
	halved                             bool // the middle group is two units
	sums                               []float32
	codes                              buffer // records in place of x
	lazy                               bool   // each worker prepares x for itself
}

// tileOf gives the rows of a tile: all tiles are nearly equal.
func (t *linearTask) tileOf(i int) (lo, hi int) {
	return i * t.rows / t.tiles, (i + 1) * t.rows / t.tiles
}

const (
	lazyRows          = 2  // up to so many rows are prepared by each worker for itself
	unitRowsOfProduct = 96 // rows of a unit in a wide product
	sumsOfATile       = 16
)

// Linear computes out (+)= act(norm(x) · Weightᵀ + Bias), gated or not.
func (o *Ops) Linear(out, x kernels.Tensor, a kernels.Linear) {
	w := a.Weight.(*weight)
	width := w.rows
	if a.Gated {
		width /= 2
	}
	check(out.Rows == x.Rows && out.Cols == width && x.Cols == w.cols, "linear", out, x)
	if a.Gated && width%groupRows != 0 {
		o.gatedApart(out, x, a)
		return
	}
	o.product(*bufferOf(out), *bufferOf(x), x.Rows, a)
}

// product runs a linearTask.
func (o *Ops) product(out, x buffer, rows int, a kernels.Linear) {
	w := a.Weight.(*weight)
	if rows == 0 || w.rows == 0 {
		return
	}
	if err := o.pack(w); err != nil {
		o.fail(err)
		return
	}
	t := &o.linear
	*t = linearTask{o: o, a: a, w: w, out: out, x: x, rows: rows, cols: w.rows, id: t.id + 1}
	groups := w.groups
	if a.Gated {
		t.cols, groups = w.rows/2, w.groups/2
	}
	most := w.tileRows()
	t.tiles = (rows + most - 1) / most
	t.tilesPerUnit = min(t.tiles, unitRowsOfProduct/most)
	t.unitsPerGroup = (t.tiles + t.tilesPerUnit - 1) / t.tilesPerUnit
	o.prepareRows(t)
	t.groups = groups
	t.halved = w.integer() && t.tiles == 1 && groups > 1 && groups%2 == 1 && len(o.workers)%2 == 0
	units := groups * t.unitsPerGroup
	if t.halved {
		units++
	}
	o.pool.run(t, units)
	t.a, t.w = kernels.Linear{}, nil
}

// prepareRows normalises x, and sums or quantizes its blocks, where the product
// needs that.
func (o *Ops) prepareRows(t *linearTask) {
	if t.a.Norm == nil && !t.w.offset && t.w.form == floatForm {
		return
	}
	stride, codes := strideOf(t.w.cols), t.w.codesStride()
	blocks := t.w.sumBlocks()
	t.lazy = t.rows <= lazyRows
	for i := range o.workers {
		w := &o.workers[i]
		if t.lazy || t.w.form != floatForm {
			o.grow(&w.x, lazyRows*stride)
		}
		if t.lazy {
			o.grow(&w.sums, blocks*sumsOfATile)
			o.grow(&w.codes, t.rows*codes)
		}
	}
	if t.lazy {
		return
	}
	o.prepare = prepareTask{t: t, x: t.x}
	switch {
	case t.w.form != floatForm:
		t.codes = buffer{o.grow(&o.scratch.codes, t.rows*codes), codes}
	case t.w.offset:
		t.sums = o.grow(&o.scratch.sums, t.tiles*blocks*sumsOfATile)
	}
	if t.a.Norm != nil && t.w.form == floatForm {
		o.prepare.normed = buffer{o.grow(&o.scratch.x, t.rows*stride), stride}
	}
	o.pool.run(&o.prepare, t.tiles)
	if o.prepare.normed.data != nil {
		t.x = o.prepare.normed
	}
	o.prepare = prepareTask{}
}

// A prepareTask prepares the rows of a product, a tile at a time.
type prepareTask struct {
	t         *linearTask
	x, normed buffer
}

func (p *prepareTask) do(worker, tile int) {
	lo, hi := p.t.tileOf(tile)
	if p.t.w.form != floatForm {
		p.t.quantizeTile(p.x, p.t.codes, p.t.o.workers[worker].x, lo, hi)
		return
	}
	var sums []float32
	if p.t.w.offset {
		sums = p.t.sums[tile*p.t.w.sumBlocks()*sumsOfATile:]
	}
	p.t.prepareTile(p.x, p.normed, sums, lo, hi)
}

// prepareTile normalises rows [lo, hi) of x into those of normed and writes the
// sums of their blocks.
func (t *linearTask) prepareTile(x, normed buffer, sums []float32, lo, hi int) {
	for r := lo; r < hi; r++ {
		src := x.data[r*x.stride:]
		if t.a.Norm != nil {
			src = t.normalised(normed.data[r*normed.stride:][:normed.stride], src)
		}
		if t.w.offset {
			t.o.kernels.blockSums(&sums[r-lo], &src[0], uintptr(t.w.sumBlocks()))
		}
	}
}

// source gives the prepared rows as a worker reads them: floats and sums, or
// records.
func (t *linearTask) source(worker int) (x, codes buffer, sums []float32) {
	if !t.lazy {
		return t.x, t.codes, t.sums
	}
	w := &t.o.workers[worker]
	x, codes = t.x, buffer{w.codes, t.w.codesStride()}
	own := buffer{w.x, strideOf(t.w.cols)}
	if w.ready != t.id {
		w.ready = t.id
		if t.w.form != floatForm {
			t.quantizeTile(t.x, codes, w.x, 0, t.rows)
		} else {
			t.prepareTile(t.x, own, w.sums, 0, t.rows)
		}
	}
	if t.a.Norm != nil {
		x = own
	}
	return x, codes, w.sums
}

// A piece is the outputs of a unit: panels of one group.
type piece struct{ group, first, panels int }

func (p piece) column() int { return p.group*groupRows + p.first*panelRows }

// pieceOf gives a unit's outputs. An odd number of groups would leave one of two
// workers idle at the end, which costs a small model a twentieth of its decoding.
func (t *linearTask) pieceOf(unit int) piece {
	middle := t.groups / 2
	switch {
	case !t.halved:
		return piece{unit / t.unitsPerGroup, 0, groupPanels}
	case unit < middle:
		return piece{unit, 0, groupPanels}
	case unit <= middle+1:
		return piece{middle, (unit - middle) * groupPanels / 2, groupPanels / 2}
	}
	return piece{unit - 1, 0, groupPanels}
}

func (t *linearTask) do(worker, unit int) {
	p := t.pieceOf(unit)
	first := unit % t.unitsPerGroup * t.tilesPerUnit
	x, codes, sums := t.source(worker)
	y := t.o.workers[worker].tile
	up := y[integerRows*groupRows:]
	for tile := first; tile < min(first+t.tilesPerUnit, t.tiles); tile++ {
		lo, hi := t.tileOf(tile)
		if claim := t.o.kernels.claim; claim != nil && hi-lo > lazyRows {
			claim(&t.out.data[lo*t.out.stride+p.column()], uintptr(4*t.out.stride), uintptr(hi-lo))
		}
		var sum *float32
		if t.w.offset && t.w.form == floatForm {
			sum = &sums[tile*t.w.sumBlocks()*sumsOfATile]
		}
		t.multiply(y, x, codes, sum, p, lo, hi)
		if t.a.Gated {
			t.multiply(up, x, codes, sum, piece{p.group + t.w.groups/2, p.first, p.panels}, lo, hi)
		}
		t.finish(y, up, p, lo, hi)
	}
}

// multiply writes rows [lo, hi) times a piece to y, rows 64 values apart.
func (t *linearTask) multiply(y []float32, x, codes buffer, sums *float32, p piece, lo, hi int) {
	s := t.w.of(p.group)
	packed := &s.group(p.group)[0]
	if t.w.form == brainForm {
		t.o.kernels.dots[hi-lo-1](&y[0], &codes.data[lo*codes.stride], uintptr(4*codes.stride), nil, packed, uintptr(s.blocks))
		return
	}
	if t.w.form != floatForm {
		clear(y[:(hi-lo)*groupRows])
		kernel := t.o.kernels.integers[t.w.form-byteForm][s.format.kind]
		kernel(&y[0], byteOf(&codes.data[lo*codes.stride]), uintptr(4*codes.stride), packed, uintptr(t.w.sumBlocks()), uintptr(hi-lo), uintptr(p.first), uintptr(p.panels))
		return
	}
	kernel := t.o.kernels.products[s.format.kind][hi-lo-1]
	kernel(&y[0], &x.data[lo*x.stride], uintptr(4*x.stride), sums, packed, uintptr(s.blocks))
}

// finish takes a tile of sums to the output: bias, softcap, activation, gate.
func (t *linearTask) finish(y, up []float32, p piece, lo, hi int) {
	column := p.column()
	n := min(p.panels*panelRows, t.cols-column)
	bias := floats(t.a.Bias)
	for r := lo; r < hi; r++ {
		v, u := y[(r-lo)*groupRows:][:n], up[(r-lo)*groupRows:][:n]
		if bias != nil {
			t.o.kernels.addTo(&v[0], &bias[column], uintptr(n))
			if t.a.Gated {
				t.o.kernels.addTo(&u[0], &bias[t.cols+column], uintptr(n))
			}
		}
		dst := t.out.data[r*t.out.stride+column:][:n]
		if !t.a.Accumulate {
			t.o.kernels.activate(dst, v, u, t.a)
			continue
		}
		t.o.kernels.activate(v, v, u, t.a)
		t.o.kernels.addTo(&dst[0], &v[0], uintptr(n))
	}
}

// activate writes v to dst, which may be v, with softcap, activation and gate.
func (s *kernelSet) activate(dst, v, up []float32, a kernels.Linear) {
	n := uintptr(len(v))
	if a.Softcap > 0 {
		s.softcapTo(&dst[0], &v[0], a.Softcap, 2/a.Softcap, n)
		v = dst
	}
	switch a.Activation {
	case kernels.SiLU:
		if a.Gated {
			s.siluMul(&dst[0], &v[0], &up[0], n)
			return
		}
		s.siluTo(&dst[0], &v[0], n)
	case kernels.GELU:
		s.geluTo(&dst[0], &v[0], n)
	case kernels.GELUTanh:
		s.geluTanhTo(&dst[0], &v[0], n)
	default:
		copy(dst, v)
	}
	if a.Gated {
		for i := range dst {
			dst[i] *= up[i]
		}
	}
}

// gatedApart computes gates and what they gate side by side, then joins them:
// where half the outputs are no whole number of groups.
func (o *Ops) gatedApart(out, x kernels.Tensor, a kernels.Linear) {
	w := a.Weight.(*weight)
	stride := strideOf(w.rows)
	y := buffer{o.grow(&o.scratch.wide, x.Rows*stride), stride}
	plain := kernels.Linear{Weight: a.Weight, Bias: a.Bias, Norm: a.Norm}
	o.product(y, *bufferOf(x), x.Rows, plain)
	if out.Cols == 0 {
		return
	}
	for r := range x.Rows {
		gate, up := y.row(r, out.Cols), y.row(r, w.rows)[out.Cols:]
		o.kernels.activate(gate, gate, up, a)
		if dst := row(out, r); a.Accumulate {
			o.kernels.addTo(&dst[0], &gate[0], uintptr(out.Cols))
		} else {
			copy(dst, gate)
		}
	}
}
