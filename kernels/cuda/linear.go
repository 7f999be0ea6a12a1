//go:build cuda

package cuda

import (
	"fmt"

	"manta/kernels"
)

func bit(b bool) int32 {
	if b {
		return 1
	}
	return 0
}

// check panics where a caller broke the contract on shapes.
func check(ok bool, operation string, tensors ...kernels.Tensor) {
	if ok {
		return
	}
	shapes := ""
	for _, t := range tensors {
		shapes += fmt.Sprintf(" %d×%d", t.Rows, t.Cols)
	}
	panic("cuda: " + operation + ": shapes do not fit:" + shapes)
}

// Embed looks the batch's tokens up.
func (o *Ops) Embed(out kernels.Tensor, a kernels.Embed) {
	w := a.Table.(*weight)
	check(out.Rows == len(o.step.batch.Tokens) && out.Cols == w.cols, "embed", out)
	b := bufferOf(out)
	b.narrow = false
	e := embedArguments{table: w.at, tokens: o.step.tokens, position: o.step.positions, last: o.last, out: b.at,
		columns: int32(w.cols), chunks: int32(w.chunks), outStride: int32(out.Cols), vocabulary: int32(w.rows), scale: a.Scale}
	if a.Positions != nil {
		p := a.Positions.(*weight)
		e.positions, e.positionChunks = p.at, int32(p.chunks)
	}
	o.launch("embed"+o.suffix, out.Rows, 1, 1, 512, 0, bytesOf(&e))
}

// normOf gives the arguments of normalising x.
func normOf(x kernels.Tensor, n *kernels.Norm) normArguments {
	b := bufferOf(x)
	a := normArguments{x: b.at, rows: int32(x.Rows), columns: int32(x.Cols), xStride: int32(x.Cols), kind: -1, xNarrow: bit(b.narrow)}
	if n != nil {
		a.kind, a.gain, a.bias, a.eps = int32(n.Kind), vectorAt(n.Weight), vectorAt(n.Bias), n.Eps
	}
	return a
}

// Norm normalises each row; out may be x.
func (o *Ops) Norm(out, x kernels.Tensor, n kernels.Norm) {
	check(out.Rows == x.Rows && out.Cols == x.Cols, "norm", out, x)
	a := normOf(x, &n)
	b := bufferOf(out)
	if b == bufferOf(x) && b.narrow {
		panic("cuda: norm: a narrow tensor cannot be normalised in place")
	}
	b.narrow = false
	a.out, a.outStride = b.at, int32(out.Cols)
	o.launch("norm"+o.suffix, x.Rows, 1, 1, 512, 0, bytesOf(&a))
}

// Add computes x += norm(y).
func (o *Ops) Add(x, y kernels.Tensor, n *kernels.Norm) {
	check(x.Rows == y.Rows && x.Cols == y.Cols, "add", x, y)
	if bufferOf(x).narrow {
		panic("cuda: add: the sum must be a stream of residuals, which is float32")
	}
	if n == nil && o.addsSum(x, y) {
		return
	}
	a := normOf(y, n)
	a.out, a.outStride = bufferOf(x).at, int32(x.Cols)
	o.launch("add"+o.suffix, x.Rows, 1, 1, 512, 0, bytesOf(&a))
}

// Gather copies the wanted rows of x to the top of out.
func (o *Ops) Gather(out, x kernels.Tensor) {
	n := len(o.step.batch.Wanted)
	check(out.Rows >= n && out.Cols == x.Cols, "gather", out, x)
	from, to := bufferOf(x), bufferOf(out)
	to.narrow = from.narrow
	a := gatherArguments{x: from.at, out: to.at, wanted: o.step.wanted, words: int32(x.Cols)}
	if from.narrow {
		if x.Cols%2 == 0 {
			a.words /= 2
		} else {
			a.odd = 1
		}
	}
	o.launch("gather", n, 1, 1, 512, 0, bytesOf(&a))
}

