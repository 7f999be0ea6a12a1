package main

import (
	. "github.com/mmcloughlin/avo/build"
	"github.com/mmcloughlin/avo/ir"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// stream reads memory as fast as it comes: the limit of products that are read once.
func stream() {
	text("stream", "func(x *byte, lines uintptr)", " reads 4·lines cache lines, asking for what comes 2 KB later.")
	x, n := pointer("x"), pointer("lines")
	Label("loop")
	for i := range 4 {
		PREFETCHT0(Mem{Base: x, Disp: 2048 + 64*i})
	}
	for i := range 4 * parts() {
		VMOVUPS(Mem{Base: x, Disp: 64 / parts() * i}, vec())
	}
	ADDQ(U32(256), x)
	DECQ(n)
	JNZ(LabelRef("loop"))
	end()
}

// claim asks for the lines of outputs before they are computed: when the sums are
// there, their lines are too.
func claim() {
	TEXT("claim", NOSPLIT, "func(dst *float32, stride, rows uintptr)")
	Doc("claim asks for 256 bytes of each row, to be written soon; rows are stride bytes apart.")
	Load(Param("dst"), RAX)
	stride, n := pointer("stride"), pointer("rows")
	Label("loop")
	for i := range 4 { // PREFETCHW 64·i(AX), which Go's assembler lacks
		at := []int{0x0f, 0x0d, 0x88, 64 * i, 0, 0, 0}
		for _, b := range at {
			Instruction(&ir.Instruction{Opcode: "BYTE", Operands: []Op{U8(uint8(b))}, Inputs: []Op{RAX}})
		}
	}
	ADDQ(stride, RAX)
	DECQ(n)
	JNZ(LabelRef("loop"))
	RET()
}
