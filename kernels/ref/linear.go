package ref

import (
	"math"

	"manta/kernels"
)

// Dot adds x[i]·y[i] from the first to the last.
func Dot(x, y []float32) float32 {
	var sum float32
	y = y[:len(x)]
	for i, v := range x {
		sum += float32(v * y[i])
	}
	return sum
}

// Activate applies a nonlinearity.
func Activate(a kernels.Activation, x float32) float32 {
	v := float64(x)
	switch a {
	case kernels.SiLU: // x · σ(x): Elfwing, Uchibe & Doya 2018, eq. 1
		return float32(v / (1 + math.Exp(-v)))
	case kernels.GELU: // x · Φ(x): Hendrycks & Gimpel 2016, §2
		return float32(0.5 * v * (1 + math.Erf(v/math.Sqrt2)))
	case kernels.GELUTanh:
		return float32(0.5 * v * (1 + math.Tanh(math.Sqrt(2/math.Pi)*(v+0.044715*v*v*v))))
	}
	return x
}

// Softcap computes c·tanh(x/c) where c > 0, as Gemma 2 (2024, §2).
func Softcap(c, x float32) float32 {
	if c <= 0 {
		return x
	}
	return c * float32(math.Tanh(float64(x/c)))
}

// Linear computes out (+)= act(norm(x) · Weightᵀ + Bias), gated or not.
func (o *Ops) Linear(out, x kernels.Tensor, a kernels.Linear) {
	w := a.Weight.(*weight)
	width := w.rows
	if a.Gated {
		width /= 2
	}
	check(out.Rows == x.Rows && out.Cols == width && x.Cols == w.cols, "linear", out, x)
	normed := normedRows(x, a.Norm)
	y := product(normed, x.Rows, w, floats(a.Bias))
	for r := range x.Rows {
		dst, src := row(out, r), y[r*w.rows:(r+1)*w.rows]
		for i := range dst {
			v := Activate(a.Activation, Softcap(a.Softcap, src[i]))
			if a.Gated {
				v *= src[i+width]
			}
			if a.Accumulate {
				v += dst[i]
			}
			dst[i] = v
		}
	}
}

// normedRows gives norm(x), in memory of its own.
func normedRows(x kernels.Tensor, n *kernels.Norm) []float32 {
	normed := make([]float32, x.Rows*x.Cols)
	for r := range x.Rows {
		normalise(normed[r*x.Cols:(r+1)*x.Cols], row(x, r), n)
	}
	return normed
}

// product gives x · wᵀ + bias, of rows × w.rows values.
func product(x []float32, rows int, w *weight, bias []float32) []float32 {
	y := make([]float32, rows*w.rows)
	values := make([]float32, w.cols)
	for i := range w.rows {
		w.row(i, values)
		for r := range rows {
			v := Dot(x[r*w.cols:(r+1)*w.cols], values)
			if bias != nil {
				v += bias[i]
			}
			y[r*w.rows+i] = v
		}
	}
	return y
}
