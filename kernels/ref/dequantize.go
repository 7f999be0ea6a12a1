package ref

import (
	"encoding/binary"
	"fmt"
	"math"

	"manta/kernels"
)

// Half gives the value of an IEEE 754 binary16.
func Half(bits uint16) float32 {
	sign := uint32(bits>>15) << 31
	exponent, fraction := uint32(bits>>10)&0x1f, uint32(bits)&0x3ff
	switch exponent {
	case 0: // zero and subnormal: fraction · 2⁻²⁴
		return math.Float32frombits(sign | math.Float32bits(float32(fraction)*(1.0/(1<<24))))
	case 0x1f: // infinite and not a number
		return math.Float32frombits(sign | 0x7f800000 | fraction<<13)
	}
	return math.Float32frombits(sign | (exponent+127-15)<<23 | fraction<<13)
}

// ToHalf rounds to the nearest binary16, ties to even.
func ToHalf(x float32) uint16 {
	bits := math.Float32bits(x)
	sign, bits := uint16(bits>>31)<<15, bits&0x7fffffff
	switch {
	case bits > 0x7f800000:
		return sign | 0x7e00
	case bits >= 0x477ff000: // 65520 rounds to infinity
		return sign | 0x7c00
	case bits < 0x38800000: // below 2⁻¹⁴: a multiple of 2⁻²⁴
		return sign | uint16(math.RoundToEven(float64(math.Float32frombits(bits))*(1<<24)))
	}
	bits += 0xfff + bits>>13&1
	return sign | uint16((bits-(127-15)<<23)>>13)
}

// Brain gives the value of a bfloat16.
func Brain(bits uint16) float32 { return math.Float32frombits(uint32(bits) << 16) }

// ToBrain rounds to the nearest bfloat16, ties to even.
func ToBrain(x float32) uint16 {
	bits := math.Float32bits(x)
	if bits&0x7fffffff > 0x7f800000 {
		return uint16(bits>>16) | 0x40
	}
	return uint16((bits + 0x7fff + bits>>16&1) >> 16)
}

// Dequantize writes the m.Cols values of one row into dst. The block formats are
// those of ggml-quants.h; the arithmetic is float32, in the order of
// ggml-quants.c (dequantize_row_*).
func Dequantize(m kernels.Matrix, row int, dst []float32) {
	data := m.Data[row*m.Stride:]
	dst = dst[:m.Cols]
	size, bytes := m.Type.BlockSize(), m.Type.BlockBytes()
	switch m.Type {
	case kernels.F32:
		for i := range dst {
			dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(data[4*i:]))
		}
		return
	case kernels.F16:
		for i := range dst {
			dst[i] = Half(binary.LittleEndian.Uint16(data[2*i:]))
		}
		return
	case kernels.BF16:
		for i := range dst {
			dst[i] = Brain(binary.LittleEndian.Uint16(data[2*i:]))
		}
		return
	}
	block, ok := blockFormats[m.Type]
	if !ok {
		panic(fmt.Sprintf("ref: %s: cannot dequantize %s", m.Name, m.Type))
	}
	for i := 0; i*size < len(dst); i++ {
		block(data[i*bytes:(i+1)*bytes], dst[i*size:(i+1)*size])
	}
}

// blockFormats is read only.
var blockFormats = map[kernels.DType]func(block []byte, dst []float32){
	kernels.Q4_0: dequantizeQ4_0,
	kernels.Q4_1: dequantizeQ4_1,
	kernels.Q5_0: dequantizeQ5_0,
	kernels.Q5_1: dequantizeQ5_1,
	kernels.Q8_0: dequantizeQ8_0,
	kernels.Q4_K: dequantizeQ4_K,
	kernels.Q5_K: dequantizeQ5_K,
	kernels.Q6_K: dequantizeQ6_K,
}

func half(b []byte) float32 { return Half(binary.LittleEndian.Uint16(b)) }

// Q4_0: f16 d, 16 bytes of nibbles (low ones first). x = d·(q-8).
func dequantizeQ4_0(b []byte, x []float32) {
	d := half(b)
	for i, q := range b[2:18] {
		x[i] = float32(int(q&15)-8) * d
		x[i+16] = float32(int(q>>4)-8) * d
	}
}

