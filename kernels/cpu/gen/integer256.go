package main

import (
	. "github.com/mmcloughlin/avo/build"
	"github.com/mmcloughlin/avo/ir"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// Registers of the integer products with 8 lanes. They are named, since Go's
// assembler lacks the dot instruction of AVX-VNNI: Y0 to Y7 hold the codes of a
// block (or are free, when these lie on the stack), Y8 its sum, Y9 and Y10 what is
// at hand, Y11 integers, then the output's sum, Y12 to Y15 scales and minima.
var ymms = []VecPhysical{Y0, Y1, Y2, Y3, Y4, Y5, Y6, Y7, Y8, Y9, Y10, Y11, Y12, Y13, Y14, Y15}

// An integerBlock256 is an integerBlock with AVX2. Sums of products of bytes in 16
// bits must not saturate, so codes of bytes are cut into nibbles, which wait on the
// stack: 15·128 times 16 fits. With AVX-VNNI neither is needed.
type integerBlock256 struct {
	integerBlock
	vnni  bool
	stack Mem
}

// split tells whether codes lie on the stack as nibbles.
func (b integerBlock256) split() bool { return !b.f.nibbles && !b.vnni }

// low and high are the nibbles of code vector i.
func (b integerBlock256) low(i int) Mem  { return b.stack.Offset(64 * i) }
func (b integerBlock256) high(i int) Mem { return b.stack.Offset(64*i + 32) }

// productInteger256 is productInteger with AVX2: the same integers, so the same bits.
func productInteger256(f integerFormat, terms int, vnni bool) {
	label := name("integer%sT%d", f.name, terms)
	if vnni {
		label += "VNNI"
	}
	text(label, integerSignature, name(" multiplies rows in %d bytes a value with panels of one packed group.", terms))
	y, x, stride, w := pointer("y"), pointer("x"), pointer("stride"), pointer("w")
	blocks := pointer("blocks")
	b := integerBlock256{integerBlock: integerBlock{f: f, terms: terms, cursor: w, scale: GP64(), out: GP64(), row: GP64(), rows: GP64(), stride: stride}, vnni: vnni}
	if b.split() {
		b.stack = AllocLocal(512)
	}
	b.panels(y, x, blocks, 1, func() {
		for half := range 2 {
			if half > 0 { // the rows before have moved it
				Load(Param("rows"), b.rows)
				SHLQ(Imm(8), b.rows)
				SUBQ(b.rows, b.out)
				ADDQ(Imm(32), b.out)
			}
			MOVQ(x, b.row)
			Load(Param("rows"), b.rows)
			b.half(half)
		}
	})
	end()
}

// half loads one block of half a panel and adds its products with all rows.
func (b integerBlock256) half(half int) {
	f := b.f
	for i := range 4 {
		m := Mem{Base: b.cursor, Disp: i*f.panelBytes()/4 + 32*half}
		if f.halves {
			m.Disp = i/2*f.blockBytes()/2 + i%2*128 + 32*half
		}
		even, odd := ymms[2*i], ymms[2*i+1]
		VMOVDQU(m, even)
		switch {
		case f.nibbles:
			cutNibbles(even, odd)
		case b.vnni:
			VMOVDQU(m.Offset(64), odd)
		default:
			VMOVDQU(m.Offset(64), odd)
			for j, c := range []VecPhysical{even, odd} {
				cutNibbles(c, Y9)
				VMOVDQU(c, b.low(2*i+j))
				VMOVDQU(Y9, b.high(2*i+j))
			}
		}
	}
	parts := 1
	if f.halves {
		parts = 2
	}
	for i := range parts {
		b.scales256(Mem{Base: b.scale, Disp: i*f.blockBytes()/2 + 8*f.scaleBytes()*half}, ymms[12+2*i], ymms[13+2*i])
	}
	row := name("row%d", half)
	Label(row)
	for i := range parts {
		from, to := 4/parts*i, 4/parts*(i+1)
		if b.terms == 1 {
			b.oneByte256(from, to)
		} else {
			b.twoBytes256(from, to)
		}
		at := sumsAt(b.terms)
		if f.halves {
			at += 4 + 4*i
		}
		VBROADCASTSS(Mem{Base: b.row, Disp: at}, Y9)
		VMOVUPS(Mem{Base: b.out}, Y11)
		if !f.minima {
			VFMADD231PS(f.minusCentre(), Y9, Y8)
		}
		VFMADD231PS(Y8, ymms[12+2*i], Y11)
		if f.minima {
			VFMADD231PS(Y9, ymms[13+2*i], Y11)
		}
		VMOVUPS(Y11, Mem{Base: b.out})
	}
	ADDQ(U32(256), b.out)
	ADDQ(b.stride, b.row)
	DECQ(b.rows)
	JNZ(LabelRef(row))
}

// cutNibbles leaves the low nibbles in c.
func cutNibbles(c, high VecPhysical) {
	mask := words("lowNibbles", 0x0f0f0f0f)
	VPSRLD(Imm(4), c, high)
	VPAND(mask, c, c)
	VPAND(mask, high, high)
}

// dotBytes writes VPDPBUSD x, codes, sum: unsigned codes times signed x, four
// products to a lane (VEX.256.66.0F38.W0 50 /r).
func dotBytes(codes, x, sum int) {
	for _, b := range []int{0xc4, (^sum>>3&1)<<7 | 0x40 | (^x>>3&1)<<5 | 2, (^codes&15)<<3 | 4 | 1, 0x50, 0xc0 | sum&7<<3 | x&7} {
		Instruction(&ir.Instruction{Opcode: "BYTE", Operands: []Op{U8(uint8(b))}})
	}
}

func (b integerBlock256) activations(at int, to VecPhysical) {
	VPBROADCASTD(Mem{Base: b.row, Disp: at}, to)
}

func onesWords() Mem     { return words("onesWords", 0x00010001) }
func sixteensWords() Mem { return words("sixteensWords", 0x00100010) }

// oneByte256 leaves s·Σ 2^shift·(Σ code·v) over groups [from, to) of eight columns in Y8.
func (b integerBlock256) oneByte256(from, to int) {
	for g := from; g < to; g++ {
		b.activations(8*g, Y9)
		b.activations(8*g+4, Y10)
		switch {
		case b.vnni:
			VPXOR(Y11, Y11, Y11)
			dotBytes(2*g, 9, 11)
			dotBytes(2*g+1, 10, 11)
			VMOVDQA(Y11, Y9)
		case b.split():
			for i, x := range []VecPhysical{Y9, Y10} {
				for j, m := range []Mem{b.low(2*g + i), b.high(2*g + i)} {
					VMOVDQU(m, ymms[2*i+j])
					VPMADDUBSW(x, ymms[2*i+j], ymms[2*i+j])
				}
			}
			VPADDW(Y2, Y0, Y0)
			VPADDW(Y3, Y1, Y1)
			VPMADDWD(onesWords(), Y0, Y0)
			VPMADDWD(sixteensWords(), Y1, Y1)
			VPADDD(Y1, Y0, Y9)
		default:
			VPMADDUBSW(Y9, ymms[2*g], Y9)
			VPMADDUBSW(Y10, ymms[2*g+1], Y10)
			VPADDW(Y10, Y9, Y9)
			VPMADDWD(onesWords(), Y9, Y9)
		}
		b.activations(32+4*g, Y10)
		if g == from {
			VPSLLVD(Y10, Y9, Y8)
		} else {
			VPSLLVD(Y10, Y9, Y9)
			VPADDD(Y9, Y8, Y8)
		}
	}
	VCVTDQ2PS(Y8, Y8)
	VBROADCASTSS(Mem{Base: b.row, Disp: scaleAt(1)}, Y10)
	VMULPS(Y10, Y8, Y8)
}

// twoBytes256 leaves s·(256·Σ code·high + Σ code·low) in Y8.
func (b integerBlock256) twoBytes256(from, to int) {
	if b.split() {
		b.twoBytesSplit(from, to)
	} else {
		for c := 2 * from; c < 2*to; c++ {
			for i, total := range []VecPhysical{Y9, Y10} { // high bytes, low bytes
				switch {
				case b.vnni:
					if c == 2*from {
						VPXOR(total, total, total)
					}
					b.activations(32*i+4*c, Y8)
					dotBytes(c, 8, 9+i)
				case c == 2*from:
					b.activations(32*i+4*c, total)
					VPMADDUBSW(total, ymms[c], total)
				default:
					b.activations(32*i+4*c, Y8)
					VPMADDUBSW(Y8, ymms[c], Y8)
					VPADDW(Y8, total, total)
				}
			}
		}
		if !b.vnni {
			VPMADDWD(onesWords(), Y9, Y9)
			VPMADDWD(onesWords(), Y10, Y10)
		}
	}
	VPSLLD(Imm(8), Y9, Y9)
	VPADDD(Y9, Y10, Y8)
	VCVTDQ2PS(Y8, Y8)
	VBROADCASTSS(Mem{Base: b.row, Disp: 64}, Y9)
	VMULPS(Y9, Y8, Y8)
}

// twoBytesSplit leaves Σ code·high in Y9 and Σ code·low in Y10: sums in 16 bits of
// high bytes with low and high nibbles in Y9 and Y10, of low bytes in Y4 and Y5.
func (b integerBlock256) twoBytesSplit(from, to int) {
	for c := 2 * from; c < 2*to; c++ {
		VMOVDQU(b.low(c), Y0)
		VMOVDQU(b.high(c), Y1)
		for i, sums := range [][2]VecPhysical{{Y9, Y10}, {Y4, Y5}} {
			b.activations(32*i+4*c, Y8)
			for j, total := range sums {
				if c == 2*from {
					VPMADDUBSW(Y8, ymms[j], total)
					continue
				}
				VPMADDUBSW(Y8, ymms[j], Y2)
				VPADDW(Y2, total, total)
			}
		}
	}
	for _, sums := range [][2]VecPhysical{{Y9, Y10}, {Y4, Y5}} {
		VPMADDWD(onesWords(), sums[0], sums[0])
		VPMADDWD(sixteensWords(), sums[1], sums[1])
		VPADDD(sums[1], sums[0], sums[0])
	}
	VMOVDQA(Y4, Y10)
}

// scales256 is scales with 8 lanes.
func (b integerBlock256) scales256(at Mem, d, m VecPhysical) {
	f := b.f
	load := func(at Mem, v VecPhysical) {
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
		VFMADD231PS(f.minusCentre(), d, m)
	}
}
