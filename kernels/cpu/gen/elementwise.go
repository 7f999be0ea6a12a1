package main

import (
	"math"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// elementwise writes the loops over rows of n floats; n may be anything.
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
	narrowTo("narrowF16", func(x, y VecVirtual) { VCVTPS2PH(Imm(0), x, y) })
	narrowTo("narrowBF16", roundBrain)
	scaleTo()
	blend()
	rotate()
}

func addTo() {
	text("addTo", "func(dst, src *float32, n uintptr)", " computes dst += src.")
	dst, src, n := pointer("dst"), pointer("src"), pointer("n")
	loop(n, []GPVirtual{dst, src}, func(p part) {
		a, b := p.load(dst), p.load(src)
		VADDPS(b, a, a)
		p.store(a, dst)
	})
	end()
}

func mulScale() {
	text("mulScale", "func(dst, x, w *float32, scale float32, n uintptr)", " computes dst = x · scale · w.")
	dst, x, w, n := pointer("dst"), pointer("x"), pointer("w"), pointer("n")
	scale := vec()
	VBROADCASTSS(NewParamAddr("scale", 24), scale)
	loop(n, []GPVirtual{dst, x, w}, func(p part) {
		a, b := p.load(x), p.load(w)
		VMULPS(scale, a, a)
		VMULPS(b, a, a)
		p.store(a, dst)
	})
	end()
}

func scaleTo() {
	text("scaleTo", "func(dst, x *float32, scale float32, n uintptr)", " computes dst = x · scale.")
	dst, x, n := pointer("dst"), pointer("x"), pointer("n")
	scale := vec()
	VBROADCASTSS(NewParamAddr("scale", 16), scale)
	loop(n, []GPVirtual{dst, x}, func(p part) {
		a := p.load(x)
		VMULPS(scale, a, a)
		p.store(a, dst)
	})
	end()
}

func blend() {
	text("blend", "func(dst, x *float32, a, b float32, n uintptr)", " computes dst = dst · a + x · b.")
	dst, x, n := pointer("dst"), pointer("x"), pointer("n")
	a, b := vec(), vec()
	VBROADCASTSS(NewParamAddr("a", 16), a)
	VBROADCASTSS(NewParamAddr("b", 20), b)
	loop(n, []GPVirtual{dst, x}, func(p part) {
		v, y := p.load(x), p.load(dst)
		VMULPS(b, v, v)
		VFMADD213PS(v, a, y)
		p.store(y, dst)
	})
	end()
}

// rotate: as ref.Rotate with halves apart; each product is rounded.
func rotate() {
	text("rotate", "func(dst, x, cos, sin *float32, n uintptr)", " turns pairs (x[i], x[n+i]) by n angles (Su et al. 2021, eq. 34).")
	dst, x, cos, sin, n := pointer("dst"), pointer("x"), pointer("cos"), pointer("sin"), pointer("n")
	dst2, y := GP64(), GP64()
	LEAQ(Mem{Base: dst, Index: n, Scale: 4}, dst2)
	LEAQ(Mem{Base: x, Index: n, Scale: 4}, y)
	loop(n, []GPVirtual{dst, x, cos, sin, dst2, y}, func(p part) {
		a, b, c, s := p.load(x), p.load(y), p.load(cos), p.load(sin)
		t, u := vec(), vec()
		VMULPS(b, s, t)
		VMULPS(a, s, u)
		VMULPS(a, c, a)
		VMULPS(b, c, b)
		VSUBPS(t, a, a)
		VADDPS(u, b, b)
		p.store(a, dst)
		p.store(b, dst2)
	})
	end()
}

func sumSquares() {
	text("sumSquares", "func(x *float32, n uintptr) float32", " adds the squares in 16 lanes, then the lanes by halves.")
	x, n := pointer("x"), pointer("n")
	sum := zeroes()
	loop(n, []GPVirtual{x}, func(p part) {
		a := p.load(x)
		VFMADD231PS(a, a, sum[p.i])
	})
	Store(fold(sum, add), ReturnIndex(0))
	end()
}

// zeroes gives 16 lanes of zero.
func zeroes() []VecVirtual {
	v := sixteen()
	for _, z := range v {
		VXORPS(z, z, z)
	}
	return v
}

func highest() {
	text("highest", "func(x *float32, n uintptr) float32", " gives the greatest of n values, or -Inf.")
	x, n := pointer("x"), pointer("n")
	top := sixteen()
	for _, t := range top {
		VBROADCASTSS(float("lowest", math.Inf(-1)), t)
	}
	loop(n, []GPVirtual{x}, func(p part) {
		p.into(VMAXPS, p.load(x), top[p.i]) // a NaN in x leaves top
	})
	Store(fold(top, maxOf), ReturnIndex(0))
	end()
}