// Q4_1: f16 d, f16 m, 16 bytes of nibbles. x = d·q + m.
func dequantizeQ4_1(b []byte, x []float32) {
	d, m := half(b), half(b[2:])
	for i, q := range b[4:20] {
		x[i] = float32(float32(q&15)*d) + m
		x[i+16] = float32(float32(q>>4)*d) + m
	}
}

// Q5_0: f16 d, 32 fifth bits, 16 bytes of nibbles. x = d·(q-16).
func dequantizeQ5_0(b []byte, x []float32) {
	d, high := half(b), binary.LittleEndian.Uint32(b[2:])
	for i, q := range b[6:22] {
		x[i] = float32(int(q&15)|int(high>>i&1)<<4-16) * d
		x[i+16] = float32(int(q>>4)|int(high>>(i+16)&1)<<4-16) * d
	}
}

// Q5_1: f16 d, f16 m, 32 fifth bits, 16 bytes of nibbles. x = d·q + m.
func dequantizeQ5_1(b []byte, x []float32) {
	d, m, high := half(b), half(b[2:]), binary.LittleEndian.Uint32(b[4:])
	for i, q := range b[8:24] {
		x[i] = float32(float32(int(q&15)|int(high>>i&1)<<4)*d) + m
		x[i+16] = float32(float32(int(q>>4)|int(high>>(i+16)&1)<<4)*d) + m
	}
}

// Q8_0: f16 d, 32 signed bytes. x = d·q.
func dequantizeQ8_0(b []byte, x []float32) {
	d := half(b)
	for i, q := range b[2:34] {
		x[i] = float32(int8(q)) * d
	}
}

// scaleMin unpacks the 6-bit scale and minimum of sub-block j out of the 12
// bytes that Q4_K and Q5_K share (get_scale_min_k4).
func scaleMin(j int, s []byte) (scale, minimum float32) {
	if j < 4 {
		return float32(s[j] & 63), float32(s[j+4] & 63)
	}
	return float32(s[j+4]&15 | s[j-4]>>6<<4), float32(s[j+4]>>4 | s[j]>>6<<4)
}

// Q4_K: f16 d, f16 dmin, 12 bytes of scales and minima of eight sub-blocks of 32,
// 128 bytes of nibbles: in each 32 bytes, low ones are one sub-block, high ones
// the next. x = d·scale·q - dmin·min.
func dequantizeQ4_K(b []byte, x []float32) {
	d, dmin := half(b), half(b[2:])
	for j := range 8 {
		scale, minimum := scaleMin(j, b[4:16])
		scale, minimum = d*scale, dmin*minimum
		for i, q := range b[16+j/2*32:][:32] {
			x[32*j+i] = float32(scale*float32(q>>(j%2*4)&15)) - minimum
		}
	}
}

// Q5_K: as Q4_K with 32 bytes of fifth bits before the nibbles: bit j of byte i
// belongs to value i of sub-block j.
func dequantizeQ5_K(b []byte, x []float32) {
	d, dmin := half(b), half(b[2:])
	high := b[16:48]
	for j := range 8 {
		scale, minimum := scaleMin(j, b[4:16])
		scale, minimum = d*scale, dmin*minimum
		for i, q := range b[48+j/2*32:][:32] {
			value := q>>(j%2*4)&15 | high[i]>>j&1<<4
			x[32*j+i] = float32(scale*float32(value)) - minimum
		}
	}
}

// Q6_K: 128 bytes of low nibbles, 64 bytes of high pairs, 16 signed scales of
// sub-blocks of 16, f16 d; each half of 128 values is four runs of 32.
// x = d·scale·(q-32).
func dequantizeQ6_K(b []byte, x []float32) {
	d := half(b[208:])
	for n := range 2 {
		low, high, scales := b[64*n:][:64], b[128+32*n:][:32], b[192+8*n:][:8]
		for run := range 4 {
			for i := range 32 {
				q := low[run%2*32+i]>>(run/2*4)&15 | high[i]>>(2*run)&3<<4
				scale := d * float32(int8(scales[2*run+i/16]))
				x[128*n+32*run+i] = scale * float32(int(q)-32)
			}
		}
	}
}
