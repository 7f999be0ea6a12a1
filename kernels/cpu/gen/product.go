package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// maxRows is the most rows of activations that one product kernel takes.
const maxRows = 12

// A format is a packed weight: 64 output rows (four panels of 16 lanes), blocks
// of columns one after the other. A block holds the codes of panel 0, 1, 2, 3,
// then, when scaled, four times 16 scales, then when offset four times 16 minima.
type format struct {
	name           string
	columns        int // in a block
	codes          int // bytes of eight columns of one panel
	scaled, offset bool
	wide           bool // scales and minima are f32, and the minima hold the codes' centre
	// expand puts column j of 8 at w into t; z is a scratch register per panel.
	expand func(w Mem, j int, z, t VecVirtual, tab VecVirtual)
}

func (f format) panelBytes() int { return f.codes * f.columns / 8 }

func (f format) blockBytes() int {
	n := 4 * f.panelBytes()
	if f.scaled {
		n += 64 * f.scaleBytes()
	}
	if f.offset {
		n += 64 * f.scaleBytes()
	}
	return n
}

func (f format) scaleBytes() int {
	if f.wide {
		return 4
	}
	return 2
}

var formats = []format{
	{name: "F32", columns: 8, codes: 512, expand: func(w Mem, j int, z, t, _ VecVirtual) {
		VMOVUPS(w.Offset(64*j), t)
	}},
	{name: "F16", columns: 8, codes: 256, expand: func(w Mem, j int, z, t, _ VecVirtual) {
		VCVTPH2PS(w.Offset(32*j), t)
	}},
	{name: "BF16", columns: 8, codes: 256, expand: func(w Mem, j int, z, t, mask VecVirtual) {
		if j%2 == 0 { // a lane holds two columns: the even one low
			VPSLLD(Imm(16), w.Offset(32*j), t)
		} else {
			VPANDD(w.Offset(32*(j-1)), mask, t)
		}
	}},
	{name: "Q8", columns: 32, codes: 128, scaled: true, expand: signedByte},
	{name: "Q4", columns: 32, codes: 64, scaled: true, offset: true, expand: nibble},
	{name: "Q4S", columns: 32, codes: 64, scaled: true, expand: nibble},
	{name: "Q8W", columns: 32, codes: 128, scaled: true, offset: true, wide: true, expand: signedByte},
	{name: "Q6", columns: 16, codes: 128, scaled: true, wide: true, expand: signedByte},
	{name: "Q4W", columns: 32, codes: 64, scaled: true, offset: true, wide: true, expand: nibble},
}

func signedByte(w Mem, j int, z, t, _ VecVirtual) {
	VPMOVSXBD(w.Offset(16*j), t)
	VCVTDQ2PS(t, t)
}

// nibble: a lane holds eight columns, the first lowest; VPERMPS reads the lowest
// four bits of a lane alone, so that it masks, converts and centres at once.
func nibble(w Mem, j int, z, t, table VecVirtual) {
	if j == 0 {
		VMOVDQU32(w, z)
		VPERMPS(table, z, t)
		return
	}
	VPSRLD(Imm(uint64(4*j)), z, t)
	VPERMPS(table, t, t)
}

// panels is how many panels a kernel keeps in registers at once.
func (f format) panels(rows int) int {
	for _, p := range []int{4, 2} {
		need := p*rows + p + 2
		if f.scaled {
			need = 2*p*rows + 2*p + 2
		}
		if need <= 31 {
			return p
		}
	}
	return 1
}

