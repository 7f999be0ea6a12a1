package kernels

import "fmt"

// DType is a type of stored numbers. Quantized types store blocks of values
// (GGUF's; ggml-quants.h).
type DType uint8

const (
	F32 DType = iota
	F16
	BF16
	Q4_0
	Q4_1
	Q5_0
	Q5_1
	Q8_0
	Q4_K
	Q5_K
	Q6_K
)

var dtypes = [...]struct {
	name        string
	size, bytes int // values in a block, bytes of a block
}{
	F32:  {"F32", 1, 4},
	F16:  {"F16", 1, 2},
	BF16: {"BF16", 1, 2},
	Q4_0: {"Q4_0", 32, 18},
	Q4_1: {"Q4_1", 32, 20},
	Q5_0: {"Q5_0", 32, 22},
	Q5_1: {"Q5_1", 32, 24},
	Q8_0: {"Q8_0", 32, 34},
	Q4_K: {"Q4_K", 256, 144},
	Q5_K: {"Q5_K", 256, 176},
	Q6_K: {"Q6_K", 256, 210},
}

func (d DType) String() string {
	if int(d) < len(dtypes) {
		return dtypes[d].name
	}
	return fmt.Sprintf("DType(%d)", uint8(d))
}

// BlockSize is the number of values in one block.
func (d DType) BlockSize() int { return dtypes[d].size }

// BlockBytes is the number of bytes of one block.
func (d DType) BlockBytes() int { return dtypes[d].bytes }

// Bytes is the size of n values; n must be a multiple of the block.
func (d DType) Bytes(n int) int { return n / dtypes[d].size * dtypes[d].bytes }
