package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// An integerFormat is a packed weight for products with integer activations:
// unsigned codes in blocks of 32 columns, four to a lane of 32 bits, in each eight
// columns first the even ones, then the odd ones.
type integerFormat struct {
	name    string
	nibbles bool
	halves  bool // a scale for each 16 columns
	minima  bool
	wide    bool    // scales and minima are f32
	centre  float64 // what a code of zero stands for, where no f16 minimum tells
}

var integerFormats = []integerFormat{
	{name: "Q4", nibbles: true, minima: true},
	{name: "Q4S", nibbles: true, centre: 8},
	{name: "Q4W", nibbles: true, minima: true, wide: true, centre: 8},
	{name: "Q8V", centre: 128},
	{name: "Q8WV", minima: true, wide: true, centre: 128},
	{name: "Q6V", halves: true, wide: true, centre: 128},
}

func (f integerFormat) panelBytes() int {
	if f.nibbles {
		return 256
	}
	return 512
}

func (f integerFormat) scaleBytes() int {
	if f.wide {
		return 4
	}
	return 2
}

// blockBytes of 32 columns; with halves these are two blocks of 16.
func (f integerFormat) blockBytes() int {
	n := 4*f.panelBytes() + 64*f.scaleBytes()
	if f.minima || f.halves {
		n += 64 * f.scaleBytes()
	}
	return n
}

// record is the size of a row's 32 quantized activations. In one byte a value:
// 32 codes, four shifts (of eight values each), Σx of all, of the first and of the
// last 16, one scale. In two: 32 high bytes, 32 low ones, one scale, the sums.
func record(terms int) int {
	if terms == 1 {
		return 64
	}
	return 80
}

// sumsAt is where a record's sums begin, scaleAt where its scale lies.
func sumsAt(terms int) int {
	if terms == 1 {
		return 48
	}
	return 68
}

func scaleAt(terms int) int {
	if terms == 1 {
		return 60
	}
	return 64
}

// mostShift is the most that eight values are finer than the coarsest of their
// record. Sums of 32 products of nibbles stay below 2²⁴ with it, those of bytes
// below 2²⁷.
const mostShift = 7

const integerSignature = "func(y *float32, x *byte, stride uintptr, w *byte, blocks, rows, first, panels uintptr)"

// productInteger adds to y[r·64+i] the Σₖ x[r][k] · w[i][k] for rows i of a packed
// group: those of some panels, an even number, the first of which y begins with; x in
// records. 32 values add up in integers: acc += d·s·(Σ code·v), acc += m·Σx, block by
// block, or without minima acc += d·(s·(Σ code·v) - centre·Σx). The sums so far lie in y, so that one loop serves any number of rows.
func productInteger(f integerFormat, terms int) {
	label := name("integer%sT%d", f.name, terms)
	TEXT(label, NOSPLIT, integerSignature)
	Doc(name("%s multiplies rows in %d bytes a value with panels of one packed group.", label, terms))
	y, x, stride, w := pointer("y"), pointer("x"), pointer("stride"), pointer("w")
	blocks := pointer("blocks")
	b := integerBlock{f: f, terms: terms, cursor: w, scale: GP64(), out: GP64(), row: GP64(), rows: GP64(), stride: stride}
	if f.nibbles {
		b.low = ZMM()
		VPBROADCASTD(words("lowNibbles", 0x0f0f0f0f), b.low)
	}
	if !f.minima {
		b.centre = ZMM()
		VBROADCASTSS(f.minusCentre(), b.centre)
	}
	b.panels(y, x, blocks, b.panelsAtOnce(), func() {
		MOVQ(x, b.row)
		Load(Param("rows"), b.rows)
		b.panel()
	})
	end()
}

// panelsAtOnce: two panels share the loads of a byte's activations, which would take
// longer than the products; with two bytes the products take longer.
func (b integerBlock) panelsAtOnce() int { return 3 - b.terms }

