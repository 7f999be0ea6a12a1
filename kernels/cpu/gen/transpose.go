package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// transpose writes dst[j][i] = src[i][j] for 16 × 16 words of 32 bits.
func transpose() {
	TEXT("transpose16", NOSPLIT, "func(dst, src *uint32, srcStride uintptr)")
	Doc("transpose16 writes dst[j][i] = src[i][j] for 16 × 16 words; rows of src are srcStride bytes apart.")
	dst, src, stride := pointer("dst"), pointer("src"), pointer("srcStride")
	a, b := make([]VecVirtual, 16), make([]VecVirtual, 16)
	for i := range a {
		a[i], b[i] = ZMM(), ZMM()
	}
	for i := range a {
		VMOVUPS(Mem{Base: src}, a[i])
		ADDQ(stride, src)
	}
	// Words, then pairs of words, inside each 128 bits.
	for i := 0; i < 16; i += 2 {
		VUNPCKLPS(a[i+1], a[i], b[i])
		VUNPCKHPS(a[i+1], a[i], b[i+1])
	}
	for i := 0; i < 16; i += 4 {
		VUNPCKLPD(b[i+2], b[i], a[i])
		VUNPCKHPD(b[i+2], b[i], a[i+1])
		VUNPCKLPD(b[i+3], b[i+1], a[i+2])
		VUNPCKHPD(b[i+3], b[i+1], a[i+3])
	}
	// a[4r+c] holds, in 128 bits q, column 4q+c of rows 4r to 4r+3.
	for c := range 4 {
		VSHUFF32X4(Imm(0x88), a[4+c], a[c], b[c])
		VSHUFF32X4(Imm(0xdd), a[4+c], a[c], b[4+c])
		VSHUFF32X4(Imm(0x88), a[12+c], a[8+c], b[8+c])
		VSHUFF32X4(Imm(0xdd), a[12+c], a[8+c], b[12+c])
	}
	for c := range 4 {
		out := []VecVirtual{a[c], a[4+c], a[8+c], a[12+c]}
		VSHUFF32X4(Imm(0x88), b[8+c], b[c], out[0])
		VSHUFF32X4(Imm(0x88), b[12+c], b[4+c], out[1])
		VSHUFF32X4(Imm(0xdd), b[8+c], b[c], out[2])
		VSHUFF32X4(Imm(0xdd), b[12+c], b[4+c], out[3])
		for q, v := range out {
			VMOVUPS(v, Mem{Base: dst, Disp: 64 * (4*q + c)})
		}
	}
	end()
}

// transpose256 does the same in quarters of 8 × 8.
func transpose256() {
	text("transpose16", "func(dst, src *uint32, srcStride uintptr)", " writes dst[j][i] = src[i][j] for 16 × 16 words; rows of src are srcStride bytes apart.")
	dst, src, stride := pointer("dst"), pointer("src"), pointer("srcStride")
	for quarter := range 4 {
		right, down := quarter%2, quarter/2
		row := GP64()
		LEAQ(Mem{Base: src, Disp: 32 * right}, row)
		a, b := make([]VecVirtual, 8), make([]VecVirtual, 8)
		for i := range a {
			a[i], b[i] = YMM(), YMM()
			VMOVUPS(Mem{Base: row}, a[i])
			ADDQ(stride, row)
		}
		for i := 0; i < 8; i += 2 {
			VUNPCKLPS(a[i+1], a[i], b[i])
			VUNPCKHPS(a[i+1], a[i], b[i+1])
		}
		for i := 0; i < 8; i += 4 {
			VUNPCKLPD(b[i+2], b[i], a[i])
			VUNPCKHPD(b[i+2], b[i], a[i+1])
			VUNPCKLPD(b[i+3], b[i+1], a[i+2])
			VUNPCKHPD(b[i+3], b[i+1], a[i+3])
		}
		// a[4r+c] holds, in 128 bits q, column 4q+c of rows 4r to 4r+3.
		for c := range 4 {
			for q, half := range []uint64{0x20, 0x31} {
				out := YMM()
				VPERM2F128(Imm(half), a[4+c], a[c], out)
				VMOVUPS(out, Mem{Base: dst, Disp: 64*(8*right+4*q+c) + 32*down})
			}
		}
		if right == 1 && down == 0 {
			half := GP64()
			MOVQ(stride, half)
			SHLQ(Imm(3), half)
			ADDQ(half, src)
		}
	}
	end()
}
