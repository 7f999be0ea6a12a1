package cpu

import (
	"encoding/binary"
	"math"

	"manta/kernels"
	"manta/kernels/ref"
)

// packRow packs one row of a matrix as output i of a group. The formats of
// blocks are ggml-quants.h's.
func (f format) packRow(i int, group, row []byte, t kernels.DType, cols int) {
	switch t {
	case kernels.F32, kernels.F16, kernels.BF16:
		f.packPlain(i, group, row, cols)
		return
	}
	size, bytes := t.BlockSize(), t.BlockBytes()
	step := size / f.columns * f.blockBytes()
	for b := range cols / size {
		f.packBlock(i, group[b*step:], row[b*bytes:][:bytes], t)
	}
}

// packPlain packs numbers that have no blocks.
func (f format) packPlain(i int, group, row []byte, cols int) {
	lane := i % 16
	for k := range cols {
		panel := group[k/f.columns*f.blockBytes()+i/16*f.panelBytes:]
		switch j := k % f.columns; f.kind {
		case formatF32:
			copy(panel[64*j+4*lane:][:4], row[4*k:])
		case formatF16:
			copy(panel[32*j+2*lane:][:2], row[2*k:])
		case formatBF16: // pairs of columns in a lane
			copy(panel[64*(j/2)+4*lane+2*(j%2):][:2], row[2*k:])
		}
	}
}

// packBlock packs one block of a quantized type.
func (f format) packBlock(i int, dst, src []byte, t kernels.DType) {
	panel, lane := dst[i/16*f.panelBytes:], i%16
	scales := dst[4*f.panelBytes:]
	switch t {
	case kernels.Q8_0:
		copy(scales[2*i:][:2], src)
		for k, q := range src[2:34] {
			f.putByte(panel, k, lane, q)
		}
	case kernels.Q5_0:
		copy(scales[2*i:][:2], src)
		f.packFive(panel, lane, src[2:22])
	case kernels.Q5_1: // d·q + m = d·(q-16) + (m+16d)
		d := half(src)
		f.packScales(i, scales, d, half(src[2:])+16*d)
		f.packFive(panel, lane, src[4:24])
	case kernels.Q4_1:
		copy(scales[2*i:][:2], src)
		copy(scales[2*(groupRows+i):][:2], src[2:])
		packNibbles(panel, lane, src[4:20])
	case kernels.Q4_0:
		copy(scales[2*i:][:2], src)
		packNibbles(panel, lane, src[2:18])
	case kernels.Q4_K, kernels.Q5_K:
		f.packK(i, dst, src, t == kernels.Q5_K)
	case kernels.Q6_K:
		f.packQ6K(i, dst, src)
	}
}

// putByte writes the code of column k of a panel. Integer products take codes
// plus 128, four columns to a lane: in each eight the even ones, then the odd ones.
func (f format) putByte(panel []byte, k, lane int, q byte) {
	if f.lanes {
		panel[64*(k/8*2+k%2)+4*lane+k%8/2] = q ^ 0x80
	} else {
		panel[16*k+lane] = q
	}
}

func half(b []byte) float32 { return ref.Half(binary.LittleEndian.Uint16(b)) }

// packScales writes the scale and minimum of a wide format.
func (f format) packScales(i int, scales []byte, d, m float32) {
	binary.LittleEndian.PutUint32(scales[4*i:], math.Float32bits(d))
	if f.offset {
		binary.LittleEndian.PutUint32(scales[4*(groupRows+i):], math.Float32bits(m))
	}
}

// packFive packs 32 fifth bits and 16 bytes of nibbles (low ones first), less 16.
func (f format) packFive(panel []byte, lane int, src []byte) {
	high := binary.LittleEndian.Uint32(src)
	for k, q := range src[4:20] {
		f.putByte(panel, k, lane, (q&15|byte(high>>k&1)<<4)-16)
		f.putByte(panel, k+16, lane, (q>>4|byte(high>>(k+16)&1)<<4)-16)
	}
}