// panels calls panel for each n panels of each block; b.out is where their outputs lie.
func (b integerBlock) panels(y, x, blocks GPVirtual, n int, panel func()) {
	f, w := b.f, b.cursor
	first, left, column, ahead := GP64(), GP64(), GP64(), GP64()
	LEAQ(Mem{Base: w, Disp: f.scalesAt()}, b.scale)
	Load(Param("first"), first)
	IMUL3Q(U32(uint32(16*f.scaleBytes())), first, left)
	ADDQ(left, b.scale)
	IMUL3Q(U32(uint32(f.stepOfPanel())), first, left)
	ADDQ(left, w)
	LEAQ(Mem{Base: w, Disp: 4096}, ahead)

	Label("block")
	Load(Param("panels"), left)
	MOVQ(y, column)
	Label("panel")
	for i := 0; i < n*f.blockBytes()/4; i += 64 { // a stream: ask for what comes 4 KB later
		PREFETCHT0(Mem{Base: ahead, Disp: i})
	}
	ADDQ(U32(uint32(n*f.blockBytes()/4)), ahead)
	MOVQ(column, b.out)
	panel()
	ADDQ(U32(uint32(64*n)), column)
	ADDQ(U32(uint32(n*f.stepOfPanel())), w)
	ADDQ(U32(uint32(16*n*f.scaleBytes())), b.scale)
	SUBQ(Imm(uint64(n)), left)
	JNZ(LabelRef("panel"))
	ADDQ(U32(uint32(record(b.terms))), x)
	for _, step := range []struct {
		cursor GPVirtual
		panel  int
	}{{w, f.stepOfPanel()}, {b.scale, 16 * f.scaleBytes()}, {ahead, f.blockBytes() / 4}} {
		back := GP64()
		Load(Param("panels"), back)
		IMUL3Q(U32(uint32(step.panel)), back, back)
		ADDQ(U32(uint32(f.blockBytes())), step.cursor)
		SUBQ(back, step.cursor)
	}
	DECQ(blocks)
	JNZ(LabelRef("block"))
}

// With halves, the codes of the first 16 columns of all panels come before the
// first scales, as in two blocks.
func (f integerFormat) scalesAt() int {
	if f.halves {
		return 2 * f.panelBytes()
	}
	return 4 * f.panelBytes()
}

func (f integerFormat) stepOfPanel() int {
	if f.halves {
		return f.panelBytes() / 2
	}
	return f.panelBytes()
}

type integerBlock struct {
	f                      integerFormat
	terms                  int
	low, centre            VecVirtual
	cursor, scale          GPVirtual // codes and scales of the panel
	out, row, rows, stride GPVirtual
}

// panel loads one block of the panels at hand and adds its products with all rows.
func (b integerBlock) panel() {
	f, n := b.f, b.panelsAtOnce()
	parts := 1
	if f.halves {
		parts = 2
	}
	half := f.blockBytes() / 2
	codes := make([][]VecVirtual, n) // four columns of 16 outputs each
	d, m := make([][]VecVirtual, n), make([][]VecVirtual, n)
	for p := range n {
		for i := range 4 {
			at := Mem{Base: b.cursor, Disp: p*f.stepOfPanel() + i*f.panelBytes()/4}
			if f.halves {
				at.Disp = p*f.stepOfPanel() + i/2*half + i%2*128
			}
			codes[p] = append(codes[p], b.codes(at)...)
		}
		for i := range parts {
			scale, minimum := ZMM(), b.centre
			if f.minima {
				minimum = ZMM()
			}
			b.scales(Mem{Base: b.scale, Disp: 16*p*f.scaleBytes() + i*half}, scale, minimum)
			d[p], m[p] = append(d[p], scale), append(m[p], minimum)
		}
	}
	Label("row")
	acc := make([]VecVirtual, n)
	for i := range parts {
		from, to := 4/parts*i, 4/parts*(i+1)
		at := sumsAt(b.terms)
		if f.halves {
			at += 4 + 4*i
		}
		var sums []VecVirtual
		if b.terms == 1 {
			sums = b.oneByte(codes, from, to)
		} else {
			sums = b.twoBytes(codes, from, to)
		}
		totals := sums
		if f.minima {
			totals = acc
		}
		add := func() {
			for p, sum := range sums {
				if i == 0 {
					acc[p] = ZMM()
					VMOVUPS(Mem{Base: b.out, Disp: 64 * p}, acc[p])
				}
				VFMADD231PS(sum, d[p][i], acc[p])
			}
		}
		if f.minima {
			add()
		}
		b.activation(VBROADCASTSS, VFMADD231PS, VFMADD231PS_BCST, at, func(p int) []Op { return []Op{m[p][i], totals[p]} })
		if !f.minima {
			add()
		}
	}
	for p, v := range acc {
		VMOVUPS(v, Mem{Base: b.out, Disp: 64 * p})
	}
	ADDQ(U32(256), b.out)
	ADDQ(b.stride, b.row)
	DECQ(b.rows)
	JNZ(LabelRef("row"))
}

