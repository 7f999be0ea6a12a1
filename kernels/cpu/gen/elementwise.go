package main

import (
	"math"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// elementwise writes the loops over rows of n floats. n may be anything: the last
// vector is masked, and what lies past n is neither read nor written.
func elementwise() {
	addTo()
	mulScale()
	sumSquares()
	silu("siluTo", false)
	silu("siluMul", true)
	geluTanh()
	gelu()
	softcap()
	highest()
	expSum()
	blockSums()
	narrow("narrowF16", func(x, y VecVirtual) { VCVTPS2PH(Imm(0), x, y.AsY()) })
	narrow("narrowBF16", roundBrain)
	scaleTo()
	blend()
}

// loop runs body for each vector of n floats; in the last the mask k is partial.
// masked vectors of the body read zero where k is off.
func loop(n GPVirtual, body func(k Register, advance func(p ...GPVirtual))) {
	k := K()
	all := GP32()
	MOVL(U32(0xffff), all)
	KMOVW(all, k)
	advance := func(p ...GPVirtual) {
		for _, r := range p {
			ADDQ(Imm(64), r)
		}
	}
	Label("loop")
	CMPQ(n, Imm(16))
	JGE(LabelRef("whole"))
	TESTQ(n, n)
	JZ(LabelRef("done"))
	tail := GP64()
	MOVQ(I64(-1), tail)
	BZHIQ(n, tail, tail)
	KMOVW(tail.As32(), k)
	MOVQ(U32(16), n)
	Label("whole")
	body(k, advance)
	SUBQ(Imm(16), n)
	JMP(LabelRef("loop"))
	Label("done")
}

func pointer(p string) GPVirtual { return Load(Param(p), GP64()).(GPVirtual) }

func addTo() {
	TEXT("addTo", NOSPLIT, "func(dst, src *float32, n uintptr)")
	Doc("addTo computes dst += src.")
	dst, src, n := pointer("dst"), pointer("src"), pointer("n")
	loop(n, func(k Register, advance func(...GPVirtual)) {
		a, b := ZMM(), ZMM()
		VMOVUPS_Z(Mem{Base: dst}, k, a)
		VMOVUPS_Z(Mem{Base: src}, k, b)
		VADDPS(b, a, a)
		VMOVUPS(a, k, Mem{Base: dst})
		advance(dst, src)
	})
	VZEROUPPER()
	RET()
}

func mulScale() {
	TEXT("mulScale", NOSPLIT, "func(dst, x, w *float32, scale float32, n uintptr)")
	Doc("mulScale computes dst = x · scale · w.")
	dst, x, w, n := pointer("dst"), pointer("x"), pointer("w"), pointer("n")
	scale := ZMM()
	VBROADCASTSS(NewParamAddr("scale", 24), scale)
	loop(n, func(k Register, advance func(...GPVirtual)) {
		a, b := ZMM(), ZMM()
		VMOVUPS_Z(Mem{Base: x}, k, a)
		VMOVUPS_Z(Mem{Base: w}, k, b)
		VMULPS(scale, a, a)
		VMULPS(b, a, a)
		VMOVUPS(a, k, Mem{Base: dst})
		advance(dst, x, w)
	})
	VZEROUPPER()
	RET()
}

func scaleTo() {
	TEXT("scaleTo", NOSPLIT, "func(dst, x *float32, scale float32, n uintptr)")
	Doc("scaleTo computes dst = x · scale.")
	dst, x, n := pointer("dst"), pointer("x"), pointer("n")
	scale := ZMM()
	VBROADCASTSS(NewParamAddr("scale", 16), scale)
	loop(n, func(k Register, advance func(...GPVirtual)) {
		a := ZMM()
		VMOVUPS_Z(Mem{Base: x}, k, a)
		VMULPS(scale, a, a)
		VMOVUPS(a, k, Mem{Base: dst})
		advance(dst, x)
	})
	VZEROUPPER()
	RET()
}

func blend() {
	TEXT("blend", NOSPLIT, "func(dst, x *float32, a, b float32, n uintptr)")
	Doc("blend computes dst = dst · a + x · b.")
	dst, x, n := pointer("dst"), pointer("x"), pointer("n")
	a, b := ZMM(), ZMM()
	VBROADCASTSS(NewParamAddr("a", 16), a)
	VBROADCASTSS(NewParamAddr("b", 20), b)
	loop(n, func(k Register, advance func(...GPVirtual)) {
		y, v := ZMM(), ZMM()
		VMOVUPS_Z(Mem{Base: x}, k, v)
		VMOVUPS_Z(Mem{Base: dst}, k, y)
		VMULPS(b, v, v)
		VFMADD213PS(v, a, y)
		VMOVUPS(y, k, Mem{Base: dst})
		advance(dst, x)
	})
	VZEROUPPER()
	RET()
}

// fold reduces a vector to its lowest lane by halves.
func fold(v VecVirtual, op func(a, b, dst VecVirtual)) {
	y, x := YMM(), XMM()
	VEXTRACTF32X8(Imm(1), v, y)
	op(y, v.AsY().(VecVirtual), v.AsY().(VecVirtual))
	VEXTRACTF128(Imm(1), v.AsY(), x)
	op(x, v.AsX().(VecVirtual), v.AsX().(VecVirtual))
	VPERMILPS(Imm(0b01001110), v.AsX(), x)
	op(x, v.AsX().(VecVirtual), v.AsX().(VecVirtual))
	VPERMILPS(Imm(0b10110001), v.AsX(), x)
	op(x, v.AsX().(VecVirtual), v.AsX().(VecVirtual))
}

func add(a, b, dst VecVirtual)   { VADDPS(a, b, dst) }
func maxOf(a, b, dst VecVirtual) { VMAXPS(a, b, dst) }

func sumSquares() {
	TEXT("sumSquares", NOSPLIT, "func(x *float32, n uintptr) float32")
	Doc("sumSquares adds the squares in 16 lanes, then the lanes by halves.")
	x, n := pointer("x"), pointer("n")
	sum := ZMM()
	VXORPS(sum, sum, sum)
	loop(n, func(k Register, advance func(...GPVirtual)) {
		a := ZMM()
		VMOVUPS_Z(Mem{Base: x}, k, a)
		VFMADD231PS(a, a, sum)
		advance(x)
	})
	fold(sum, add)
	Store(sum.AsX(), ReturnIndex(0))
	VZEROUPPER()
	RET()
}

func highest() {
	TEXT("highest", NOSPLIT, "func(x *float32, n uintptr) float32")
	Doc("highest gives the greatest of n values, or -Inf.")
	x, n := pointer("x"), pointer("n")
	top := ZMM()
	VBROADCASTSS(float("lowest", math.Inf(-1)), top)
	loop(n, func(k Register, advance func(...GPVirtual)) {
		a := ZMM()
		VMOVUPS_Z(Mem{Base: x}, k, a)
		VMAXPS(top, a, k, top) // a NaN in a leaves top
		advance(x)
	})
	fold(top, maxOf)
	Store(top.AsX(), ReturnIndex(0))
	VZEROUPPER()
	RET()
}

// exponential replaces x by eˣ: x = n·ln 2 + r, |r| ≤ ln 2 / 2, a polynomial of
// degree 6 in r (Cephes' expf; Moshier 1992), times 2ⁿ. Below -87.3 it gives 0:
// subnormal results would take a hundred cycles each.
func exponential(x VecVirtual) {
	n, y, normal := ZMM(), ZMM(), K()
	VCMPPS_BCST(Imm(5), float("expLow", -87.3), x, normal) // not x < -87.3
	VBROADCASTSS(float("expLow", -87.3), y)
	VMAXPS(x, y, x) // where x is NaN, x
	VBROADCASTSS(float("expHigh", 100), y)
	VMINPS(x, y, x)
	VMULPS_BCST(float("log2e", math.Log2E), x, n)
	VRNDSCALEPS(Imm(8), n, n)
	VFNMADD231PS_BCST(float("ln2High", 0.693359375), n, x)
	VFNMADD231PS_BCST(float("ln2Low", -2.12194440e-4), n, x)
	VBROADCASTSS(float("exp0", 1.9875691500e-4), y)
	for i, c := range []float64{1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1, 1, 1} {
		VFMADD213PS_BCST(float(name("exp%d", i+1), c), x, y)
	}
	VSCALEFPS_Z(n, y, normal, x)
}

func expSum() {
	TEXT("expSum", NOSPLIT, "func(x *float32, n uintptr, less float32) float32")
	Doc("expSum replaces x by exp(x - less) and adds it in 16 lanes, then the lanes by halves.")
	x, n := pointer("x"), pointer("n")
	less, sum := ZMM(), ZMM()
	VBROADCASTSS(NewParamAddr("less", 16), less)
	VXORPS(sum, sum, sum)
	loop(n, func(k Register, advance func(...GPVirtual)) {
		a := ZMM()
		VMOVUPS_Z(Mem{Base: x}, k, a)
		VSUBPS(less, a, a)
		exponential(a)
		VADDPS(a, sum, k, sum)
		VMOVUPS(a, k, Mem{Base: x})
		advance(x)
	})
	fold(sum, add)
	Store(sum.AsX(), ReturnIndex(0))
	VZEROUPPER()
	RET()
}

func silu(label string, gated bool) {
	signature := "func(dst, x *float32, n uintptr)"
	if gated {
		signature = "func(dst, x, up *float32, n uintptr)"
	}
	TEXT(label, NOSPLIT, signature)
	Doc(label + " computes x·σ(x), gated: times up (Elfwing, Uchibe & Doya 2018, eq. 1).")
	dst, x, n := pointer("dst"), pointer("x"), pointer("n")
	pointers := []GPVirtual{dst, x}
	var up GPVirtual
	if gated {
		up = pointer("up")
		pointers = append(pointers, up)
	}
	zero := ZMM()
	VXORPS(zero, zero, zero)
	loop(n, func(k Register, advance func(...GPVirtual)) {
		a, e := ZMM(), ZMM()
		VMOVUPS_Z(Mem{Base: x}, k, a)
		VSUBPS(a, zero, e)
		exponential(e)
		VADDPS_BCST(float("one", 1), e, e)
		VDIVPS(e, a, a)
		if gated {
			b := ZMM()
			VMOVUPS_Z(Mem{Base: up}, k, b)
			VMULPS(b, a, a)
		}
		VMOVUPS(a, k, Mem{Base: dst})
		advance(pointers...)
	})
	VZEROUPPER()
	RET()
}

// unary writes a function of each value.
func unary(label, doc string, f func(a VecVirtual)) {
	TEXT(label, NOSPLIT, "func(dst, x *float32, n uintptr)")
	Doc(label + doc)
	dst, x, n := pointer("dst"), pointer("x"), pointer("n")
	loop(n, func(k Register, advance func(...GPVirtual)) {
		a := ZMM()
		VMOVUPS_Z(Mem{Base: x}, k, a)
		f(a)
		VMOVUPS(a, k, Mem{Base: dst})
		advance(dst, x)
	})
	VZEROUPPER()
	RET()
}

// geluTanh: ½x(1+tanh u) = x·σ(2u), u = √(2/π)·(x + 0.044715x³).
func geluTanh() {
	unary("geluTanhTo", " computes the tanh form of GELU (Hendrycks & Gimpel 2016, §2).", func(x VecVirtual) {
		e := ZMM()
		VMULPS(x, x, e)
		VMULPS_BCST(float("geluCube", -2*math.Sqrt(2/math.Pi)*0.044715), e, e)
		VADDPS_BCST(float("geluLine", -2*math.Sqrt(2/math.Pi)), e, e)
		VMULPS(x, e, e)
		exponential(e)
		VADDPS_BCST(float("one", 1), e, e)
		VDIVPS(e, x, x)
	})
}

// gelu: x·Φ(x) = max(x, 0) - ½|x|·erfc(|x|/√2), erfc by Abramowitz & Stegun 1964,
// 7.1.26 (within 1.5e-7).
func gelu() {
	unary("geluTo", " computes GELU with erf (Hendrycks & Gimpel 2016, §2).", func(x VecVirtual) {
		z, t, p, e := ZMM(), ZMM(), ZMM(), ZMM()
		VPANDD_BCST(words("absolute", 0x7fffffff), x, z)
		VMULPS(z, z, e)
		VMULPS_BCST(float("minusHalf", -0.5), e, e)
		exponential(e)
		VMULPS_BCST(float("erfP", 0.3275911/math.Sqrt2), z, t)
		VADDPS_BCST(float("one", 1), t, t)
		VBROADCASTSS(float("one", 1), p)
		VDIVPS(t, p, t)
		VBROADCASTSS(float("erf5", 1.061405429), p)
		for i, c := range []float64{-1.453152027, 1.421413741, -0.284496736, 0.254829592} {
			VFMADD213PS_BCST(float(name("erf%d", 4-i), c), t, p)
		}
		VMULPS(t, p, p)
		VMULPS(e, p, p)
		VMULPS(z, p, p)
		VXORPS(t, t, t)
		VMAXPS(x, t, x) // where x is NaN, x
		VFMADD231PS_BCST(float("minusHalf", -0.5), p, x)
	})
}

// softcap: c·tanh(x/c) = c - 2c/(1 + exp(2x/c)).
func softcap() {
	TEXT("softcapTo", NOSPLIT, "func(dst, x *float32, c, inverse float32, n uintptr)")
	Doc("softcapTo computes c·tanh(x/c), given 2/c too (Gemma 2, 2024, §2).")
	dst, x, n := pointer("dst"), pointer("x"), pointer("n")
	c, inverse, twice := ZMM(), ZMM(), ZMM()
	VBROADCASTSS(NewParamAddr("c", 16), c)
	VBROADCASTSS(NewParamAddr("inverse", 20), inverse)
	VADDPS(c, c, twice)
	loop(n, func(k Register, advance func(...GPVirtual)) {
		a := ZMM()
		VMOVUPS_Z(Mem{Base: x}, k, a)
		VMULPS(inverse, a, a)
		exponential(a)
		VADDPS_BCST(float("one", 1), a, a)
		VDIVPS(a, twice, a)
		VSUBPS(a, c, a)
		VMOVUPS(a, k, Mem{Base: dst})
		advance(dst, x)
	})
	VZEROUPPER()
	RET()
}

func blockSums() {
	TEXT("blockSums", NOSPLIT, "func(sums, x *float32, blocks uintptr)")
	Doc("blockSums writes the sum of each 32 values, 16 floats apart.")
	sums, x, n := pointer("sums"), pointer("x"), pointer("blocks")
	Label("loop")
	a := ZMM()
	VMOVUPS(Mem{Base: x}, a)
	VADDPS(Mem{Base: x, Disp: 64}, a, a)
	fold(a, add)
	VMOVSS(a.AsX(), Mem{Base: sums})
	ADDQ(Imm(64), sums)
	ADDQ(U32(128), x)
	DECQ(n)
	JNZ(LabelRef("loop"))
	VZEROUPPER()
	RET()
}

func narrow(label string, round func(x, y VecVirtual)) {
	TEXT(label, NOSPLIT, "func(dst *uint16, x *float32, n uintptr)")
	Doc(label + " rounds to nearest, ties to even; n is a multiple of 16.")
	dst, x, n := pointer("dst"), pointer("x"), pointer("n")
	Label("loop")
	a, b := ZMM(), ZMM()
	VMOVUPS(Mem{Base: x}, a)
	round(a, b)
	VMOVDQU32(b.AsY(), Mem{Base: dst})
	ADDQ(Imm(64), x)
	ADDQ(Imm(32), dst)
	SUBQ(Imm(16), n)
	JNZ(LabelRef("loop"))
	VZEROUPPER()
	RET()
}

// roundBrain: (bits + 0x7fff + lowest kept bit) >> 16; a NaN stays one.
func roundBrain(x, y VecVirtual) {
	odd, nan := ZMM(), K()
	VCMPPS(Imm(3), x, x, nan)
	VPSRLD(Imm(16), x, odd)
	VPANDD_BCST(words("oneBit", 1), odd, odd)
	VPADDD(odd, x, odd)
	VPADDD_BCST(words("half", 0x7fff), odd, odd)
	VPORD_BCST(words("quiet", 0x400000), x, nan, odd)
	VPSRLD(Imm(16), odd, odd)
	VPMOVDW(odd, y.AsY())
}

// spin waits while a word keeps its value, for a bounded number of pauses:
// assembly cannot be preempted.
func spin() {
	TEXT("spin", NOSPLIT, "func(word *uint32, value uint32, pauses uintptr) bool")
	Doc("spin waits until *word differs from value and tells whether it does.")
	word, n := pointer("word"), pointer("pauses")
	value := Load(Param("value"), GP32())
	Label("loop")
	CMPL(Mem{Base: word}, value)
	JNE(LabelRef("changed"))
	PAUSE()
	DECQ(n)
	JNZ(LabelRef("loop"))
	no := GP8()
	XORB(no, no)
	Store(no, ReturnIndex(0))
	RET()
	Label("changed")
	yes := GP8()
	MOVB(U8(1), yes)
	Store(yes, ReturnIndex(0))
	RET()
}