// Linear computes out (+)= act(norm(x) · Weightᵀ + Bias), gated or not.
func (o *Ops) Linear(out, x kernels.Tensor, a kernels.Linear) {
	w := a.Weight.(*weight)
	width := w.rows
	if a.Gated {
		width /= 2
	}
	check(out.Rows == x.Rows && out.Cols == width && x.Cols == w.cols, "linear", out, x)
	if w.paired != (a.Gated && o.pairs(w.rows)) {
		panic("cuda: linear: weights of gates come from Pair, all others from Weight")
	}
	if x.Rows == 0 {
		return
	}
	b := bufferOf(out)
	b.turned = false
	if !a.Accumulate {
		b.narrow = o.half && (a.Activation != kernels.Identity || a.Gated)
	}
	args := o.linearOf(w)
	args.rows, args.bias, args.out, args.outStride = int32(x.Rows), vectorAt(a.Bias), b.at, int32(out.Cols)
	args.activation, args.softcap, args.gated = int32(a.Activation), a.Softcap, bit(a.Gated)
	args.accumulate, args.outNarrow = bit(a.Accumulate), bit(b.narrow)
	var heads *headArguments
	if a.Attention != nil && o.turns(a, x.Rows) {
		h := o.headsOf(a.Attention, x.Rows)
		heads, b.turned = &h, true
	}
	o.product(args, w, x, a.Norm, heads)
}

func (o *Ops) linearOf(w *weight) linearArguments {
	return linearArguments{weight: w.at, arrived: o.arrived, width: int32(w.rows), columns: int32(w.cols),
		chunks: int32(w.chunks), segment: int32(w.segment), segments: int32(w.segments)}
}

// product chooses the kernels of out = finish(norm(x) · weightᵀ), which are heads that it
// turns and stores where heads says so. The choice does not show in the result.
func (o *Ops) product(a linearArguments, w *weight, x kernels.Tensor, n *kernels.Norm, heads *headArguments) {
	if a.gated == 1 && o.half && !w.paired {
		o.ungated(a, w, x, n)
		return
	}
	b := bufferOf(x)
	a.x, a.xStride, a.xNarrow = b.at, int32(x.Cols), bit(b.narrow)
	if !o.half {
		if n != nil {
			o.prepare(&a, x, n, x.Cols, false)
		}
		o.launch("linear_float", ceil(outputs(a), 8), ceil(x.Rows, 8), 1, 256, 0, bytesOf(&a))
		return
	}
	// Where the inverse of the root can wait until the sum is there, it does.
	postponed := n != nil && n.Kind == kernels.RMSNorm && n.Bias == nil && n.Weight != nil && o.options.Compute == kernels.BF16 && !b.narrow
	if kernel, shared := o.gemvFits(&a, w, x.Rows); kernel > 0 {
		switch {
		case n == nil:
		case postponed && x.Rows <= 4:
			a.gain, a.eps = vectorAt(n.Weight), n.Eps
		default:
			o.prepare(&a, x, n, 64*ceil(x.Cols, 64), postponed)
		}
		if o.line(a, w) {
			return
		}
		o.launch(fmt.Sprintf("gemv%s_%d", o.suffix, kernel), min(o.info.Multiprocessor, units(a)), 1, 1, 512, shared, bytesOf(&a))
		return
	}
	if (n != nil || !b.narrow || x.Cols%64 != 0) && !(postponed && o.fed(&a, x, n)) {
		o.prepare(&a, x, n, 64*ceil(x.Cols, 64), postponed)
	}
	o.tiles(a, x.Rows, 1, heads)
}

// prepare normalises x, or only converts it, into what products read.
func (o *Ops) prepare(a *linearArguments, x kernels.Tensor, n *kernels.Norm, stride int, postponed bool) {
	p := normOf(x, n)
	p.out, p.outStride, p.postponed = o.need("prepared", x.Rows*stride*4).at, int32(stride), bit(postponed)
	p.early = bit(o.step.alone && letsIn(*a, x.Rows))
	if postponed {
		p.scale = o.need("scale", x.Rows*4).at
		a.scale = p.scale
	}
	if !postponed || !o.sumsRows(p) {
		o.launch("prepare"+o.suffix, x.Rows, 1, 1, 512, 0, bytesOf(&p))
	}
	a.x, a.xStride, a.xNarrow = p.out, int32(stride), bit(o.half)
}

