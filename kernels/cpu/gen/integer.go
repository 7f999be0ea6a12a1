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

// record is the size of a row's 32 quantized activations: their codes, then the
// scale s, s·Σv of all 32, of the first and of the last 16.
func record(terms int) int { return 32*terms + 16 }

func integerPanels(rows int) int {
	switch {
	case rows <= 3:
		return 4
	case rows <= 6:
		return 2
	}
	return 1
}

// productInteger writes y[r·64+i] = Σₖ x[r][k] · w[i][k] for the 64 rows i of a
// packed group, x in one or two signed bytes a value (256·high + low). Each block
// adds up exactly, in integers: acc += d·(s·Σ code·v), acc += m·(s·Σv).
func productInteger(f integerFormat, terms, rows int) {
	label := name("integer%sT%dR%d", f.name, terms, rows)
	TEXT(label, NOSPLIT, "func(y *float32, x *byte, stride uintptr, w *byte, blocks uintptr)")
	Doc(name("%s multiplies %d rows in %d bytes a value with one packed group.", label, rows, terms))
	panels := integerPanels(rows)
	y, stride, w := Load(Param("y"), GP64()), Load(Param("stride"), GP64()), Load(Param("w"), GP64())
	stride3 := GP64()
	LEAQ(Mem{Base: stride, Index: stride, Scale: 2}, stride3)
	bases := make([]Register, (rows+2)/3)
	for i := range bases {
		bases[i] = GP64()
	}
	at := func(r, disp int) Mem {
		m := Mem{Base: bases[r/3], Disp: disp}
		if r%3 > 0 {
			m.Index, m.Scale = stride, uint8(r%3)
		}
		return m
	}
	low := ZMM()
	if f.nibbles {
		VPBROADCASTD(words("lowNibbles", 0x0f0f0f0f), low)
	}
	scales := GP64()
	LEAQ(Mem{Base: w, Disp: f.scalesAt()}, scales)
	turn := GP64()
	MOVQ(U32(uint32(4/panels)), turn)

	Label("panels")
	Load(Param("x"), bases[0])
	for i := 1; i < len(bases); i++ {
		LEAQ(Mem{Base: bases[i-1], Index: stride3, Scale: 1}, bases[i])
	}
	blocks := Load(Param("blocks"), GP64())
	cursor, scale := GP64(), GP64()
	MOVQ(w, cursor)
	MOVQ(scales, scale)
	acc := make([][]VecVirtual, panels)
	for p := range acc {
		for range rows {
			a := ZMM()
			VXORPS(a, a, a)
			acc[p] = append(acc[p], a)
		}
	}
	b := integerBlock{f: f, terms: terms, low: low, cursor: cursor, scale: scale, at: at}

	Label("block")
	for p := range panels {
		if rows <= 2 { // a stream from memory: ask for what comes 4 KB later
			for i := 0; i < f.panelBytes(); i += 64 {
				PREFETCHT0(Mem{Base: cursor, Disp: 4096 + p*f.panelBytes() + i})
			}
		}
		b.panel(p, acc[p])
	}
	for _, base := range bases {
		ADDQ(U32(uint32(record(terms))), base)
	}
	ADDQ(U32(uint32(f.blockBytes())), cursor)
	ADDQ(U32(uint32(f.blockBytes())), scale)
	DECQ(blocks)
	JNZ(LabelRef("block"))
	for p := range panels {
		for r := range rows {
			VMOVUPS(acc[p][r], Mem{Base: y, Disp: 256*r + 64*p})
		}
	}
	ADDQ(U32(uint32(64*panels)), y)
	ADDQ(U32(uint32(panels*f.stepOfPanel())), w)
	ADDQ(U32(uint32(16*f.scaleBytes()*panels)), scales)
	DECQ(turn)
	JNZ(LabelRef("panels"))
	VZEROUPPER()
	RET()
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
	f             integerFormat
	terms         int
	low           VecVirtual
	cursor, scale GPVirtual
	at            func(r, disp int) Mem
}

