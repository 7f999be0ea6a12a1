package cpu

import (
	"encoding/binary"
	"math"
	"unsafe"

	"manta/kernels"
	"manta/kernels/ref"
)

// A packer turns 16 rows of a matrix at a time into one panel: each row's block
// becomes words of 32 bits (a lane of a packed vector each), and 16 × 16 words are
// transposed at once. The blocks' formats are ggml-quants.h's.
type packer struct {
	format    format
	transpose func(dst, src *uint32, srcStride uintptr)
	staged    [16][maxWords]uint32
	turned    [16][16]uint32
}

// maxWords is the number of words of the widest block, one of Q5_K or Q6_K.
const maxWords = 64

// wordsOf is the number of words that a packed block of 16 outputs has.
func (f format) wordsOf() int { return f.panelBytes / 64 }

// A packedRow is a row of a matrix to be packed; nil data are zeros.
type packedRow struct {
	data []byte
	t    kernels.DType
}

// pack writes panel p of a group.
func (k *packer) pack(group []byte, p int, rows *[16]packedRow, cols int) {
	f := k.format
	values := maxWords * f.columns / f.wordsOf() // staged at once
	end := (cols + f.columns - 1) / f.columns * f.wordsOf()
	for first := 0; first < cols; first += values {
		last := min(first+values, cols)
		for i := range rows {
			r, dst := &rows[i], k.staged[i][:]
			if last-first < values || r.data == nil {
				clear(dst)
			}
			if r.data != nil {
				k.stageRow(dst, r, group, first, last, 16*p+i)
			}
		}
		from := first * f.wordsOf() / f.columns
		for w := 0; w < maxWords && from+w < end; w += 16 {
			k.transpose(&k.turned[0][0], &k.staged[0][w], 4*maxWords)
			k.place(group, p, from+w, end)
		}
	}
}

// stageRow stages columns [first, last) of a row, as output i of the group.
func (k *packer) stageRow(dst []uint32, r *packedRow, group []byte, first, last, i int) {
	f, size, bytes := k.format, r.t.BlockSize(), r.t.BlockBytes()
	if size == 1 {
		stagePlain(dst, r.data[first*bytes:last*bytes])
		return
	}
	words, step := size*f.wordsOf()/f.columns, size/f.columns*f.blockBytes()
	at := group[first/f.columns*f.blockBytes()+4*f.panelBytes:]
	src := r.data[first/size*bytes : last/size*bytes]
	for len(src) > 0 {
		k.stage(dst, src[:bytes], r.t, at, i)
		if src = src[bytes:]; len(src) > 0 {
			dst, at = dst[words:], at[step:]
		}
	}
}

// stagePlain copies numbers without blocks; a word holds one or two columns.
func stagePlain(dst []uint32, src []byte) { copy(wordBytes(dst), src) }

// wordBytes gives the memory of words. Machines that Go runs this on are
// little-endian, as the files are.
func wordBytes(w []uint32) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(w))), 4*len(w))
}

// place writes 16 transposed vectors, from vector first on, where they belong.
func (k *packer) place(group []byte, p, first, end int) {
	f := k.format
	words, step := f.wordsOf(), f.blockBytes()
	at := first/words*step + p*f.panelBytes + first%words*64
	for i := range min(16, end-first) {
		if i > 0 && (first+i)%words == 0 {
			at += step - 64*words
		}
		dst := group[at:][:64]
		at += 64
		line := &k.turned[i]
		switch {
		case f.kind == formatF16: // columns apart, each 16 halves
			for j, x := range line {
				binary.LittleEndian.PutUint16(dst[2*j:], uint16(x))
				binary.LittleEndian.PutUint16(dst[32+2*j:], uint16(x>>16))
			}
		case f.kind == formatQ8 || f.kind == formatQ8W || f.kind == formatQ6: // each 16 bytes
			for j, x := range line {
				dst[j], dst[16+j], dst[32+j], dst[48+j] = byte(x), byte(x>>8), byte(x>>16), byte(x>>24)
			}
		default:
			copy(dst, wordBytes(line[:]))
		}
	}
}

// each spreads a byte over a word of eight.
const each = 0x0101010101010101

// stage turns one block of a quantized type into words, and writes the scales of
// output i; scales begin at at, those of later packed blocks a block further.
func (k *packer) stage(dst []uint32, src []byte, t kernels.DType, at []byte, i int) {
	f := k.format
	switch t {
	case kernels.Q8_0:
		copy(at[2*i:][:2], src)
		for j := range 4 {
			f.putBytes(dst[2*j:], binary.LittleEndian.Uint64(src[2+8*j:])^0x80*each)
		}
	case kernels.Q5_0:
		copy(at[2*i:][:2], src)
		f.putFive(dst, src[2:22])
	case kernels.Q5_1: // d·q + m = d·(q-16) + (m+16d)
		d := half(src)
		f.putScales(i, at, d, half(src[2:])+16*d)
		f.putFive(dst, src[4:24])
	case kernels.Q4_1:
		copy(at[2*i:][:2], src)
		copy(at[2*(groupRows+i):][:2], src[2:])
		putNibbles(dst, src[4:20])
	case kernels.Q4_0:
		copy(at[2*i:][:2], src)
		putNibbles(dst, src[2:18])
	case kernels.Q4_K, kernels.Q5_K:
		f.stageK(dst, src, t == kernels.Q5_K, at, i)
	case kernels.Q6_K:
		f.stageQ6K(dst, src, at, i)
	}
}

