package cpu

import "golang.org/x/sys/cpu"

//go:generate sh -c "cd gen && go run . -out ../kernels_amd64.s -stubs ../kernels_amd64.go -pkg cpu && gofmt -w ../table_amd64.go"

// fastest gives the kernels of the best instruction set that this processor has.
func fastest() *kernelSet {
	x := cpu.X86
	if !(x.HasAVX512F && x.HasAVX512BW && x.HasAVX512DQ && x.HasAVX512VL && x.HasBMI2 && x.HasFMA) {
		return plain()
	}
	set := &kernelSet{
		name:     "avx512",
		products: avx512Products, scores: avx512Scores, values: avx512Values,
		addTo: addTo, mulScale: mulScale, scaleTo: scaleTo, blend: blend, sumSquares: sumSquares,
		siluTo: siluTo, geluTo: geluTo, geluTanhTo: geluTanhTo, softcapTo: softcapTo, siluMul: siluMul, highest: highest, expSum: expSum, blockSums: blockSums,
		narrow:    [storeCount]func(*uint16, *float32, uintptr){storeF16: narrowF16, storeBF16: narrowBF16},
		transpose: transpose16,
		stream:    stream,
		spin:      spin,
	}
	if x.HasAVX512VNNI {
		set.integers = &avx512Integers
		set.quantize = [2]func(*byte, *float32, uintptr){quantizeT1, quantizeT2}
	}
	if x.HasAVX512BF16 {
		set.dots = &avx512Dots
	}
	return set
}
