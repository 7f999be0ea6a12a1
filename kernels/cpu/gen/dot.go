package main

import (
	. "github.com/mmcloughlin/avo/build"
	"github.com/mmcloughlin/avo/ir"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// Go's assembler lacks VDPBF16PS, so its kernels name their registers themselves:
// weights of the panels at hand, a broadcast pair of activations, then the sums.
const (
	dotWeights = 0
	dotPair    = 4
	dotSums    = 5
)

var zmms = []VecPhysical{Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z8, Z9, Z10, Z11, Z12, Z13, Z14, Z15,
	Z16, Z17, Z18, Z19, Z20, Z21, Z22, Z23, Z24, Z25, Z26, Z27, Z28, Z29, Z30, Z31}

// dotBrain writes VDPBF16PS w, x, sum: in each lane the product of the odd columns
// is added, then that of the even ones (EVEX.512.F3.0F38.W0 52 /r).
func dotBrain(w, x, sum int) {
	not := func(register, bit, at int) int { return (^register >> bit & 1) << at }
	for _, b := range []int{
		0x62,
		not(sum, 3, 7) | not(w, 4, 6) | not(w, 3, 5) | not(sum, 4, 4) | 2,
		(^x&15)<<3 | 4 | 2,
		0x40 | not(x, 4, 3),
		0x52,
		0xc0 | sum&7<<3 | w&7,
	} {
		Instruction(&ir.Instruction{Opcode: "BYTE", Operands: []Op{U8(uint8(b))}})
	}
}

// productDot writes y[r·64+i] = Σₖ x[r][k] · w[i][k] as product does, for x and w
// in bfloat16: columns by pairs, in each pair the odd one first.
func productDot(rows int) {
	f := formatNamed("BF16")
	TEXT(name("productBF16DR%d", rows), NOSPLIT, "func(y, x *float32, stride uintptr, sums *float32, w *byte, blocks uintptr)")
	Doc(name("productBF16DR%d multiplies %d rows of bfloat16 with one packed group of 64 outputs.", rows, rows))
	panels := 4
	if dotSums+4*rows > len(zmms) {
		panels = 2
	}
	y, stride, w := pointer("y"), pointer("stride"), pointer("w")
	stride3 := GP64()
	LEAQ(Mem{Base: stride, Index: stride, Scale: 2}, stride3)
	bases := make([]Register, (rows+2)/3)
	for i := range bases {
		bases[i] = GP64()
	}
	turn := GP64()
	MOVQ(U32(uint32(4/panels)), turn)

	Label("panels")
	Load(Param("x"), bases[0])
	for i := 1; i < len(bases); i++ {
		LEAQ(Mem{Base: bases[i-1], Index: stride3, Scale: 1}, bases[i])
	}
	blocks, cursor := pointer("blocks"), GP64()
	MOVQ(w, cursor)
	sum := func(r, p int) int { return dotSums + r*panels + p }
	for i := range rows * panels {
		VPXORD(zmms[dotSums+i], zmms[dotSums+i], zmms[dotSums+i])
	}
	Label("block")
	for j := range 4 { // pairs of columns
		for i := 0; rows <= 2 && i < panels; i++ { // a stream: ask for what comes 4 KB later
			PREFETCHT0(Mem{Base: cursor, Disp: 4096 + f.panelBytes()*j + 64*i})
		}
		for p := range panels {
			VMOVDQU32(Mem{Base: cursor, Disp: f.panelBytes()*p + 64*j}, zmms[dotWeights+p])
		}
		for r := range rows {
			at := Mem{Base: bases[r/3], Disp: 4 * j}
			if r%3 > 0 {
				at.Index, at.Scale = stride, uint8(r%3)
			}
			VPBROADCASTD(at, zmms[dotPair])
			for p := range panels {
				dotBrain(dotWeights+p, dotPair, sum(r, p))
			}
		}
	}
	ADDQ(U32(uint32(f.blockBytes())), cursor)
	for _, b := range bases {
		ADDQ(Imm(16), b)
	}
	DECQ(blocks)
	JNZ(LabelRef("block"))
	for r := range rows {
		for p := range panels {
			VMOVUPS(zmms[sum(r, p)], Mem{Base: y, Disp: 256*r + 64*p})
		}
	}
	ADDQ(U32(uint32(64*panels)), y)
	ADDQ(U32(uint32(panels*f.panelBytes())), w)
	DECQ(turn)
	JNZ(LabelRef("panels"))
	VZEROUPPER()
	RET()
}

func formatNamed(name string) format {
	for _, f := range formats {
		if f.name == name {
			return f
		}
	}
	panic(name)
}
