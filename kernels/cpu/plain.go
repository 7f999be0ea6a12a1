package cpu

import (
	"math"
	"runtime"
	"sync/atomic"
	"unsafe"

	"manta/kernels"
	"manta/kernels/ref"
)

// plain gives the kernels in Go alone, on the same packed layouts.
func plain() *kernelSet {
	set := &kernelSet{
		name: "go", addTo: plainAddTo, mulScale: plainMulScale, scaleTo: plainScaleTo, blend: plainBlend,
		sumSquares: plainSumSquares, siluTo: plainSilu, geluTo: plainGELU, geluTanhTo: plainGELUTanh, softcapTo: plainSoftcap, siluMul: plainSiluMul, highest: plainHighest,
		expSum: plainExpSum, rotate: plainRotate, blockSums: plainBlockSums, transpose: plainTranspose, stream: plainStream, spin: plainSpin,
	}
	set.narrow[storeF16] = func(dst *uint16, x *float32, n uintptr) { plainNarrow(dst, x, n, ref.ToHalf) }
	set.narrow[storeBF16] = func(dst *uint16, x *float32, n uintptr) { plainNarrow(dst, x, n, ref.ToBrain) }
	for f := range formatCount {
		for rows := 1; rows <= maxRows; rows++ {
			set.products[f][rows-1] = plainProduct(formats[f], rows)
		}
	}
	for s := range storeCount {
		for rows := 1; rows <= maxQueries; rows++ {
			set.scores[s][rows-1] = plainScores(s, rows)
			for i, panels := range []int{1, 4} {
				set.values[s][rows-1][i] = plainValues(s, rows, panels)
			}
		}
	}
	return set
}

func floatsAt(p *float32, n uintptr) []float32 { return unsafe.Slice(p, n) }

// offset moves a pointer by bytes inside one piece of memory.
func offset[T any](p *T, bytes uintptr) *T { return (*T)(unsafe.Add(unsafe.Pointer(p), bytes)) }

func plainRotate(dst, x, cos, sin *float32, n uintptr) {
	copy(floatsAt(dst, 2*n), floatsAt(x, 2*n))
	ref.Rotate(floatsAt(dst, 2*n), floatsAt(cos, n), floatsAt(sin, n), false)
}

func plainProduct(f format, rows int) productKernel {
	return func(y, x *float32, stride uintptr, sums *float32, w *byte, blocks uintptr) {
		out := floatsAt(y, uintptr(rows*groupRows))
		clear(out)
		var codes [32 * groupRows]float32
		var d, m, s [groupRows]float32
		packed := unsafe.Slice(w, blocks*uintptr(f.blockBytes()))
		for b := range int(blocks) {
			f.expand(packed[b*f.blockBytes():][:f.blockBytes()], codes[:], d[:], m[:])
			for r := range rows {
				xs := floatsAt(offset(x, uintptr(r)*stride+uintptr(4*b*f.columns)), uintptr(f.columns))
				acc := out[r*groupRows:][:groupRows]
				into := acc
				if f.scaled {
					clear(s[:])
					into = s[:]
				}
				sum := (*[groupRows]float32)(into)
				for k, v := range xs {
					column := (*[groupRows]float32)(codes[k*groupRows:])
					for i := range sum {
						sum[i] += column[i] * v
					}
				}
				if !f.scaled {
					continue
				}
				for i := range acc {
					acc[i] += d[i] * s[i]
				}
				if f.offset {
					sum := *offset(sums, uintptr(4*(16*b+r)))
					for i := range acc {
						acc[i] += m[i] * sum
					}
				}
			}
		}
	}
}

// widen reads one stored number.
func widen(store int, p *byte) float32 {
	switch store {
	case storeF16:
		return ref.Half(*(*uint16)(unsafe.Pointer(p)))
	case storeBF16:
		return ref.Brain(*(*uint16)(unsafe.Pointer(p)))
	}
	return *(*float32)(unsafe.Pointer(p))
}

func plainScores(store, rows int) scoresKernel {
	size := storeBytes(store)
	return func(s *float32, sStride uintptr, q *float32, qStride uintptr, k *byte, blocks *int32, count, blockStride, dim uintptr) {
		for i, block := range unsafe.Slice(blocks, count) {
			key := offset(k, uintptr(block)*blockStride)
			for r := range uintptr(rows) {
				acc := floatsAt(offset(s, r*sStride+uintptr(64*i)), 16)
				clear(acc)
				for d, v := range floatsAt(offset(q, r*qStride), dim) {
					for t := range acc {
						acc[t] += v * widen(store, offset(key, uintptr(size*(16*d+t))))
					}
				}
			}
		}
	}
}