// exponential replaces x by eˣ: x = n·ln 2 + r, |r| ≤ ln 2 / 2, a polynomial of
// degree 6 in r (Cephes' expf; Moshier 1992), times 2ⁿ. Below -87.3 it gives 0:
// subnormal results would take a hundred cycles each.
func exponential(x VecVirtual) {
	n, y, normal := vec(), vec(), Register(nil)
	if narrow {
		mask := YMM()
		normal = mask
		VCMPPS(Imm(5), float("expLow", -87.3), x, mask)
	} else {
		k := K()
		normal = k
		VCMPPS_BCST(Imm(5), float("expLow", -87.3), x, k) // not x < -87.3
	}
	VBROADCASTSS(float("expLow", -87.3), y)
	VMAXPS(x, y, x) // where x is NaN, x
	VBROADCASTSS(float("expHigh", 100), y)
	VMINPS(x, y, x)
	mulConst(float("log2e", math.Log2E), x, n)
	if narrow {
		VROUNDPS(Imm(8), n, n)
	} else {
		VRNDSCALEPS(Imm(8), n, n)
	}
	fnmaConst(float("ln2High", 0.693359375), n, x)
	fnmaConst(float("ln2Low", -2.12194440e-4), n, x)
	VBROADCASTSS(float("exp0", 1.9875691500e-4), y)
	for i, c := range []float64{1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1, 1, 1} {
		hornerConst(float(name("exp%d", i+1), c), x, y)
	}
	if !narrow {
		VSCALEFPS_Z(n, y, normal, x)
		return
	}
	// 2ⁿ as two factors: n may exceed what one holds. Only the last product rounds.
	VCVTPS2DQ(n, n)
	VPSRAD(Imm(1), n, x)
	VPSUBD(x, n, n)
	for _, half := range []VecVirtual{x, n} {
		VPSLLD(Imm(23), half, half)
		VPADDD(float("one", 1), half, half)
		VMULPS(half, y, y)
	}
	VANDPS(normal, y, x)
}

func expSum() {
	text("expSum", "func(x *float32, n uintptr, less float32) float32", " replaces x by exp(x - less) and adds it in 16 lanes, then the lanes by halves.")
	x, n := pointer("x"), pointer("n")
	less, sum := vec(), zeroes()
	VBROADCASTSS(NewParamAddr("less", 16), less)
	loop(n, []GPVirtual{x}, func(p part) {
		a := p.load(x)
		VSUBPS(less, a, a)
		exponential(a)
		p.store(a, x)
		p.into(VADDPS, a, sum[p.i])
	})
	Store(fold(sum, add), ReturnIndex(0))
	end()
}

func silu(label string, gated bool) {
	signature := "func(dst, x *float32, n uintptr)"
	if gated {
		signature = "func(dst, x, up *float32, n uintptr)"
	}
	text(label, signature, " computes x·σ(x), gated: times up (Elfwing, Uchibe & Doya 2018, eq. 1).")
	dst, x, n := pointer("dst"), pointer("x"), pointer("n")
	pointers := []GPVirtual{dst, x}
	var up GPVirtual
	if gated {
		up = pointer("up")
		pointers = append(pointers, up)
	}
	zero := vec()
	VXORPS(zero, zero, zero)
	loop(n, pointers, func(p part) {
		a, e := p.load(x), vec()
		VSUBPS(a, zero, e)
		exponential(e)
		addConst(float("one", 1), e, e)
		VDIVPS(e, a, a)
		if gated {
			VMULPS(p.load(up), a, a)
		}
		p.store(a, dst)
	})
	end()
}

// unary writes a function of each value.
func unary(label, doc string, f func(a VecVirtual)) {
	text(label, "func(dst, x *float32, n uintptr)", doc)
	dst, x, n := pointer("dst"), pointer("x"), pointer("n")
	loop(n, []GPVirtual{dst, x}, func(p part) {
		a := p.load(x)
		f(a)
		p.store(a, dst)
	})
	end()
}

// geluTanh: ½x(1+tanh u) = x·σ(2u), u = √(2/π)·(x + 0.044715x³).
func geluTanh() {
	unary("geluTanhTo", " computes the tanh form of GELU (Hendrycks & Gimpel 2016, §2).", func(x VecVirtual) {
		e := vec()
		VMULPS(x, x, e)
		mulConst(float("geluCube", -2*math.Sqrt(2/math.Pi)*0.044715), e, e)
		addConst(float("geluLine", -2*math.Sqrt(2/math.Pi)), e, e)
		VMULPS(x, e, e)
		exponential(e)
		addConst(float("one", 1), e, e)
		VDIVPS(e, x, x)
	})
}