// codes loads eight columns.
func (b integerBlock) codes(at Mem) []VecVirtual {
	even, odd := ZMM(), ZMM()
	VMOVDQU32(at, even)
	if b.f.nibbles {
		VPSRLD(Imm(4), even, odd)
		VPANDD(b.low, even, even)
		VPANDD(b.low, odd, odd)
	} else {
		VMOVDQU32(at.Offset(64), odd)
	}
	return []VecVirtual{even, odd}
}

// activation applies op to a word of the row and the operands of each panel: with
// several the word is loaded once.
func (b integerBlock) activation(load, op, direct func(...Op), at int, of func(panel int) []Op) {
	n, word := b.panelsAtOnce(), Mem{Base: b.row, Disp: at}
	if n == 1 {
		direct(append([]Op{word}, of(0)...)...)
		return
	}
	wide := ZMM()
	load(word, wide)
	for p := range n {
		op(append([]Op{wide}, of(p)...)...)
	}
}

// oneByte gives s·Σ 2^shift·(Σ code·v) over groups [from, to) of eight columns.
func (b integerBlock) oneByte(codes [][]VecVirtual, from, to int) []VecVirtual {
	sums := make([]VecVirtual, len(codes))
	for g := from; g < to; g++ {
		totals := make([]VecVirtual, len(codes))
		for p := range totals {
			totals[p] = ZMM()
			VPXORD(totals[p], totals[p], totals[p])
		}
		for c := 2 * g; c < 2*g+2; c++ {
			b.activation(VPBROADCASTD, VPDPBUSD, VPDPBUSD_BCST, 4*c, func(p int) []Op { return []Op{codes[p][c], totals[p]} })
		}
		b.activation(VPBROADCASTD, VPSLLVD, VPSLLVD_BCST, 32+4*g, func(p int) []Op { return []Op{totals[p], totals[p]} })
		for p, total := range totals {
			if g == from {
				sums[p] = total
			} else {
				VPADDD(total, sums[p], sums[p])
			}
		}
	}
	b.scaled(sums)
	return sums
}

// scaled turns integers to floats, times the record's scale.
func (b integerBlock) scaled(sums []VecVirtual) {
	for _, sum := range sums {
		VCVTDQ2PS(sum, sum)
	}
	b.activation(VBROADCASTSS, VMULPS, VMULPS_BCST, scaleAt(b.terms), func(p int) []Op { return []Op{sums[p], sums[p]} })
}

// twoBytes gives s·(256·Σ code·high + Σ code·low).
func (b integerBlock) twoBytes(codes [][]VecVirtual, from, to int) []VecVirtual {
	var sums []VecVirtual
	for _, panel := range codes {
		high, low := ZMM(), ZMM()
		VPXORD(high, high, high)
		VPXORD(low, low, low)
		for c := 2 * from; c < 2*to; c++ {
			VPDPBUSD_BCST(Mem{Base: b.row, Disp: 4 * c}, panel[c], high)
			VPDPBUSD_BCST(Mem{Base: b.row, Disp: 32 + 4*c}, panel[c], low)
		}
		VPSLLD(Imm(8), high, high)
		VPADDD(high, low, low)
		sums = append(sums, low)
	}
	b.scaled(sums)
	return sums
}

// scales loads the scales of a panel, and what a unit of Σx adds where there are minima.
func (b integerBlock) scales(at Mem, d, m VecVirtual) {
	f := b.f
	load := func(at Mem, v VecVirtual) {
		if f.wide {
			VMOVUPS(at, v)
		} else {
			VCVTPH2PS(at, v)
		}
	}
	load(at, d)
	if !f.minima {
		return
	}
	load(at.Offset(64*f.scaleBytes()), m)
	if f.centre != 0 {
		VFMADD231PS_BCST(f.minusCentre(), d, m)
	}
}

// minusCentre is what a code of zero stands for.
func (f integerFormat) minusCentre() Mem { return float(name("minus%d", int(f.centre)), -f.centre) }