func half(b []byte) float32 { return ref.Half(binary.LittleEndian.Uint16(b)) }

// putScales writes the scale and minimum of a wide format.
func (f format) putScales(i int, at []byte, d, m float32) {
	binary.LittleEndian.PutUint32(at[4*i:], math.Float32bits(d))
	if f.offset {
		binary.LittleEndian.PutUint32(at[4*(groupRows+i):], math.Float32bits(m))
	}
}

// putBytes writes eight codes, plus 128 each. Integer products take them so, the
// even columns first; the others as signed bytes in order.
func (f format) putBytes(dst []uint32, q uint64) {
	if !f.lanes {
		q ^= 0x80 * each
		dst[0], dst[1] = uint32(q), uint32(q>>32)
		return
	}
	dst[0], dst[1] = evenBytes(q), evenBytes(q>>8)
}

// evenBytes joins bytes 0, 2, 4 and 6.
func evenBytes(q uint64) uint32 {
	q &= 0x00ff00ff00ff00ff
	q = (q | q>>8) & 0x0000ffff0000ffff
	return uint32(q | q>>16)
}

// squeeze joins the low nibbles of eight bytes.
func squeeze(q uint64) uint32 {
	q = (q | q>>4) & 0x00ff00ff00ff00ff
	q = (q | q>>8) & 0x0000ffff0000ffff
	return uint32(q | q>>16)
}

// putNibbles takes ggml's order (low nibbles are columns 0 to 15, high ones 16 to
// 31) to eight columns in a word, the first lowest.
func putNibbles(dst []uint32, src []byte) {
	_ = dst[3]
	for h := range 2 {
		q := binary.LittleEndian.Uint64(src[8*h:])
		dst[h], dst[h+2] = squeeze(q&(0x0f*each)), squeeze(q>>4&(0x0f*each))
	}
}

// fifths spreads eight bits to the fifth bits of eight bytes.
func fifths(bits byte) uint64 {
	q := uint64(bits) * each & 0x8040201008040201
	return (q + 0x7f*each) & (0x80 * each) >> 3
}

// putFive packs 32 fifth bits and 16 bytes of nibbles (low ones first), less 16.
func (f format) putFive(dst []uint32, src []byte) {
	for j := range 4 {
		q := binary.LittleEndian.Uint64(src[4+j%2*8:]) >> (j / 2 * 4) & (0x0f * each)
		f.putBytes(dst[2*j:], (q|fifths(src[j]))+(128-16)*each)
	}
}

// stageK takes 256 columns of Q4_K or Q5_K: eight sub-blocks of 32 with a 6-bit
// scale and minimum, d·scale·q - dmin·min. Nibbles of 32 bytes are one sub-block
// (low), then the next (high); bit j of fifth byte k belongs to column k of
// sub-block j.
func (f format) stageK(dst []uint32, src []byte, five bool, at []byte, i int) {
	d, dmin := half(src), half(src[2:])
	nibbles, high := src[16:], []byte(nil)
	if five {
		high, nibbles = src[16:48], src[48:]
	}
	for j := range 8 {
		scale, minimum := scaleMin(j, src[4:16])
		scale, minimum = d*scale, dmin*minimum
		centre := float32(8)
		if five {
			centre = 16
		}
		f.putScales(i, at[j*f.blockBytes():], scale, centre*scale-minimum)
		for k := range 4 {
			q := binary.LittleEndian.Uint64(nibbles[j/2*32+8*k:]) >> (j % 2 * 4) & (0x0f * each)
			if !five {
				dst[4*j+k] = squeeze(q)
				continue
			}
			q |= binary.LittleEndian.Uint64(high[8*k:]) >> j & each << 4
			f.putBytes(dst[8*j+2*k:], q+(128-16)*each)
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

// stageQ6K takes 256 columns of Q6_K: sixteen sub-blocks of 16 with a signed
// scale, d·scale·(q-32). Each half of 128 columns is four runs of 32: low nibbles
// of 64 bytes, two high bits of 32 bytes.
func (f format) stageQ6K(dst []uint32, src []byte, at []byte, i int) {
	d := half(src[208:])
	for j := range 16 { // sub-block j%8 of half j/8, in run j%8/2
		low, high := src[j/8*64:][:64], src[128+j/8*32:][:32]
		f.putScales(i, at[j*f.blockBytes():], d*float32(int8(src[192+j])), 0)
		run := j % 8 / 2
		for k := range 2 {
			from := j%2*16 + 8*k
			q := binary.LittleEndian.Uint64(low[run%2*32+from:]) >> (run / 2 * 4) & (0x0f * each)
			q |= binary.LittleEndian.Uint64(high[from:]) >> (2 * run) & (0x03 * each) << 4
			f.putBytes(dst[4*j+2*k:], q+(128-32)*each)
		}
	}
}
