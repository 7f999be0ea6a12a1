package ref

import (
	"math"

	"manta/kernels"
)

// Route gives softmax(logits) for the topK most likely experts, zero for the
// others; the lower index wins a tie. With renormalise the chosen add to one.
func Route(logits []float32, topK int, renormalise bool) []float32 {
	highest := logits[0]
	for _, v := range logits {
		highest = max(highest, v)
	}
	all := make([]float32, len(logits))
	var sum float32
	for i, v := range logits {
		all[i] = float32(math.Exp(float64(v - highest)))
		sum += all[i]
	}
	chosen := make([]float32, len(logits))
	var total float32
	for range min(topK, len(logits)) {
		best := -1
		for i, v := range all {
			if v >= 0 && (best < 0 || v > all[best]) {
				best = i
			}
		}
		if best < 0 {
			break // all that is left is not a number
		}
		chosen[best] = all[best] / sum
		total += chosen[best]
		all[best] = -1
	}
	if renormalise {
		for i := range chosen {
			chosen[i] /= total
		}
	}
	return chosen
}

// Experts adds the chosen experts' outputs in the order of their indices.
func (o *Ops) Experts(out, x kernels.Tensor, a kernels.Experts) {
	router := a.Router.(*weight)
	check(out.Rows == x.Rows && out.Cols == x.Cols && x.Cols == router.cols, "experts", out, x)
	normed := normedRows(x, a.Norm)
	logits := product(normed, x.Rows, router, nil)
	weights := make([][]float32, x.Rows)
	for r := range x.Rows {
		weights[r] = Route(logits[r*router.rows:(r+1)*router.rows], a.TopK, a.Renormalise)
	}
	if !a.Accumulate {
		clear(values(out))
	}
	for e := range a.GateUp {
		gateUp, down := a.GateUp[e].(*weight), a.Down[e].(*weight)
		var rows []int
		var inputs []float32
		for r := range x.Rows {
			if weights[r][e] != 0 {
				rows = append(rows, r)
				inputs = append(inputs, normed[r*x.Cols:(r+1)*x.Cols]...)
			}
		}
		n := gateUp.rows / 2
		hidden := product(inputs, len(rows), gateUp, nil)
		gated := make([]float32, len(rows)*n)
		for i := range gated {
			at := i/n*2*n + i%n
			gated[i] = Activate(a.Activation, hidden[at]) * hidden[at+n]
		}
		y := product(gated, len(rows), down, nil)
		for i, r := range rows {
			for j, v := range y[i*x.Cols : (i+1)*x.Cols] {
				row(out, r)[j] += float32(weights[r][e] * v)
			}
		}
	}
}
