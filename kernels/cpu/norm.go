package cpu

import (
	"math"

	"manta/kernels"
	"manta/kernels/ref"
)

// normalise applies n to x; out may be x, and n may be nil. Zhang & Sennrich
// 2019, eq. 4; Ba, Kiros & Hinton 2016, eq. 4.
func (s *kernelSet) normalise(out, x []float32, n *kernels.Norm) {
	switch {
	case len(x) == 0:
	case n == nil:
		copy(out, x)
	case n.Kind == kernels.RMSNorm:
		count := uintptr(len(x))
		mean := s.sumSquares(&x[0], count) / float32(len(x))
		scale := float32(1 / math.Sqrt(float64(mean+n.Eps)))
		if w := floats(n.Weight); w != nil {
			s.mulScale(&out[0], &x[0], &w[0], scale, count)
		} else {
			s.scaleTo(&out[0], &x[0], scale, count)
		}
	default:
		ref.LayerNorm(out, x, floats(n.Weight), floats(n.Bias), n.Eps)
	}
}

// normaliseSlice applies n to all of x and gives the values from one on, as many
// as dst takes.
func (s *kernelSet) normaliseSlice(dst, x []float32, from int, n *kernels.Norm) {
	w, b := floats(n.Weight), floats(n.Bias)
	if n.Kind == kernels.LayerNorm {
		whole := make([]float32, len(x))
		ref.LayerNorm(whole, x, w, b, n.Eps)
		copy(dst, whole[from:])
		return
	}
	mean := s.sumSquares(&x[0], uintptr(len(x))) / float32(len(x))
	scale := float32(1 / math.Sqrt(float64(mean+n.Eps)))
	if w != nil {
		s.mulScale(&dst[0], &x[from], &w[from], scale, uintptr(len(dst)))
	} else {
		s.scaleTo(&dst[0], &x[from], scale, uintptr(len(dst)))
	}
}

// A rowsTask does something simple to each row of a tensor.
type rowsTask struct {
	o      *Ops
	out, x kernels.Tensor
	norm   *kernels.Norm
	add    bool
	rows   int
}

// unitRows is the number of rows in a unit of simple work.
const unitRows = 8

func (o *Ops) eachRow(t rowsTask) {
	t.o, t.rows = o, t.x.Rows
	o.rows = t
	o.pool.run(&o.rows, (t.rows+unitRows-1)/unitRows)
	o.rows = rowsTask{}
}

func (t *rowsTask) do(worker, unit int) {
	for r := unit * unitRows; r < min((unit+1)*unitRows, t.rows); r++ {
		dst, src := row(t.out, r), row(t.x, r)
		if !t.add {
			t.o.kernels.normalise(dst, src, t.norm)
			continue
		}
		if t.norm != nil {
			normed := t.o.workers[worker].x[:len(src)]
			t.o.kernels.normalise(normed, src, t.norm)
			src = normed
		}
		if len(src) > 0 {
			t.o.kernels.addTo(&dst[0], &src[0], uintptr(len(src)))
		}
	}
}

// reserveRows gives every worker memory for rows of activations.
func (o *Ops) reserveRows(n int) {
	for i := range o.workers {
		o.grow(&o.workers[i].x, n)
		o.workers[i].ready = 0
	}
}

// Norm normalises each row; out may be x.
func (o *Ops) Norm(out, x kernels.Tensor, n kernels.Norm) {
	check(out.Rows == x.Rows && out.Cols == x.Cols, "norm", out, x)
	o.reserveRows(x.Cols)
	o.norm = n
	o.eachRow(rowsTask{out: out, x: x, norm: &o.norm})
}

// Add computes x += norm(y).
func (o *Ops) Add(x, y kernels.Tensor, n *kernels.Norm) {
	check(x.Rows == y.Rows && x.Cols == y.Cols, "add", x, y)
	o.reserveRows(x.Cols)
	o.eachRow(rowsTask{out: x, x: y, norm: n, add: true})
}