func plainValues(store, rows, panels int) valuesKernel {
	size := storeBytes(store)
	return func(o *float32, oStride uintptr, p *float32, pStride uintptr, v *byte, blocks *int32, first, tokens, blockStride, tokenStride uintptr) {
		for t := range tokens {
			slot := first + t
			block := *offset(blocks, slot/16*4)
			value := offset(v, uintptr(block)*blockStride+slot%16*tokenStride)
			for r := range uintptr(rows) {
				weight := *offset(p, r*pStride+4*t)
				acc := floatsAt(offset(o, r*oStride), uintptr(16*panels))
				for d := range acc {
					acc[d] += weight * widen(store, offset(value, uintptr(size*d)))
				}
			}
		}
	}
}

func plainAddTo(dst, src *float32, n uintptr) {
	d, s := floatsAt(dst, n), floatsAt(src, n)
	for i := range d {
		d[i] += s[i]
	}
}

func plainMulScale(dst, x, w *float32, scale float32, n uintptr) {
	d, a, b := floatsAt(dst, n), floatsAt(x, n), floatsAt(w, n)
	for i := range d {
		d[i] = a[i] * scale * b[i]
	}
}

func plainScaleTo(dst, x *float32, scale float32, n uintptr) {
	d, a := floatsAt(dst, n), floatsAt(x, n)
	for i := range d {
		d[i] = a[i] * scale
	}
}

func plainBlend(dst, x *float32, a, b float32, n uintptr) {
	d, v := floatsAt(dst, n), floatsAt(x, n)
	for i := range d {
		d[i] = d[i]*a + float32(v[i]*b)
	}
}

func plainSumSquares(x *float32, n uintptr) float32 {
	var sum float32
	for _, v := range floatsAt(x, n) {
		sum += v * v
	}
	return sum
}

func sigmoidTimes(v float32) float32 { return v / (1 + float32(math.Exp(-float64(v)))) }

func plainSilu(dst, x *float32, n uintptr) {
	d, a := floatsAt(dst, n), floatsAt(x, n)
	for i := range d {
		d[i] = sigmoidTimes(a[i])
	}
}

func plainGELU(dst, x *float32, n uintptr)     { plainActivate(dst, x, n, kernels.GELU) }
func plainGELUTanh(dst, x *float32, n uintptr) { plainActivate(dst, x, n, kernels.GELUTanh) }

func plainActivate(dst, x *float32, n uintptr, a kernels.Activation) {
	d := floatsAt(dst, n)
	for i, v := range floatsAt(x, n) {
		d[i] = ref.Activate(a, v)
	}
}

func plainSoftcap(dst, x *float32, c, _ float32, n uintptr) {
	d := floatsAt(dst, n)
	for i, v := range floatsAt(x, n) {
		d[i] = ref.Softcap(c, v)
	}
}

func plainSiluMul(dst, x, up *float32, n uintptr) {
	d, a, u := floatsAt(dst, n), floatsAt(x, n), floatsAt(up, n)
	for i := range d {
		d[i] = sigmoidTimes(a[i]) * u[i]
	}
}

func plainHighest(x *float32, n uintptr) float32 {
	top := float32(math.Inf(-1))
	for _, v := range floatsAt(x, n) {
		if v > top {
			top = v
		}
	}
	return top
}

func plainExpSum(x *float32, n uintptr, less float32) float32 {
	var lanes [16]float32
	for i, v := range floatsAt(x, n) {
		e := float32(math.Exp(float64(v - less)))
		*offset(x, uintptr(4*i)) = e
		lanes[i%16] += e
	}
	var sum float32
	for _, v := range lanes {
		sum += v
	}
	return sum
}

func plainBlockSums(sums, x *float32, blocks uintptr) {
	for b := range blocks {
		var sum float32
		for _, v := range floatsAt(offset(x, 128*b), 32) {
			sum += v
		}
		*offset(sums, 64*b) = sum
	}
}

func plainNarrow(dst *uint16, x *float32, n uintptr, round func(float32) uint16) {
	d := unsafe.Slice(dst, n)
	for i, v := range floatsAt(x, n) {
		d[i] = round(v)
	}
}

func plainTranspose(dst, src *uint32, srcStride uintptr) {
	for i := range uintptr(16) {
		for j := range uintptr(16) {
			*offset(dst, 64*j+4*i) = *offset(src, i*srcStride+4*j)
		}
	}
}

func plainStream(x *byte, lines uintptr) {
	var sum uint64
	for _, v := range unsafe.Slice((*uint64)(unsafe.Pointer(x)), 32*lines) {
		sum |= v
	}
	streamed(sum)
}

// streamed keeps the loop above from being optimised away.
//
//go:noinline
func streamed(uint64) {}

func plainSpin(word *uint32, value uint32, pauses uintptr) bool {
	for range pauses/4 + 1 {
		if atomic.LoadUint32(word) != value {
			return true
		}
		runtime.Gosched()
	}
	return false
}