// panel adds one block of one panel to acc.
func (b integerBlock) panel(p int, acc []VecVirtual) {
	f := b.f
	codes := make([]VecVirtual, 8) // four columns of 16 outputs each
	for i := range codes {
		codes[i] = ZMM()
	}
	half := f.blockBytes() / 2
	for i := range 4 {
		even, odd := codes[2*i], codes[2*i+1]
		m := Mem{Base: b.cursor, Disp: p*f.stepOfPanel() + i*f.panelBytes()/4}
		if f.halves {
			m.Disp = i/2*half + p*f.stepOfPanel() + i%2*128
		}
		if f.nibbles {
			VMOVDQU32(m, even)
			VPSRLD(Imm(4), even, odd)
			VPANDD(b.low, even, even)
			VPANDD(b.low, odd, odd)
		} else {
			VMOVDQU32(m, even)
			VMOVDQU32(m.Offset(64), odd)
		}
	}
	parts, sums := 1, []int{4}
	if f.halves {
		parts, sums = 2, []int{8, 12}
	}
	d, m := make([]VecVirtual, parts), make([]VecVirtual, parts)
	for i := range parts {
		d[i], m[i] = ZMM(), ZMM()
		b.scales(Mem{Base: b.scale, Disp: i*half + 16*f.scaleBytes()*p}, d[i], m[i])
	}
	meta := 32 * b.terms
	high, total := ZMM(), ZMM()
	for r, a := range acc {
		for i := range parts {
			group := codes[8/parts*i : 8/parts*(i+1)]
			first := 4 * 8 / parts * i
			VPXORD(total, total, total)
			if b.terms == 2 {
				VPXORD(high, high, high)
				for c, w := range group {
					VPDPBUSD_BCST(b.at(r, first+4*c), w, high)
				}
			}
			for c, w := range group {
				VPDPBUSD_BCST(b.at(r, 32*(b.terms-1)+first+4*c), w, total)
			}
			if b.terms == 2 {
				VPSLLD(Imm(8), high, high)
				VPADDD(high, total, total)
			}
			VCVTDQ2PS(total, total)
			VMULPS_BCST(b.at(r, meta), total, total)
			VFMADD231PS(total, d[i], a)
			VFMADD231PS_BCST(b.at(r, meta+sums[i]), m[i], a)
		}
	}
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

// quantize writes records of a row of 32·blocks values: v = round(x·most/max|x|),
// in one byte (most 127) or two (most 32512 = 127·256: the high byte fits).
func quantize(terms int) {
	TEXT(name("quantizeT%d", terms), NOSPLIT, "func(dst *byte, x *float32, blocks uintptr)")
	Doc(name("quantizeT%d writes each 32 values as %d bytes a value, with scale and sums.", terms, terms))
	dst, x, n := pointer("dst"), pointer("x"), pointer("blocks")
	most := 127.0
	if terms == 2 {
		most = 32512
	}
	Label("loop")
	absolute, order := ZMM(), XMM()
	VPBROADCASTD(words("absolute", 0x7fffffff), absolute)
	VMOVDQU(words("evenFirst", 0x06040200, 0x07050301, 0x0e0c0a08, 0x0f0d0b09), order)
	var v [2]VecVirtual
	for i := range v {
		v[i] = ZMM()
		VMOVUPS(Mem{Base: x, Disp: 64 * i}, v[i])
	}
	// The greatest magnitude, by its bits: a NaN is the greatest.
	top, other := ZMM(), ZMM()
	VPANDD(absolute, v[0], top)
	VPANDD(absolute, v[1], other)
	VPMAXUD(other, top, top)
	fold(top, func(a, b, dst VecVirtual) { VPMAXUD(a, b, dst) })
	scale, inverse := XMM(), XMM()
	VMAXSS(float("tiniest", 1e-30), top.AsX(), scale) // a NaN in the first source would be lost
	VUCOMISS(top.AsX(), top.AsX())
	JNP(LabelRef("number"))
	VMOVAPS(top.AsX(), scale)
	Label("number")
	VMOVSS(float(name("most%d", terms), most), inverse)
	VDIVSS(scale, inverse, inverse)
	VMULSS(float(name("least%d", terms), 1/most), scale, scale)
	wide := ZMM()
	VBROADCASTSS(inverse, wide)
	var sums [2]VecVirtual
	for i := range v {
		VMULPS(wide, v[i], v[i])
		VCVTPS2DQ(v[i], v[i])
		sums[i] = ZMM()
		VMOVDQA32(v[i], sums[i])
		bytes := XMM()
		if terms == 2 {
			up := ZMM()
			VPADDD_BCST(words("oneTwentyEight", 128), v[i], up)
			VPSRAD(Imm(8), up, up)
			VPMOVDB(up, bytes)
			VPSHUFB(order, bytes, bytes)
			VMOVDQU(bytes, Mem{Base: dst, Disp: 16 * i})
		}
		VPMOVDB(v[i], bytes)
		VPSHUFB(order, bytes, bytes)
		VMOVDQU(bytes, Mem{Base: dst, Disp: 32*(terms-1) + 16*i})
	}
	for i := range sums {
		fold(sums[i], func(a, b, dst VecVirtual) { VPADDD(a, b, dst) })
	}
	all := XMM()
	VPADDD(sums[0].AsX(), sums[1].AsX(), all)
	VMOVSS(scale, Mem{Base: dst, Disp: 32 * terms})
	for i, s := range []Op{all, sums[0].AsX(), sums[1].AsX()} {
		f := XMM()
		VCVTDQ2PS(s, f)
		VMULSS(scale, f, f)
		VMOVSS(f, Mem{Base: dst, Disp: 32*terms + 4 + 4*i})
	}
	ADDQ(U32(uint32(record(terms))), dst)
	ADDQ(U32(128), x)
	DECQ(n)
	JNZ(LabelRef("loop"))
	VZEROUPPER()
	RET()
}
