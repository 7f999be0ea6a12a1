package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// narrow: AVX2 with FMA and F16C (any machine since 2013 to 2015), 8 lanes a
// vector; else AVX-512, 16 lanes. Loops do 16 lanes at once on both, in the same
// order: what they compute is equal bit for bit.
var narrow bool

// text begins a function; those of AVX2 end in its name.
func text(label, signature, doc string) {
	if narrow {
		label += "AVX2"
	}
	TEXT(label, NOSPLIT, signature)
	Doc(label + doc)
}

// parts is the number of vectors of 16 lanes.
func parts() int {
	if narrow {
		return 2
	}
	return 1
}

func vec() VecVirtual {
	if narrow {
		return YMM()
	}
	return ZMM()
}

// sixteen gives 16 lanes.
func sixteen() []VecVirtual {
	v := make([]VecVirtual, parts())
	for i := range v {
		v[i] = vec()
	}
	return v
}

// end returns.
func end() {
	VZEROUPPER()
	RET()
}

// Operations with a constant, which AVX-512 broadcasts from one word.
var (
	mulConst     = either(VMULPS, VMULPS_BCST)
	addConst     = either(VADDPS, VADDPS_BCST)
	fmaConst     = either(VFMADD231PS, VFMADD231PS_BCST)
	hornerConst  = either(VFMADD213PS, VFMADD213PS_BCST)
	fnmaConst    = either(VFNMADD231PS, VFNMADD231PS_BCST)
	addWordConst = either(VPADDD, VPADDD_BCST)
	maxConst     = either(VMAXPS, VMAXPS_BCST)
	xorConst     = either(VXORPS, VPXORD_BCST)
	minConst     = either(VPMINUD, VPMINUD_BCST)
	andConst     = either(VANDPS, VPANDD_BCST)
)

func either(short, long func(...Op)) func(c Mem, a, dst Op) {
	return func(c Mem, a, dst Op) {
		if narrow {
			short(c, a, dst)
		} else {
			long(c, a, dst)
		}
	}
}

// A part is one vector of the 16 lanes that a loop is at.
type part struct {
	i    int
	mask Register // of lanes that are there; nil: all
}

func (p part) at(base GPVirtual) Mem { return Mem{Base: base, Disp: 32 * p.i} }

// load reads zero where there is no lane.
func (p part) load(base GPVirtual) VecVirtual {
	v := vec()
	switch {
	case !narrow:
		VMOVUPS_Z(p.at(base), p.mask, v)
	case p.mask != nil:
		VMASKMOVPS(p.at(base), p.mask, v)
	default:
		VMOVUPS(p.at(base), v)
	}
	return v
}

func (p part) store(v VecVirtual, base GPVirtual) {
	switch {
	case !narrow:
		VMOVUPS(v, p.mask, p.at(base))
	case p.mask != nil:
		VMASKMOVPS(v, p.mask, p.at(base))
	default:
		VMOVUPS(v, p.at(base))
	}
}

// into computes dst = op(a, dst) in the lanes that are there.
func (p part) into(op func(...Op), a, dst VecVirtual) {
	switch {
	case !narrow:
		op(dst, a, p.mask, dst)
	case p.mask != nil:
		op(dst, a, a)
		VBLENDVPS(p.mask, a, dst, dst)
	default:
		op(dst, a, dst)
	}
}

// loop runs body for all of n floats, 16 at a time; what lies past n is neither
// read nor written. pointers move along.
func loop(n GPVirtual, pointers []GPVirtual, body func(p part)) {
	if narrow {
		loop256(n, pointers, body)
		return
	}
	k := K()
	all := GP32()
	MOVL(U32(0xffff), all)
	KMOVW(all, k)
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
	body(part{0, k})
	for _, r := range pointers {
		ADDQ(Imm(64), r)
	}
	SUBQ(Imm(16), n)
	JMP(LabelRef("loop"))
	Label("done")
}

// loop256 has a body of its own for the last lanes: masked stores are slow on
// some machines.
func loop256(n GPVirtual, pointers []GPVirtual, body func(p part)) {
	Label("loop")
	CMPQ(n, Imm(16))
	JLT(LabelRef("tail"))
	for i := range parts() {
		body(part{i: i})
	}
	for _, r := range pointers {
		ADDQ(Imm(64), r)
	}
	SUBQ(Imm(16), n)
	JMP(LabelRef("loop"))
	Label("tail")
	TESTQ(n, n)
	JZ(LabelRef("done"))
	var ones [32]uint32
	for i := range 16 {
		ones[i] = 0xffffffff
	}
	masks := GP64()
	LEAQ(words("laneMasks", ones[:]...), masks)
	SHLQ(Imm(2), n)
	SUBQ(n, masks)
	for i := range parts() {
		mask := YMM()
		VMOVUPS(Mem{Base: masks, Disp: 64 + 32*i}, mask)
		body(part{i, mask})
	}
	Label("done")
}

// fold reduces 16 lanes to the lowest by halves.
func fold(v []VecVirtual, op func(a, b, dst VecVirtual)) VecVirtual {
	low, x := v[0], XMM()
	if narrow {
		op(v[1], low, low)
	} else {
		y := YMM()
		VEXTRACTF32X8(Imm(1), low, y)
		op(y, low.AsY().(VecVirtual), low.AsY().(VecVirtual))
	}
	last := low.AsX().(VecVirtual)
	VEXTRACTF128(Imm(1), low.AsY(), x)
	op(x, last, last)
	VPERMILPS(Imm(0b01001110), last, x)
	op(x, last, last)
	VPERMILPS(Imm(0b10110001), last, x)
	op(x, last, last)
	return last
}

func add(a, b, dst VecVirtual)   { VADDPS(a, b, dst) }
func maxOf(a, b, dst VecVirtual) { VMAXPS(a, b, dst) }

func pointer(p string) GPVirtual { return Load(Param(p), GP64()).(GPVirtual) }
