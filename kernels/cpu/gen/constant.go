package main

import (
	"math"
	"slices"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
)

var known = map[string]Mem{}

// words makes a read-only constant of 32-bit words once. AVX2 broadcasts nothing
// in an operation: one word becomes eight.
func words(label string, values ...uint32) Mem {
	if m, ok := known[label]; ok {
		return m
	}
	if narrow && len(values) == 1 {
		values = slices.Repeat(values, 8)
	}
	m := GLOBL(label, RODATA|NOPTR)
	for i, v := range values {
		DATA(4*i, U32(v))
	}
	known[label] = m
	return m
}

func float(label string, v float64) Mem { return words(label, math.Float32bits(float32(v))) }

// centred gives the float of each nibble less eight.
func centred() Mem {
	var v [16]uint32
	for i := range v {
		v[i] = math.Float32bits(float32(i - 8))
	}
	return words("centred", v[:]...)
}

func eightFloat() Mem { return float("eight", 8) }
func highHalf() Mem   { return words("highHalf", 0xffff0000) }
