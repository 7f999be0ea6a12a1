package cpu

import (
	"encoding/binary"

	"manta/kernels"
	"manta/kernels/ref"
)

// Packed formats: what the products read. 64 outputs form a group; its columns
// come in blocks: codes of 16 outputs each four times, then 64 scales d, then 64
// minima m. An output is acc += d·Σ code·x (+ m·Σx) block by block; codes of
// nibbles count from -8, so where m is f16 it is m+8d that is used.
const (
	formatF32 = iota
	formatF16
	formatBF16
	formatQ8  // signed bytes, x = d·q
	formatQ4  // nibbles, x = d·q + m
	formatQ4S // nibbles, x = d·(q-8)
	formatQ8W // signed bytes, f32 scales, x = d·q + m
	formatQ6  // signed bytes, f32 scales of 16 columns, x = d·q
	formatQ4W // nibbles, f32 scales, x = d·(q-8) + m
	formatQ8V // as Q8, for integer products: codes plus 128, four columns to a lane
	formatQ8WV
	formatQ6V
	formatCount
)

// A format says how a packed group lies.
type format struct {
	kind           int
	columns        int // in a block
	panelBytes     int // codes of 16 outputs in a block
	scaled, offset bool
	wide           bool // scales and minima are f32, else f16
	lanes          bool // bytes lie as integer products want them
}

var formats = [formatCount]format{
	formatF32:  {kind: formatF32, columns: 8, panelBytes: 512},
	formatF16:  {kind: formatF16, columns: 8, panelBytes: 256},
	formatBF16: {kind: formatBF16, columns: 8, panelBytes: 256},
	formatQ8:   {kind: formatQ8, columns: 32, panelBytes: 512, scaled: true},
	formatQ4:   {kind: formatQ4, columns: 32, panelBytes: 256, scaled: true, offset: true},
	formatQ4S:  {kind: formatQ4S, columns: 32, panelBytes: 256, scaled: true},
	formatQ8W:  {kind: formatQ8W, columns: 32, panelBytes: 512, scaled: true, offset: true, wide: true},
	formatQ6:   {kind: formatQ6, columns: 16, panelBytes: 256, scaled: true, wide: true},
	formatQ8V:  {kind: formatQ8V, columns: 32, panelBytes: 512, scaled: true, lanes: true},
	formatQ8WV: {kind: formatQ8WV, columns: 32, panelBytes: 512, scaled: true, offset: true, wide: true, lanes: true},
	formatQ6V:  {kind: formatQ6V, columns: 16, panelBytes: 256, scaled: true, wide: true, lanes: true},
	formatQ4W:  {kind: formatQ4W, columns: 32, panelBytes: 256, scaled: true, offset: true, wide: true},
}

func (f format) blockBytes() int {
	n := 4 * f.panelBytes
	if f.scaled {
		n += f.scaleBytes() * groupRows
	}
	if f.offset {
		n += f.scaleBytes() * groupRows
	}
	return n
}

func (f format) scaleBytes() int {
	if f.wide {
		return 4
	}
	return 2
}

// formatOf gives the packed format of a type of weights. All hold its values
// exactly, but for the rounding of a sub-block's scale to float32. Integer
// products want bytes in another order.
func formatOf(t kernels.DType, integer bool) int {
	if integer {
		switch t {
		case kernels.Q8_0, kernels.Q5_0:
			return formatQ8V
		case kernels.Q5_1, kernels.Q5_K:
			return formatQ8WV
		case kernels.Q6_K:
			return formatQ6V
		}
	}
	switch t {
	case kernels.F16:
		return formatF16
	case kernels.BF16:
		return formatBF16
	case kernels.Q8_0, kernels.Q5_0:
		return formatQ8
	case kernels.Q4_1:
		return formatQ4
	case kernels.Q4_0:
		return formatQ4S
	case kernels.Q5_1, kernels.Q5_K:
		return formatQ8W
	case kernels.Q6_K:
		return formatQ6
	case kernels.Q4_K:
		return formatQ4W
	}
	return formatF32
}

// expand reads one packed block: codes by column (64 outputs each), scales, and
// minima less the centre of the codes.
func (f format) expand(block []byte, codes, d, m []float32) {
	for p := range groupRows / 16 {
		panel := block[p*f.panelBytes:][:f.panelBytes]
		for k := range f.columns {
			f.expandColumn(codes[k*groupRows+16*p:][:16], panel, k)
		}
	}
	if f.scaled {
		for i := range groupRows {
			f.expandScales(i, block[4*f.panelBytes:], d, m)
		}
	}
}

// expandColumn reads the codes of column k of a panel.
func (f format) expandColumn(dst []float32, panel []byte, k int) {
	switch f.kind {
	case formatF32:
		for i := range dst {
			dst[i] = floatOf(binary.LittleEndian.Uint32(panel[64*k+4*i:]))
		}
	case formatF16:
		for i := range dst {
			dst[i] = ref.Half(binary.LittleEndian.Uint16(panel[32*k+2*i:]))
		}
	case formatBF16:
		for i := range dst {
			dst[i] = ref.Brain(binary.LittleEndian.Uint16(panel[64*(k/2)+4*i+2*(k%2):]))
		}
	case formatQ8, formatQ8W, formatQ6:
		for i, q := range panel[16*k:][:16] {
			dst[i] = float32(int8(q))
		}
	default: // nibbles
		words, shift := panel[64*(k/8):][:64], 4*(k%8)
		for i := range dst {
			dst[i] = float32(int32(binary.LittleEndian.Uint32(words[4*i:])>>shift&15) - 8)
		}
	}
}

func (f format) expandScales(i int, scales []byte, d, m []float32) {
	if f.wide {
		d[i] = floatOf(binary.LittleEndian.Uint32(scales[4*i:]))
		if f.offset {
			m[i] = floatOf(binary.LittleEndian.Uint32(scales[4*(groupRows+i):]))
		}
		return
	}
	d[i] = ref.Half(binary.LittleEndian.Uint16(scales[2*i:]))
	if f.offset {
		m[i] = ref.Half(binary.LittleEndian.Uint16(scales[2*(groupRows+i):])) + 8*d[i]
	}
}
