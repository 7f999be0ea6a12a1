package cpu

import "golang.org/x/sys/cpu"

//go:generate sh -c "cd gen && go run . -products -out ../products_amd64.s -stubs ../products_amd64.go -pkg cpu"
//go:generate sh -c "cd gen && go run . -out ../operations_amd64.s -stubs ../operations_amd64.go -pkg cpu"
//go:generate sh -c "cd gen && go run . -avx2 -products -out ../products_avx2_amd64.s -stubs ../products_avx2_amd64.go -pkg cpu"
//go:generate sh -c "cd gen && go run . -avx2 -out ../operations_avx2_amd64.s -stubs ../operations_avx2_amd64.go -pkg cpu"
//go:generate sh -c "gofmt -w table_avx2_amd64.go table_avx512_amd64.go"

// levels gives the kernels of each instruction set that this processor has, the
// fastest first. All but those in Go compute the same bits from the same weights
// and activations, but for bfloat16 with bfloat16, which AVX2 lacks.
func levels() []*kernelSet {
	x := cpu.X86
	var all []*kernelSet
	if x.HasAVX512F && x.HasAVX512BW && x.HasAVX512DQ && x.HasAVX512VL && x.HasBMI2 && x.HasFMA {
		all = append(all, avx512(x.HasAVX512VNNI, x.HasAVX512BF16))
	}
	if x.HasAVX2 && x.HasFMA { // and F16C, which came before AVX2
		if x.HasAVXVNNI {
			all = append(all, avx2("avx2-vnni", &avxVNNIIntegers))
		}
		all = append(all, avx2("avx2", &avx2Integers))
	}
	return append(all, plain())
}

// avx512 takes integer products from AVX2 where there are no dot instructions.
func avx512(integers, dots bool) *kernelSet {
	set := &kernelSet{
		name:   "avx512",
		scores: avx512Scores, values: avx512Values, products: avx512Products,
		addTo: addTo, mulScale: mulScale, scaleTo: scaleTo, blend: blend, sumSquares: sumSquares,
		siluTo: siluTo, geluTo: geluTo, geluTanhTo: geluTanhTo, softcapTo: softcapTo, siluMul: siluMul,
		highest: highest, expSum: expSum, rotate: rotate, claim: claim, blockSums: blockSums,
		narrow:    [storeCount]func(*uint16, *float32, uintptr){storeF16: narrowF16, storeBF16: narrowBF16},
		transpose: transpose16,
		stream:    stream,
		spin:      spin,
		integers:  &avx2Integers,
		quantize:  [2]func(*byte, *float32, uintptr){quantizeT1, quantizeT2},
	}
	if integers {
		set.integers = &avx512Integers
	}
	if dots {
		set.dots = &avx512Dots
	}
	return set
}

// avx2 composes what 16 registers of 8 lanes cannot hold at once from several calls.
func avx2(name string, integers *[2][formatCount]integerKernel) *kernelSet {
	set := &kernelSet{
		name:  name,
		addTo: addToAVX2, mulScale: mulScaleAVX2, scaleTo: scaleToAVX2, blend: blendAVX2, sumSquares: sumSquaresAVX2,
		siluTo: siluToAVX2, geluTo: geluToAVX2, geluTanhTo: geluTanhToAVX2, softcapTo: softcapToAVX2, siluMul: siluMulAVX2,
		highest: highestAVX2, expSum: expSumAVX2, rotate: rotateAVX2, claim: claim, blockSums: blockSumsAVX2,
		narrow:    [storeCount]func(*uint16, *float32, uintptr){storeF16: narrowF16AVX2, storeBF16: narrowBF16AVX2},
		transpose: transpose16AVX2,
		stream:    streamAVX2,
		spin:      spin,
		integers:  integers,
		quantize:  [2]func(*byte, *float32, uintptr){quantizeT1AVX2, quantizeT2AVX2},
		scores:    avx2Scores,
	}
	for f := range set.products {
		kernels := &avx2Products[f]
		copy(set.products[f][:], kernels[:])
		for rows := len(kernels); kernels[0] != nil && rows < maxRows; rows++ {
			set.products[f][rows] = twice(kernels[len(kernels)-1], len(kernels), kernels[rows-len(kernels)])
		}
	}
	for s := range set.values {
		for r := range set.values[s] {
			one := avx2Values[s][r][0]
			set.values[s][r] = [2]valuesKernel{one, fourPanels(one, storeBytes(s))}
		}
	}
	return set
}

// twice multiplies the first rows, then the others.
func twice(first productKernel, rows int, second productKernel) productKernel {
	return func(y, x *float32, stride uintptr, sums *float32, w *byte, blocks uintptr) {
		first(y, x, stride, sums, w, blocks)
		n := uintptr(rows)
		if sums != nil {
			sums = offset(sums, 4*n)
		}
		second(offset(y, 4*groupRows*n), offset(x, n*stride), stride, sums, w, blocks)
	}
}

// fourPanels adds values of 64 dimensions.
func fourPanels(one valuesKernel, size int) valuesKernel {
	return func(o *float32, oStride uintptr, p *float32, pStride uintptr, v *byte, blocks *int32, first, tokens, blockStride, tokenStride uintptr) {
		for panel := range uintptr(4) {
			one(offset(o, 64*panel), oStride, p, pStride, offset(v, 16*panel*uintptr(size)), blocks, first, tokens, blockStride, tokenStride)
		}
	}
}