// packNibbles takes ggml's order (low nibbles are columns 0 to 15, high ones 16
// to 31) to eight columns in a lane of 32 bits, the first lowest.
func packNibbles(panel []byte, lane int, src []byte) {
	const low = 0x0f0f0f0f0f0f0f0f
	for h := range 2 { // columns 8·h and on from low nibbles, 16+8·h from high
		q := binary.LittleEndian.Uint64(src[8*h:])
		binary.LittleEndian.PutUint32(panel[64*h+4*lane:], squeeze(q&low))
		binary.LittleEndian.PutUint32(panel[64*(h+2)+4*lane:], squeeze(q>>4&low))
	}
}

// squeeze joins the low nibbles of eight bytes.
func squeeze(q uint64) uint32 {
	q = (q | q>>4) & 0x00ff00ff00ff00ff
	q = (q | q>>8) & 0x0000ffff0000ffff
	return uint32(q | q>>16)
}

// packK packs 256 columns of Q4_K or Q5_K: eight sub-blocks of 32 with a 6-bit
// scale and minimum, d·scale·q - dmin·min. Nibbles of 32 bytes are one sub-block
// (low), then the next (high); bit j of fifth byte k belongs to column k of
// sub-block j.
func (f format) packK(i int, dst, src []byte, five bool) {
	d, dmin := half(src), half(src[2:])
	nibbles, high := src[16:], []byte(nil)
	if five {
		high, nibbles = src[16:48], src[48:]
	}
	for j := range 8 {
		block := dst[j*f.blockBytes():]
		panel, lane := block[i/16*f.panelBytes:], i%16
		scale, minimum := scaleMin(j, src[4:16])
		scale, minimum = d*scale, dmin*minimum
		shift := j % 2 * 4
		if five {
			f.packScales(i, block[4*f.panelBytes:], scale, 16*scale-minimum)
			for k, q := range nibbles[j/2*32:][:32] {
				f.putByte(panel, k, lane, (q>>shift&15|high[k]>>j&1<<4)-16)
			}
			continue
		}
		f.packScales(i, block[4*f.panelBytes:], scale, 8*scale-minimum)
		for k := 0; k < 32; k += 8 {
			q := binary.LittleEndian.Uint64(nibbles[j/2*32+k:]) >> shift & 0x0f0f0f0f0f0f0f0f
			binary.LittleEndian.PutUint32(panel[8*k+4*lane:], squeeze(q))
		}
	}
}

// scaleMin unpacks the 6-bit scale and minimum of sub-block j (get_scale_min_k4).
func scaleMin(j int, s []byte) (scale, minimum float32) {
	if j < 4 {
		return float32(s[j] & 63), float32(s[j+4] & 63)
	}
	return float32(s[j+4]&15 | s[j-4]>>6<<4), float32(s[j+4]>>4 | s[j]>>6<<4)
}

// packQ6K packs 256 columns of Q6_K: sixteen sub-blocks of 16 with a signed
// scale, d·scale·(q-32). Each half of 128 columns is four runs of 32: low nibbles
// of 64 bytes, two high bits of 32 bytes.
func (f format) packQ6K(i int, dst, src []byte) {
	d := half(src[208:])
	for n := range 2 {
		low, high, scales := src[64*n:][:64], src[128+32*n:][:32], src[192+8*n:][:8]
		for j := range 8 {
			block := dst[(8*n+j)*f.blockBytes():]
			panel, lane := block[i/16*f.panelBytes:], i%16
			f.packScales(i, block[4*f.panelBytes:], d*float32(int8(scales[j])), 0)
			run := j / 2
			for k := range 16 {
				at := j%2*16 + k
				f.putByte(panel, k, lane, (low[run%2*32+at]>>(run/2*4)&15|high[at]>>(2*run)&3<<4)-32)
			}
		}
	}
}
