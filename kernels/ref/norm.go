package ref

import (
	"math"

	"manta/kernels"
)

// RMSNorm: out[i] = x[i] · w[i] / sqrt(mean(x²) + eps).
// Zhang & Sennrich 2019, eq. 4; eps as in Llama's code. out may be x; w may be nil.
func RMSNorm(out, x, w []float32, eps float32) {
	var squares float32
	for _, v := range x {
		squares += v * v
	}
	scale := float32(1 / math.Sqrt(float64(squares/float32(len(x))+eps)))
	for i, v := range x {
		out[i] = v * scale
		if w != nil {
			out[i] *= w[i]
		}
	}
}

// LayerNorm: out[i] = (x[i] - mean) / sqrt(variance + eps) · w[i] + b[i].
// Ba, Kiros & Hinton 2016, eq. 4. out may be x; w and b may be nil.
func LayerNorm(out, x, w, b []float32, eps float32) {
	var sum float32
	for _, v := range x {
		sum += v
	}
	mean := sum / float32(len(x))
	var squares float32
	for _, v := range x {
		squares += (v - mean) * (v - mean)
	}
	scale := float32(1 / math.Sqrt(float64(squares/float32(len(x))+eps)))
	for i, v := range x {
		out[i] = (v - mean) * scale
		if w != nil {
			out[i] *= w[i]
		}
		if b != nil {
			out[i] += b[i]
		}
	}
}

func floats(v kernels.Vector) []float32 {
	if v == nil {
		return nil
	}
	return v.(vector)
}

// normalise applies n to x; out may be x, and n may be nil.
func normalise(out, x []float32, n *kernels.Norm) {
	switch {
	case n == nil:
		copy(out, x)
	case n.Kind == kernels.RMSNorm:
		RMSNorm(out, x, floats(n.Weight), n.Eps)
	default:
		LayerNorm(out, x, floats(n.Weight), floats(n.Bias), n.Eps)
	}
}

// Norm normalises each row; out may be x.
func (o *Ops) Norm(out, x kernels.Tensor, n kernels.Norm) {
	check(out.Rows == x.Rows && out.Cols == x.Cols, "norm", out, x)
	for r := range x.Rows {
		normalise(row(out, r), row(x, r), &n)
	}
}

// Add computes x += norm(y).
func (o *Ops) Add(x, y kernels.Tensor, n *kernels.Norm) {
	check(x.Rows == y.Rows && x.Cols == y.Cols, "add", x, y)
	normed := make([]float32, y.Cols)
	for r := range x.Rows {
		normalise(normed, row(y, r), n)
		for i, v := range normed {
			row(x, r)[i] += v
		}
	}
}
