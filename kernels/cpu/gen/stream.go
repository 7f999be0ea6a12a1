package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
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
