package cpu

// The most rows of one product kernel, and the most queries of one attention kernel.
const (
	maxRows    = 12
	maxQueries = 6
	// integerRows is the most rows that integer products take at once; their
	// kernels take any number, but inputs and sums should stay in the L1 cache.
	integerRows = 24
)

// groupRows is the number of outputs that a packed group holds side by side, in
// panels of panelRows.
const (
	groupRows   = 64
	panelRows   = 16
	groupPanels = groupRows / panelRows
)

// Types of inner loops; all sizes are those that the generator's comments state.
type (
	// y[r·64+i] = Σₖ x[r][k] · w[i][k] for the 64 outputs of one packed group;
	// strides are in bytes.
	productKernel func(y, x *float32, stride uintptr, sums *float32, w *byte, blocks uintptr)
	// The same for any number of rows whose activations are records of 32 values in
	// one or two bytes each, and for some panels; it adds to y, where the first
	// panel's outputs begin.
	integerKernel func(y *float32, x *byte, stride uintptr, w *byte, blocks, rows, first, panels uintptr)
	// s[r][16·i+t] = Σ_d q[r][d] · k[blocks[i]][d][t].
	scoresKernel func(s *float32, sStride uintptr, q *float32, qStride uintptr, k *byte, blocks *int32, count, blockStride, dim uintptr)
	// o[r][d] += Σ_t p[r][t] · v[t][d].
	valuesKernel func(o *float32, oStride uintptr, p *float32, pStride uintptr, v *byte, blocks *int32, first, tokens, blockStride, tokenStride uintptr)
)

// A kernelSet is the inner loops of one instruction set.
type kernelSet struct {
	name     string
	products [formatCount][maxRows]productKernel
	dots     *[maxRows]productKernel        // bfloat16 with bfloat16; nil: none
	integers *[2][formatCount]integerKernel // nil: none; by bytes a value less one
	quantize [2]func(dst *byte, x *float32, blocks uintptr)
	scores   [storeCount][maxQueries]scoresKernel
	values   [storeCount][maxQueries][2]valuesKernel // one panel of 16 dimensions, or four

	addTo      func(dst, src *float32, n uintptr)
	mulScale   func(dst, x, w *float32, scale float32, n uintptr)
	scaleTo    func(dst, x *float32, scale float32, n uintptr)
	blend      func(dst, x *float32, a, b float32, n uintptr)
	sumSquares func(x *float32, n uintptr) float32
	siluTo     func(dst, x *float32, n uintptr)
	geluTo     func(dst, x *float32, n uintptr)
	geluTanhTo func(dst, x *float32, n uintptr)
	softcapTo  func(dst, x *float32, c, inverse float32, n uintptr) // inverse: 2/c
	siluMul    func(dst, x, up *float32, n uintptr)
	highest    func(x *float32, n uintptr) float32
	expSum     func(x *float32, n uintptr, less float32) float32
	rotate     func(dst, x, cos, sin *float32, n uintptr) // halves n apart
	claim      func(dst *float32, stride, rows uintptr)   // asks for 64 values a row, to be written soon; nil: no use
	blockSums  func(sums, x *float32, blocks uintptr)
	narrow     [storeCount]func(dst *uint16, x *float32, n uintptr)
	transpose  func(dst, src *uint32, srcStride uintptr) // 16 × 16 words
	stream     func(x *byte, lines uintptr)
	spin       func(word *uint32, value uint32, pauses uintptr) bool
}

// fastest gives the kernels of the best instruction set that this processor has.
func fastest() *kernelSet { return levels()[0] }

// Types of stored keys and values.
const (
	storeF32 = iota
	storeF16
	storeBF16
	storeCount
)