// product writes y[r·64+i] = Σₖ x[r][k] · w[i][k] for the 64 rows i of one packed
// group. Each output has one order of summation for any number of rows: within a
// block from the first column to the last, then acc += d·s, acc += (m+8d)·Σx
// (wide: m·Σx).
//
// x: rows at a distance of stride bytes, padded with zeros to whole blocks.
// sums: 16 floats a block, Σx of row r at r (formats with an offset).
func product(f format, rows int) {
	TEXT(name("product%sR%d", f.name, rows), NOSPLIT, "func(y, x *float32, stride uintptr, sums *float32, w *byte, blocks uintptr)")
	Doc(name("product%sR%d multiplies %d rows with one packed group of 64 outputs.", f.name, rows, rows))
	panels := f.panels(rows)
	y := Load(Param("y"), GP64())
	stride := Load(Param("stride"), GP64())
	w := Load(Param("w"), GP64())
	stride3 := GP64()
	LEAQ(Mem{Base: stride, Index: stride, Scale: 2}, stride3)
	bases := make([]Register, (rows+2)/3)
	for i := range bases {
		bases[i] = GP64()
	}
	at := func(r, j int) Mem {
		m := Mem{Base: bases[r/3], Disp: 4 * j}
		if r%3 > 0 {
			m.Index, m.Scale = stride, uint8(r%3)
		}
		return m
	}
	table := ZMM()
	if f.codes == 64 {
		VMOVUPS(centred(), table)
	} else if f.name == "BF16" {
		VPBROADCASTD(highHalf(), table)
	}
	scales := GP64()
	if f.scaled {
		LEAQ(Mem{Base: w, Disp: 4 * f.panelBytes()}, scales)
	}
	turn := GP64()
	MOVQ(U32(uint32(4/panels)), turn)

	Label("panels")
	Load(Param("x"), bases[0])
	for i := 1; i < len(bases); i++ {
		LEAQ(Mem{Base: bases[i-1], Index: stride3, Scale: 1}, bases[i])
	}
	blocks := Load(Param("blocks"), GP64())
	sums := GP64()
	if f.offset {
		Load(Param("sums"), sums)
	}
	cursor, scale := GP64(), GP64()
	MOVQ(w, cursor)
	acc := make([][]VecVirtual, panels)
	s := make([][]VecVirtual, panels)
	z, t := make([]VecVirtual, panels), make([]VecVirtual, panels)
	for p := range panels {
		z[p], t[p] = ZMM(), ZMM()
		for range rows {
			a := ZMM()
			VXORPS(a, a, a)
			acc[p] = append(acc[p], a)
			if f.scaled {
				s[p] = append(s[p], ZMM())
			}
		}
	}
	if !f.scaled {
		s = acc
	} else {
		MOVQ(scales, scale)
	}
	wide := ZMM()

	Label("block")
	if f.scaled {
		for p := range panels {
			for r := range rows {
				VXORPS(s[p][r], s[p][r], s[p][r])
			}
		}
	}
	group := GP64()
	if f.columns > 8 {
		MOVQ(U32(uint32(f.columns/8)), group)
		Label("eight")
	}
	for j := range 8 {
		if lines := f.codes / 64; rows <= 2 { // a stream: ask for what comes 4 KB later
			for i := j * lines * panels / 8; i < (j+1)*lines*panels/8; i++ {
				PREFETCHT0(Mem{Base: cursor, Disp: 4096 + i/lines*f.panelBytes() + 64*(i%lines)})
			}
		}
		for p := range panels {
			f.expand(Mem{Base: cursor, Disp: p * f.panelBytes()}, j, z[p], t[p], table)
		}
		for r := range rows {
			if panels == 1 {
				VFMADD231PS_BCST(at(r, j), t[0], s[0][r])
				continue
			}
			VBROADCASTSS(at(r, j), wide)
			for p := range panels {
				VFMADD231PS(wide, t[p], s[p][r])
			}
		}
	}
	ADDQ(U32(uint32(f.codes)), cursor)
	for _, b := range bases {
		ADDQ(Imm(32), b)
	}
	if f.columns > 8 {
		DECQ(group)
		JNZ(LabelRef("eight"))
	}
	ADDQ(U32(uint32(f.blockBytes()-f.panelBytes())), cursor)
	if f.scaled {
		for p := range panels {
			d, m := t[p], z[p]
			at := Mem{Base: scale, Disp: 16 * f.scaleBytes() * p}
			if f.wide {
				VMOVUPS(at, d)
				if f.offset {
					VMOVUPS(at.Offset(64*4), m)
				}
			} else {
				VCVTPH2PS(at, d)
				if f.offset {
					VCVTPH2PS(at.Offset(64*2), m)
					VFMADD231PS_BCST(eightFloat(), d, m)
				}
			}
			for r := range rows {
				VFMADD231PS(s[p][r], d, acc[p][r])
				if f.offset {
					VFMADD231PS_BCST(Mem{Base: sums, Disp: 4 * r}, m, acc[p][r])
				}
			}
		}
		ADDQ(U32(uint32(f.blockBytes())), scale)
		if f.offset {
			ADDQ(Imm(64), sums)
		}
	}
	DECQ(blocks)
	JNZ(LabelRef("block"))
	for p := range panels {
		for r := range rows {
			VMOVUPS(acc[p][r], Mem{Base: y, Disp: 256*r + 64*p})
		}
	}
	ADDQ(U32(uint32(64*panels)), y)
	ADDQ(U32(uint32(panels*f.panelBytes())), w)
	if f.scaled {
		ADDQ(U32(uint32(16*f.scaleBytes()*panels)), scales)
	}
	DECQ(turn)
	JNZ(LabelRef("panels"))
	VZEROUPPER()
	RET()
}
