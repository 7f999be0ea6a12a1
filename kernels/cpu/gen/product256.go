package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// maxRows256 is the most rows of a product kernel with 16 registers of 8 lanes;
// more are several calls.
const maxRows256 = 6

// halves256 is how many half panels (8 outputs each) a kernel has sums for.
func halves256(rows int) int {
	switch {
	case rows == 1:
		return 8
	case rows <= 3:
		return 4
	}
	return 2
}

// expand256 puts column j of 8 of half panel h at w into t.
func (f format) expand256(w GPVirtual, h, j int, t VecVirtual) {
	at := Mem{Base: w, Disp: h / 2 * f.panelBytes()}
	switch {
	case f.name == "F32":
		VMOVUPS(at.Offset(64*j+32*(h%2)), t)
	case f.name == "F16":
		VCVTPH2PS(at.Offset(32*j+16*(h%2)), t)
	case f.name == "BF16": // a lane holds two columns: the even one low
		VMOVUPS(at.Offset(64*(j/2)+32*(h%2)), t)
		if j%2 == 0 {
			VPSLLD(Imm(16), t, t)
		} else {
			VANDPS(highHalf(), t, t)
		}
	case f.codes == 64: // a lane holds eight nibbles, the first lowest
		VMOVUPS(at.Offset(32*(h%2)), t)
		if j > 0 {
			VPSRLD(Imm(uint64(4*j)), t, t)
		}
		VANDPS(words("lowNibble", 15), t, t)
		VCVTDQ2PS(t, t)
		VADDPS(float("minusEight", -8), t, t)
	default:
		VPMOVSXBD(at.Offset(16*j+8*(h%2)), t)
		VCVTDQ2PS(t, t)
	}
}

// product256 is product with AVX2: the same sums in the same order. Scaled formats
// keep an output's sum in y, and that of a block in a register.
func product256(f format, rows int) {
	text(name("product%sR%d", f.name, rows), "func(y, x *float32, stride uintptr, sums *float32, w *byte, blocks uintptr)", name(" multiplies %d rows with one packed group of 64 outputs.", rows))
	halves := halves256(rows)
	y, stride, w := pointer("y"), pointer("stride"), pointer("w")
	bases := []GPVirtual{GP64()}
	stride3 := GP64()
	if rows > 3 {
		bases = append(bases, GP64())
		LEAQ(Mem{Base: stride, Index: stride, Scale: 2}, stride3)
	}
	at := func(r, j int) Mem {
		m := Mem{Base: bases[r/3], Disp: 4 * j}
		if r%3 > 0 {
			m.Index, m.Scale = stride, uint8(r%3)
		}
		return m
	}
	out := func(r, h int) Mem { return Mem{Base: y, Disp: 256*r + 32*h} }
	scales, scale := GP64(), GP64()
	if f.scaled {
		LEAQ(Mem{Base: w, Disp: 4 * f.panelBytes()}, scales)
	}
	turn := GP64()
	MOVQ(U32(uint32(8/halves)), turn)

	Label("halves")
	Load(Param("x"), bases[0])
	if rows > 3 {
		LEAQ(Mem{Base: bases[0], Index: stride3, Scale: 1}, bases[1])
	}
	blocks, sums, cursor := pointer("blocks"), GP64(), GP64()
	if f.offset {
		Load(Param("sums"), sums)
	}
	MOVQ(w, cursor)
	if f.scaled {
		MOVQ(scales, scale)
	}
	s := make([][]VecVirtual, rows)
	zero := YMM()
	VXORPS(zero, zero, zero)
	for r := range s {
		for h := range halves {
			s[r] = append(s[r], YMM())
			if f.scaled {
				VMOVUPS(zero, out(r, h))
			}
		}
	}
	clear := func() {
		for _, row := range s {
			for _, v := range row {
				VXORPS(v, v, v)
			}
		}
	}
	clear()
	Label("block")
	group := GP64()
	if f.columns > 8 {
		MOVQ(U32(uint32(f.columns/8)), group)
		Label("eight")
	}
	for j := range 8 {
		if lines := f.codes / 64; rows <= 2 { // a stream: ask for what comes 4 KB later
			for i := j * lines * halves / 16; i < (j+1)*lines*halves/16; i++ {
				PREFETCHT0(Mem{Base: cursor, Disp: 4096 + i/lines*f.panelBytes() + 64*(i%lines)})
			}
		}
		f.column256(cursor, j, s, at)
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
		for h := range halves {
			f.scale256(h, s, scale, sums, out)
		}
		clear()
		ADDQ(U32(uint32(f.blockBytes())), scale)
		if f.offset {
			ADDQ(Imm(64), sums)
		}
	}
	DECQ(blocks)
	JNZ(LabelRef("block"))
	if !f.scaled {
		for r := range rows {
			for h := range halves {
				VMOVUPS(s[r][h], out(r, h))
			}
		}
	}
	ADDQ(U32(uint32(32*halves)), y)
	ADDQ(U32(uint32(halves/2*f.panelBytes())), w)
	if f.scaled {
		ADDQ(U32(uint32(8*f.scaleBytes()*halves)), scales)
	}
	DECQ(turn)
	JNZ(LabelRef("halves"))
	end()
}

// column256 adds the products of column j of 8.
func (f format) column256(w GPVirtual, j int, s [][]VecVirtual, at func(r, j int) Mem) {
	rows, halves := len(s), len(s[0])
	if rows < halves {
		wide := make([]VecVirtual, rows)
		for r := range wide {
			wide[r] = YMM()
			VBROADCASTSS(at(r, j), wide[r])
		}
		for h := range halves {
			t := YMM()
			f.expand256(w, h, j, t)
			for r := range rows {
				VFMADD231PS(wide[r], t, s[r][h])
			}
		}
		return
	}
	t := make([]VecVirtual, halves)
	for h := range t {
		t[h] = YMM()
		f.expand256(w, h, j, t[h])
	}
	for r := range rows {
		wide := YMM()
		VBROADCASTSS(at(r, j), wide)
		for h := range t {
			VFMADD231PS(wide, t[h], s[r][h])
		}
	}
}

// scale256 adds the block's sums of half panel h to what y holds.
func (f format) scale256(h int, s [][]VecVirtual, scale, sums GPVirtual, out func(r, h int) Mem) {
	d, m := YMM(), YMM()
	at := Mem{Base: scale, Disp: 8 * f.scaleBytes() * h}
	if f.wide {
		VMOVUPS(at, d)
		if f.offset {
			VMOVUPS(at.Offset(64*4), m)
		}
	} else {
		VCVTPH2PS(at, d)
		if f.offset {
			VCVTPH2PS(at.Offset(64*2), m)
			VFMADD231PS(eightFloat(), d, m)
		}
	}
	for r := range s {
		acc := YMM()
		VMOVUPS(out(r, h), acc)
		VFMADD231PS(s[r][h], d, acc)
		if f.offset {
			sum := YMM()
			VBROADCASTSS(Mem{Base: sums, Disp: 4 * r}, sum)
			VFMADD231PS(sum, m, acc)
		}
		VMOVUPS(acc, out(r, h))
	}
}
