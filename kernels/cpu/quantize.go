package cpu

import "unsafe"

// A form is how activations enter a product: as they are, or as records of 32.
type form uint8

const (
	floatForm form = iota
	byteForm       // one byte a value, four shifts, three sums, one scale
	wordForm       // two bytes a value, one scale, three sums
	brainForm      // bfloat16
)

// recordWords is the size of a record in float32 words.
var recordWords = [...]int{byteForm: 16, wordForm: 20, brainForm: 16}

// codesStride is the distance of two rows of records, in float32 words.
func (w *weight) codesStride() int {
	stride := (w.sumBlocks()*recordWords[w.form] + 15) / 16 * 16
	if stride%512 == 0 {
		stride += 16
	}
	return stride
}

// quantizeTile writes the records of rows [lo, hi) of x, normalised on the way in
// the memory of own.
func (t *linearTask) quantizeTile(x, codes buffer, own []float32, lo, hi int) {
	for r := lo; r < hi; r++ {
		src := x.data[r*x.stride:]
		if t.a.Norm != nil {
			src = t.normalised(own[:strideOf(t.w.cols)], src)
		}
		t.o.kernels.record(t.w.form, &codes.data[r*codes.stride], &src[0], uintptr(t.w.sumBlocks()))
	}
}

// record writes the records of 32·blocks values.
func (s *kernelSet) record(f form, dst, x *float32, blocks uintptr) {
	if f == brainForm {
		s.narrow[storeBF16]((*uint16)(unsafe.Pointer(dst)), x, 32*blocks)
		return
	}
	s.quantize[f-byteForm](byteOf(dst), x, blocks)
}

// normalised writes norm(x) to dst, padded with zeros.
func (t *linearTask) normalised(dst, x []float32) []float32 {
	t.o.kernels.normalise(dst[:t.w.cols], x[:t.w.cols], t.a.Norm)
	clear(dst[t.w.cols:])
	return dst
}

func byteOf(p *float32) *byte { return (*byte)(unsafe.Pointer(p)) }
