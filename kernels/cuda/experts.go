//go:build cuda

package cuda

import (
	"fmt"

	"manta/kernels"
)

// Experts routes rows to experts and adds what these give, in the order of their
// indices. Pairs of row and expert are grouped by expert, and each expert's product
// runs over its own rows.
func (o *Ops) Experts(out, x kernels.Tensor, a kernels.Experts) {
	router := a.Router.(*weight)
	check(out.Rows == x.Rows && out.Cols == x.Cols && x.Cols == router.cols, "experts", out, x)
	if x.Rows == 0 {
		return
	}
	rows, count := x.Rows, len(a.GateUp)
	topK := min(a.TopK, count)
	pairs := rows * topK
	b := bufferOf(out)
	if a.Accumulate && b.narrow {
		panic("cuda: experts: the sum must be a stream of residuals, which is float32")
	}
	b.narrow = false

	logits := o.linearOf(router)
	logits.rows, logits.out, logits.outStride = int32(rows), o.need("router", 4*rows*count).at, int32(count)
	o.product(logits, router, x, a.Norm, nil)
	e := expertArguments{logits: logits.out, chosen: o.need("chosen", 4*pairs).at, weight: o.need("chosen weight", 4*pairs).at,
		place: o.need("place", 4*pairs).at, pairs: o.need("pairs", 4*pairs).at, starts: o.need("starts", 4*count+4).at, out: b.at,
		rows: int32(rows), experts: int32(count), topK: int32(topK), columns: int32(x.Cols),
		renormalise: bit(a.Renormalise), accumulate: bit(a.Accumulate)}
	o.launch("route", ceil(rows, 8), 1, 1, 256, 8*4*count, bytesOf(&e))
	o.launch("group", 1, 1, 1, 1024, 4*(count+1), bytesOf(&e))

	gateUp, down := a.GateUp[0].(*weight), a.Down[0].(*weight)
	half := gateUp.rows / 2
	stride := half
	if o.half {
		stride = 64 * ceil(half, 64)
	}
	hidden := o.need(fmt.Sprint("hidden", stride), 4*pairs*stride)

	g := o.linearOf(gateUp)
	g.rows, g.activation, g.gated = int32(rows), int32(a.Activation), 1
	g.out, g.outStride, g.outNarrow = hidden.at, int32(stride), bit(o.half)
	g.experts, g.pairs, g.starts = o.weightList(a.GateUp), e.pairs, e.starts
	o.prepare(&g, x, a.Norm, paddedColumns(o.half, x.Cols), false)
	if o.half && !gateUp.paired {
		y := o.need("ungated", 4*pairs*gateUp.rows)
		gate := gateArguments{y: y.at, out: hidden.at, half: int32(half), outStride: int32(stride), activation: g.activation, outNarrow: 1}
		g.out, g.outStride, g.gated, g.activation, g.outNarrow = y.at, int32(gateUp.rows), 0, 0, 0
		o.expertProduct(g, rows, count)
		o.launch("gate"+o.suffix, pairs, 1, 1, 256, 0, bytesOf(&gate))
	} else {
		o.expertProduct(g, rows, count)
	}

	d := o.linearOf(down)
	e.y = o.need("expert out", 4*pairs*x.Cols).at
	d.rows, d.x, d.xStride, d.xNarrow = int32(rows), hidden.at, int32(stride), bit(o.half)
	d.out, d.outStride = e.y, int32(x.Cols)
	d.experts, d.starts = o.weightList(a.Down), e.starts
	o.expertProduct(d, rows, count)
	o.launch("combine", rows, 1, 1, 256, 0, bytesOf(&e))
}

func paddedColumns(half bool, columns int) int {
	if half {
		return 64 * ceil(columns, 64)
	}
	return columns
}

func (o *Ops) expertProduct(a linearArguments, rows, experts int) {
	if o.half {
		o.tiles(a, rows, experts, nil)
		return
	}
	o.launch("linear_float", ceil(outputs(a), 8), ceil(rows, 8), experts, 256, 0, bytesOf(&a))
}

// weightList gives the addresses of the experts' weights in the device's memory.
func (o *Ops) weightList(list []kernels.Weight) pointer {
	addresses := make([]pointer, len(list))
	for i, w := range list {
		addresses[i] = w.(*weight).at
	}
	key := fmt.Sprint("experts", addresses[0], len(addresses))
	if at, ok := o.lists[key]; ok {
		return at
	}
	at, err := o.upload(listBytes(addresses))
	o.fail(err) //nolint:errcheck // sticks
	o.lists[key] = at
	return at
}