// letsIn tells whether the product is let in when what normalises for it begins, so
// that its weights come meanwhile, not when that has its own input. Its blocks then fill
// the device and wait, which nothing that they wait for may need: kernels of other ranks
// on the same device do. Large weights of few rows lose by it.
func letsIn(a linearArguments, rows int) bool {
	return rows > fewRows || int(a.width)*int(a.columns)*2 < 48<<20
}

// ungated computes both halves and multiplies them in a second pass.
func (o *Ops) ungated(a linearArguments, w *weight, x kernels.Tensor, n *kernels.Norm) {
	y := o.need("ungated", x.Rows*w.rows*4)
	g := gateArguments{y: y.at, out: a.out, half: int32(w.rows / 2), outStride: a.outStride, activation: a.activation,
		accumulate: a.accumulate, outNarrow: a.outNarrow, softcap: a.softcap}
	a.out, a.outStride, a.gated, a.activation, a.softcap, a.accumulate, a.outNarrow = y.at, int32(w.rows), 0, 0, 0, 0, 0
	o.product(a, w, x, n, nil)
	o.launch("gate"+o.suffix, x.Rows, 1, 1, 256, 0, bytesOf(&g))
}

const (
	pieceBytes   = 4 * 512
	gemvWarps    = 16
	gemvSums     = 16384
	gemvSlots    = 48       // pieces of a block: what covers memory's latency
	gemvOldSlots = 3        // of a warp, without the copy engine
	lineSlots    = 48       // couples of pieces of a block with one row: what it has on the way when x comes late
	staticShared = 12 << 10 // at most, of any kernel
	// More than half of a multiprocessor's memory. Small weights are in the rings before
	// x is there, beside the kernel before; where a block streams more than its rings
	// hold, the next one's must not stand beside it (7.1 ms for a step of 8B).
	gemvAlone = 120 << 10
)

// lineKind names the kernel that knows a product of one row (src/line.cuh), or nothing.
func lineKind(a linearArguments) string {
	switch {
	case a.rows > 1 || a.bias != 0 || a.scale != 0 || a.softcap != 0 || a.columns%64 != 0:
	case a.gain != 0 && a.gated == 1 && a.activation == int32(kernels.SiLU) && a.outNarrow == 1 && a.accumulate == 0 && a.xNarrow == 0:
		return "gated"
	case a.gain != 0 && a.gated == 0 && a.activation == 0 && a.outNarrow == 0 && a.accumulate == 0 && a.xNarrow == 0:
		return "plain"
	case a.gain == 0 && a.gated == 0 && a.activation == 0 && a.outNarrow == 0 && a.xNarrow == 1:
		if a.accumulate == 1 {
			return "added"
		}
		return "bare"
	}
	return ""
}

// line launches a product of one row where there is a kernel that knows it.
func (o *Ops) line(a linearArguments, w *weight) bool {
	kind := lineKind(a)
	if kind == "" || !o.overlap {
		return false
	}
	name := "line_" + kind + o.suffix
	blocks := min(o.info.Multiprocessor, units(a))
	l := lineArguments{weight: a.weight, x: a.x, gain: a.gain, out: a.out, columns: a.columns, width: int32(outputs(a)),
		chunks: a.chunks, segment: a.segment, segments: a.segments, units: int32(units(a)),
		each: int32(units(a) / blocks), more: int32(units(a) % blocks), eps: a.eps}
	l.inverse, l.stepCouples, l.stepSegments = 1<<16/a.segments+1, gemvWarps/a.segments, gemvWarps%a.segments
	each := ceil(units(a), blocks) << a.gated // blocks of weight rows of a block, at most
	tasks := ceil(each, 2) * w.segments
	rings, all := ringsOf(tasks, w)
	sums, room := 2*32*tasks, o.kernels[name].shared-64*w.chunks
	l.rings, l.slots = rings, min(max(2, lineSlots/rings), all)
	for l.slots > 2 && int(rings*l.slots)*2*pieceBytes+sums > room {
		l.slots--
	}
	l.stagedAt = rings * l.slots * 2 * pieceBytes
	if tasks <= gemvWarps {
		l.once, l.stagedAt = 1, int32(each)*a.segments*l.slots*pieceBytes
	}
	l.sumsAt = l.stagedAt + 64*a.chunks
	if sums > gemvSums || int(l.stagedAt)+sums > room {
		return false
	}
	shared := int(l.sumsAt) + sums
	if l.slots < all {
		shared = max(shared, min(gemvAlone, o.kernels[name].shared))
	}
	o.launch(name, blocks, 1, 1, 512, shared, bytesOf(&l))
	return true
}

