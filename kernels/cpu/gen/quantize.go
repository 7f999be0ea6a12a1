package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// quantize writes the records of a row of 32·blocks values. In two bytes:
// v = round(x·32512/max|x|), 32512 = 127·256, with the greatest magnitude of 32 values.
// In one: v = round(x·2ᵉ·127/max|x|) with the same greatest magnitude, and for each
// eight values the greatest e up to 7 at which they fit. So sums of eight join as
// integers, after shifts, and yet small values beside a great one keep their bits.
// A NaN makes its record's scale one.
func quantize(terms int) {
	text(name("quantizeT%d", terms), "func(dst *byte, x *float32, blocks uintptr)", name(" writes each 32 values as a record of %d bytes a value.", terms))
	dst, x, n := pointer("dst"), pointer("x"), pointer("blocks")
	most, unit := 127.0, 1/127.0/(1<<mostShift)
	if terms == 2 {
		most, unit = 32512, 1/32512.0
	}
	order := XMM()
	VMOVDQU(words("evenFirst", 0x06040200, 0x07050301, 0x0e0c0a08, 0x0f0d0b09), order)
	Label("loop")
	var v, top, sums [2][]VecVirtual // of 16 values each
	for i := range v {
		v[i], top[i], sums[i] = sixteen(), sixteen(), sixteen()
		for q := range v[i] {
			VMOVUPS(part{i: q}.at(x).Offset(64*i), v[i][q])
			andConst(words("absolute", 0x7fffffff), v[i][q], top[i][q])
		}
	}
	whole, inverse := vec(), vec()
	if terms == 1 {
		for _, t := range append(top[0], top[1]...) {
			greatest(t)
		}
	}
	VMOVAPS(top[0][0], whole)
	for _, t := range append(top[0][1:], top[1]...) {
		VPMAXUD(t, whole, whole)
	}
	if !narrow {
		other := ZMM()
		VSHUFF32X4(Imm(0b01001110), whole, whole, other)
		VPMAXUD(other, whole, whole)
	}
	if terms == 2 {
		greatest(whole)
	}
	least := vec()
	VBROADCASTSS(float("tiniest", 1e-30), least)
	VMAXPS(whole, least, whole) // gives a NaN of whole
	VBROADCASTSS(float(name("most%d", terms), most), inverse)
	VDIVPS(whole, inverse, inverse)
	coarsest := vec()
	mulConst(float(name("least%d", terms), 1/most), whole, coarsest)
	for i := range v {
		for q, values := range v[i] {
			scale, finer, e := coarsest, inverse, top[i][q]
			if terms == 1 {
				maxConst(float("tiniest", 1e-30), e, e)
				VPSUBD(e, whole, e) // of two floats' bits: the exponents' difference is e
				VPSRLD(Imm(23), e, e)
				minConst(words("mostShift", mostShift), e, e)
				shift := vec()
				xorConst(words("mostShift", mostShift), e, shift) // mostShift-e: both have three bits
				storeWords(shift, Mem{Base: dst, Disp: 32 + 8*i + 4*q})
				VPSLLD(Imm(23), e, e)
				scale, finer = vec(), vec()
				VPADDD(e, inverse, finer)
				VPSUBD(e, coarsest, scale)
			}
			VMULPS(finer, values, values)
			VCVTPS2DQ(values, values)
			VCVTDQ2PS(values, sums[i][q])
			VMULPS(scale, sums[i][q], sums[i][q])
			at := 16*i + 8*q
			if terms == 2 {
				up := vec()
				addWordConst(words("oneTwentyEight", 128), values, up)
				VPSRAD(Imm(8), up, up)
				storeBytes(up, order, Mem{Base: dst, Disp: at})
			}
			storeBytes(values, order, Mem{Base: dst, Disp: 32*(terms-1) + at})
		}
	}
	for i, s := range sums {
		VMOVSS(fold(s, add), Mem{Base: dst, Disp: sumsAt(terms) + 4 + 4*i})
	}
	VADDSS(sums[1][0].AsX(), sums[0][0].AsX(), sums[0][0].AsX())
	VMOVSS(sums[0][0].AsX(), Mem{Base: dst, Disp: sumsAt(terms)})
	mulConst(float(name("unit%d", terms), unit), whole, whole)
	VMOVSS(whole.AsX(), Mem{Base: dst, Disp: scaleAt(terms)})
	ADDQ(U32(uint32(record(terms))), dst)
	ADDQ(U32(128), x)
	DECQ(n)
	JNZ(LabelRef("loop"))
	end()
}

// greatest takes each eight lanes to their greatest, by bits: a NaN is the greatest.
func greatest(t VecVirtual) {
	other := vec()
	if narrow {
		VPERM2F128(Imm(1), t, t, other)
	} else {
		VSHUFF32X4(Imm(0b10110001), t, t, other)
	}
	VPMAXUD(other, t, t)
	VPERMILPS(Imm(0b01001110), t, other)
	VPMAXUD(other, t, t)
	VPERMILPS(Imm(0b10110001), t, other)
	VPMAXUD(other, t, t)
}

// storeWords stores one word of each eight lanes.
func storeWords(scale VecVirtual, to Mem) {
	VMOVSS(scale.AsX(), to)
	if !narrow {
		half := YMM()
		VEXTRACTF32X8(Imm(1), scale, half)
		VMOVSS(half.AsX(), to.Offset(4))
	}
}

// storeBytes stores the lowest byte of each lane, in each eight the even ones first.
func storeBytes(v, order VecVirtual, to Mem) {
	bytes := XMM()
	if !narrow {
		VPMOVDB(v, bytes)
		VPSHUFB(order, bytes, bytes)
		VMOVDQU(bytes, to)
		return
	}
	low := YMM()
	VANDPS(words("lowByte", 255), v, low)
	VPACKUSDW(low, low, low)
	VPERMQ(Imm(0b1000), low, low)
	VPACKUSWB(low.AsX(), low.AsX(), bytes)
	VPSHUFB(order, bytes, bytes)
	VMOVQ(bytes, to)
}
