package cpu

import "unsafe"

// recordWords is the size of a record of 32 activations in float32 words, by the
// bytes of a value: codes, four scales or one, three sums.
var recordWords = [...]int{1: 16, 2: 20}

// codesStride is the distance of two rows of records, in float32 words.
func (w *weight) codesStride() int {
	stride := (w.sumBlocks()*recordWords[w.terms] + 15) / 16 * 16
	if stride%512 == 0 {
		stride += 16
	}
	return stride
}

// quantizeTile writes the records of rows [lo, hi) of x, normalised on the way in
// the memory of own.
func (t *linearTask) quantizeTile(x, codes buffer, own []float32, lo, hi int) {
	quantize := t.o.kernels.quantize[t.w.terms-1]
	for r := lo; r < hi; r++ {
		src := x.data[r*x.stride:]
		if t.a.Norm != nil {
			src = t.normalised(own[:strideOf(t.w.cols)], src)
		}
		quantize(byteOf(&codes.data[r*codes.stride]), &src[0], uintptr(t.w.sumBlocks()))
	}
}

// normalised writes norm(x) to dst, padded with zeros.
func (t *linearTask) normalised(dst, x []float32) []float32 {
	t.o.kernels.normalise(dst[:t.w.cols], x[:t.w.cols], t.a.Norm)
	clear(dst[t.w.cols:])
	return dst
}

func byteOf(p *float32) *byte { return (*byte)(unsafe.Pointer(p)) }