// ringsOf divides a block's tasks among its warps: how many have a ring, and how many
// pieces go through it.
func ringsOf(tasks int, w *weight) (rings, all int32) {
	return int32(min(gemvWarps, tasks)), int32(ceil(tasks, gemvWarps) * ceil(w.segment, 4))
}

// gemvFits gives the kernel for so many rows, or 0 where they do not fit, and sets
// how many pieces of the weight the rings hold.
func (o *Ops) gemvFits(a *linearArguments, w *weight, rows int) (kernel, shared int) {
	for kernel = 1; kernel < rows; kernel *= 2 {
	}
	tasks := ceil(units(*a), min(o.info.Multiprocessor, units(*a))) * w.segments // of a block
	if a.gated == 1 {
		tasks *= 2
	}
	rings, all := ringsOf(tasks, w)
	a.slots = gemvOldSlots
	if o.overlap {
		a.slots = min(gemvSlots/rings, all)
	}
	shared = int(rings*a.slots)*pieceBytes + w.chunks*kernel*64 + min(gemvSums, tasks*kernel*32)
	if a.slots < all {
		shared = max(shared, min(gemvAlone, o.shared-staticShared))
	}
	if kernel > 8 || kernel > 4 && o.wideKernels || shared > o.shared-staticShared { // tiles of 16 rows are faster than eight by gemv
		return 0, 0
	}
	return kernel, shared
}

var tileKernels = []struct{ name, rows, shared int }{
	{16, 16, 6 * (128 + 16) * 128}, {32, 32, 5 * (128 + 32) * 128}, {64, 64, 4 * (128 + 64) * 128}, {128, 128, 4 * (128 + 128) * 128},
}

// tiles launches the product of many rows, of one weight or of each expert's.
func (o *Ops) tiles(a linearArguments, rows, experts int, heads *headArguments) {
	if o.wideKernels && experts == 1 {
		if heads != nil || !o.joint(a, rows) {
			o.wide(a, rows, heads)
		}
		return
	}
	k := tileKernels[len(tileKernels)-1]
	for i, t := range tileKernels {
		if t.shared > o.shared-staticShared { // a consumer's GPU
			k = tileKernels[i-1]
			break
		}
		if rows <= t.rows {
			k = t
			break
		}
	}
	perTile := 128 / 8
	if a.gated == 1 {
		perTile /= 2
	}
	x, y, z := ceil(units(a), perTile), ceil(rows, k.rows), experts
	if bytes := int(a.segments) * rows * ceil(int(a.width), 8) * 32; experts == 1 && a.segments > 1 && 2*x*y < 3*o.info.Multiprocessor && bytes <= 256<<20 && x*y <= arrivals {
		a.partial, z = o.need("partial", bytes).at, int(a.segments)
	}
	o.launch(fmt.Sprintf("gemm%s_%d", o.suffix, k.name), x, y, z, 256, k.shared, bytesOf(&a))
}

// outputs is the number of columns of out; units that of 8 of them.
func outputs(a linearArguments) int {
	if a.gated == 1 {
		return int(a.width) / 2
	}
	return int(a.width)
}

func units(a linearArguments) int { return ceil(outputs(a), 8) }

func ceil(a, b int) int { return (a + b - 1) / b }
