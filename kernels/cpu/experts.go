package cpu

import (
	"math"

	"manta/kernels"
)

// expertsTask is the memory of Experts between its products.
type expertsTask struct {
	weights []float32 // [row][expert]; zero where not chosen
	logits  []float32
	chosen  []int32 // rows of the expert at hand
	inputs  []float32
	hidden  []float32
	outputs []float32
}

// route writes softmax(logits) of the topK most likely experts, zero for the
// others; the lower index wins a tie (Shazeer et al. 2017, §2.1).
func route(weights, logits []float32, topK int, renormalise bool) {
	highest := logits[0]
	for _, v := range logits {
		highest = max(highest, v)
	}
	var sum, total float32
	for i, v := range logits {
		logits[i] = float32(math.Exp(float64(v - highest)))
		sum += logits[i]
		weights[i] = 0
	}
	for range min(topK, len(logits)) {
		best := -1
		for i, v := range logits {
			if v >= 0 && (best < 0 || v > logits[best]) {
				best = i
			}
		}
		if best < 0 {
			break // all that is left is not a number
		}
		weights[best] = logits[best] / sum
		total += weights[best]
		logits[best] = -1
	}
	if renormalise {
		for i := range weights {
			weights[i] /= total
		}
	}
}

// Experts adds the chosen experts' outputs in the order of their indices.
func (o *Ops) Experts(out, x kernels.Tensor, a kernels.Experts) {
	router := a.Router.(*weight)
	check(out.Rows == x.Rows && out.Cols == x.Cols && x.Cols == router.cols, "experts", out, x)
	t := &o.experts
	stride := strideOf(x.Cols)
	normed := buffer{o.grow(&o.scratch.x, x.Rows*stride), stride}
	for r := range x.Rows {
		dst := normed.row(r, stride)
		o.kernels.normalise(dst[:x.Cols], row(x, r), a.Norm)
		clear(dst[x.Cols:])
	}
	experts := router.rows
	logits := buffer{o.grow(&t.logits, x.Rows*strideOf(experts)), strideOf(experts)}
	o.product(logits, normed, x.Rows, kernels.Linear{Weight: router})
	weights := o.grow(&t.weights, x.Rows*experts)
	for r := range x.Rows {
		route(weights[r*experts:(r+1)*experts], logits.row(r, experts), a.TopK, a.Renormalise)
		if !a.Accumulate {
			clear(row(out, r))
		}
	}
	for e := range a.GateUp {
		t.chosen = t.chosen[:0]
		for r := range x.Rows {
			if weights[r*experts+e] != 0 {
				t.chosen = append(t.chosen, int32(r))
			}
		}
		if len(t.chosen) > 0 {
			o.expert(out, normed, a, e, weights, experts)
		}
	}
}

// expert adds one expert's outputs to the rows that chose it.
func (o *Ops) expert(out kernels.Tensor, normed buffer, a kernels.Experts, e int, weights []float32, experts int) {
	t := &o.experts
	rows := len(t.chosen)
	inputs := buffer{o.grow(&t.inputs, rows*normed.stride), normed.stride}
	for i, r := range t.chosen {
		copy(inputs.row(i, normed.stride), normed.row(int(r), normed.stride))
	}
	gateUp, down := a.GateUp[e].(*weight), a.Down[e].(*weight)
	width := gateUp.rows / 2
	stride := strideOf(width)
	hidden := buffer{o.grow(&t.hidden, rows*stride), stride}
	for i := range rows {
		clear(hidden.row(i, stride)[width:])
	}
	outputs := buffer{o.grow(&t.outputs, rows*normed.stride), normed.stride}
	linear := kernels.Linear{Weight: gateUp, Gated: true, Activation: a.Activation}
	if width%groupRows == 0 {
		o.product(hidden, inputs, rows, linear)
	} else {
		o.gatedApart(kernels.Tensor{Rows: rows, Cols: width, Mem: &hidden}, kernels.Tensor{Rows: rows, Cols: out.Cols, Mem: &inputs}, linear)
	}
	o.product(outputs, hidden, rows, kernels.Linear{Weight: down})
	for i, r := range t.chosen {
		y, dst := outputs.row(i, out.Cols), row(out, int(r))
		share := weights[int(r)*experts+e]
		o.kernels.scaleTo(&y[0], &y[0], share, uintptr(len(y)))
		o.kernels.addTo(&dst[0], &y[0], uintptr(len(y)))
	}
}
