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
// 32 codes, four scales (of eight values each), Σx of all, of the first and of the
// last 16. In two: 32 high bytes, 32 low ones, one scale, the sums.
func record(terms int) int {
	if terms == 1 {
		return 64
	}
	return 80
}

// sumsAt is where a record's sums begin.
func sumsAt(terms int) int {
	if terms == 1 {
		return 48
	}
	return 68
}

const integerSignature = "func(y *float32, x *byte, stride uintptr, w *byte, blocks, rows, first, panels uintptr)"

// productInteger adds to y[r·64+i] the Σₖ x[r][k] · w[i][k] for rows i of a packed
// group: those of some panels, the first of which y begins with; x in records. Eight values (in two bytes: 32) add up exactly, in
// integers: acc += d·Σ s·(Σ code·v), acc += m·Σx, block by block. The sums so far
// lie in y, so that one loop serves any number of rows.
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
	b.panels(y, x, blocks, func() {
		MOVQ(x, b.row)
		Load(Param("rows"), b.rows)
		b.panel()
	})
	end()
}

// panels calls panel for each panel of each block; b.out is where its outputs lie.
func (b integerBlock) panels(y, x, blocks GPVirtual, panel func()) {
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
	for i := 0; i < f.blockBytes()/4; i += 64 { // a stream: ask for what comes 4 KB later
		PREFETCHT0(Mem{Base: ahead, Disp: i})
	}
	ADDQ(U32(uint32(f.blockBytes()/4)), ahead)
	MOVQ(column, b.out)
	panel()
	ADDQ(Imm(64), column)
	ADDQ(U32(uint32(f.stepOfPanel())), w)
	ADDQ(U32(uint32(16*f.scaleBytes())), b.scale)
	DECQ(left)
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
	low                    VecVirtual
	cursor, scale          GPVirtual // codes and scales of the panel
	out, row, rows, stride GPVirtual
}

// panel loads one block of one panel and adds its products with all rows.
func (b integerBlock) panel() {
	f := b.f
	codes := make([]VecVirtual, 8) // four columns of 16 outputs each
	half := f.blockBytes() / 2
	for i := range 4 {
		even, odd := ZMM(), ZMM()
		codes[2*i], codes[2*i+1] = even, odd
		m := Mem{Base: b.cursor, Disp: i * f.panelBytes() / 4}
		if f.halves {
			m.Disp = i/2*half + i%2*128
		}
		VMOVDQU32(m, even)
		if f.nibbles {
			VPSRLD(Imm(4), even, odd)
			VPANDD(b.low, even, even)
			VPANDD(b.low, odd, odd)
		} else {
			VMOVDQU32(m.Offset(64), odd)
		}
	}
	parts := 1
	if f.halves {
		parts = 2
	}
	d, m := make([]VecVirtual, parts), make([]VecVirtual, parts)
	for i := range parts {
		d[i], m[i] = ZMM(), ZMM()
		b.scales(Mem{Base: b.scale, Disp: i * half}, d[i], m[i])
	}
	Label("row")
	acc := ZMM()
	VMOVUPS(Mem{Base: b.out}, acc)
	for i := range parts {
		from, to := 4/parts*i, 4/parts*(i+1)
		var sum VecVirtual
		if b.terms == 1 {
			sum = b.oneByte(codes, from, to)
		} else {
			sum = b.twoBytes(codes, from, to)
		}
		VFMADD231PS(sum, d[i], acc)
		at := sumsAt(b.terms)
		if f.halves {
			at += 4 + 4*i
		}
		VFMADD231PS_BCST(Mem{Base: b.row, Disp: at}, m[i], acc)
	}
	VMOVUPS(acc, Mem{Base: b.out})
	ADDQ(U32(256), b.out)
	ADDQ(b.stride, b.row)
	DECQ(b.rows)
	JNZ(LabelRef("row"))
}

// oneByte gives Σ s·(Σ code·v) over groups [from, to) of eight columns.
func (b integerBlock) oneByte(codes []VecVirtual, from, to int) VecVirtual {
	sum := ZMM()
	for g := from; g < to; g++ {
		total := ZMM()
		VPXORD(total, total, total)
		VPDPBUSD_BCST(Mem{Base: b.row, Disp: 8 * g}, codes[2*g], total)
		VPDPBUSD_BCST(Mem{Base: b.row, Disp: 8*g + 4}, codes[2*g+1], total)
		VCVTDQ2PS(total, total)
		scale := Mem{Base: b.row, Disp: 32 + 4*g}
		if g == from {
			VMULPS_BCST(scale, total, sum)
		} else {
			VFMADD231PS_BCST(scale, total, sum)
		}
	}
	return sum
}

// twoBytes gives s·(256·Σ code·high + Σ code·low).
func (b integerBlock) twoBytes(codes []VecVirtual, from, to int) VecVirtual {
	high, low := ZMM(), ZMM()
	VPXORD(high, high, high)
	VPXORD(low, low, low)
	for c := 2 * from; c < 2*to; c++ {
		VPDPBUSD_BCST(Mem{Base: b.row, Disp: 4 * c}, codes[c], high)
		VPDPBUSD_BCST(Mem{Base: b.row, Disp: 32 + 4*c}, codes[c], low)
	}
	VPSLLD(Imm(8), high, high)
	VPADDD(high, low, low)
	VCVTDQ2PS(low, low)
	VMULPS_BCST(Mem{Base: b.row, Disp: 64}, low, low)
	return low
}

// scales loads the scales of a panel, and what a unit of Σx adds.
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
	if f.minima {
		load(at.Offset(64*f.scaleBytes()), m)
	}
	if f.centre == 0 {
		return
	}
	centre := float(name("minus%d", int(f.centre)), -f.centre)
	if f.minima {
		VFMADD231PS_BCST(centre, d, m)
	} else {
		VMULPS_BCST(centre, d, m)
	}
}