// gelu: x·Φ(x) = max(x, 0) - ½|x|·erfc(|x|/√2), erfc by Abramowitz & Stegun 1964,
// 7.1.26 (within 1.5e-7).
func gelu() {
	unary("geluTo", " computes GELU with erf (Hendrycks & Gimpel 2016, §2).", func(x VecVirtual) {
		z, t, p, e := vec(), vec(), vec(), vec()
		andConst(words("absolute", 0x7fffffff), x, z)
		VMULPS(z, z, e)
		mulConst(float("minusHalf", -0.5), e, e)
		exponential(e)
		mulConst(float("erfP", 0.3275911/math.Sqrt2), z, t)
		addConst(float("one", 1), t, t)
		VBROADCASTSS(float("one", 1), p)
		VDIVPS(t, p, t)
		VBROADCASTSS(float("erf5", 1.061405429), p)
		for i, c := range []float64{-1.453152027, 1.421413741, -0.284496736, 0.254829592} {
			hornerConst(float(name("erf%d", 4-i), c), t, p)
		}
		VMULPS(t, p, p)
		VMULPS(e, p, p)
		VMULPS(z, p, p)
		VXORPS(t, t, t)
		VMAXPS(x, t, x) // where x is NaN, x
		fmaConst(float("minusHalf", -0.5), p, x)
	})
}

// softcap: c·tanh(x/c) = c - 2c/(1 + exp(2x/c)).
func softcap() {
	text("softcapTo", "func(dst, x *float32, c, inverse float32, n uintptr)", " computes c·tanh(x/c), given 2/c too (Gemma 2, 2024, §2).")
	dst, x, n := pointer("dst"), pointer("x"), pointer("n")
	c, inverse, twice := vec(), vec(), vec()
	VBROADCASTSS(NewParamAddr("c", 16), c)
	VBROADCASTSS(NewParamAddr("inverse", 20), inverse)
	VADDPS(c, c, twice)
	loop(n, []GPVirtual{dst, x}, func(p part) {
		a := p.load(x)
		VMULPS(inverse, a, a)
		exponential(a)
		addConst(float("one", 1), a, a)
		VDIVPS(a, twice, a)
		VSUBPS(a, c, a)
		p.store(a, dst)
	})
	end()
}

func blockSums() {
	text("blockSums", "func(sums, x *float32, blocks uintptr)", " writes the sum of each 32 values, 16 floats apart.")
	sums, x, n := pointer("sums"), pointer("x"), pointer("blocks")
	Label("loop")
	a := sixteen()
	for i, v := range a {
		at := part{i: i}.at(x)
		VMOVUPS(at, v)
		VADDPS(at.Offset(64), v, v)
	}
	VMOVSS(fold(a, add), Mem{Base: sums})
	ADDQ(Imm(64), sums)
	ADDQ(U32(128), x)
	DECQ(n)
	JNZ(LabelRef("loop"))
	end()
}

// narrowTo writes a rounding to 16 bits: round takes a vector to half as many bytes.
func narrowTo(label string, round func(x, y VecVirtual)) {
	text(label, "func(dst *uint16, x *float32, n uintptr)", " rounds to nearest, ties to even; n is a multiple of 16.")
	dst, x, n := pointer("dst"), pointer("x"), pointer("n")
	Label("loop")
	for i := range parts() {
		a := vec()
		VMOVUPS(part{i: i}.at(x), a)
		if narrow {
			b := XMM()
			round(a, b)
			VMOVDQU(b, Mem{Base: dst, Disp: 16 * i})
		} else {
			b := YMM()
			round(a, b)
			VMOVDQU(b, Mem{Base: dst})
		}
	}
	ADDQ(Imm(64), x)
	ADDQ(Imm(32), dst)
	SUBQ(Imm(16), n)
	JNZ(LabelRef("loop"))
	end()
}

// roundBrain: (bits + 0x7fff + lowest kept bit) >> 16; a NaN stays one.
func roundBrain(x, y VecVirtual) {
	odd := vec()
	VPSRLD(Imm(16), x, odd)
	andConst(words("oneBit", 1), odd, odd)
	VPADDD(odd, x, odd)
	addWordConst(words("half", 0x7fff), odd, odd)
	if !narrow {
		nan := K()
		VCMPPS(Imm(3), x, x, nan)
		VPORD_BCST(words("quiet", 0x400000), x, nan, odd)
		VPSRLD(Imm(16), odd, odd)
		VPMOVDW(odd, y)
		return
	}
	nan, quiet := YMM(), YMM()
	VCMPPS(Imm(3), x, x, nan)
	VORPS(words("quiet", 0x400000), x, quiet)
	VBLENDVPS(nan, quiet, odd, odd)
	VPSRLD(Imm(16), odd, odd)
	VPACKUSDW(odd, odd, odd)
	VPERMQ(Imm(0b1000), odd, odd)
	VMOVDQA(odd.AsX(), y)
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
