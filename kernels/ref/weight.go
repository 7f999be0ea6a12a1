package ref

import (
	"fmt"

	"manta/kernels"
)

// A weight keeps the parts as their file stores them; a row is dequantized when
// it is used.
type weight struct {
	parts      []kernels.Matrix
	rows, cols int
}

func (w *weight) Shape() (int, int) { return w.rows, w.cols }

// row writes the values of row r into dst.
func (w *weight) row(r int, dst []float32) {
	for _, m := range w.parts {
		if r < m.Rows {
			Dequantize(m, r, dst)
			return
		}
		r -= m.Rows
	}
	panic("ref: weight: no such row")
}

// CheckMatrix tells whether a matrix's data hold what its shape says.
func CheckMatrix(m kernels.Matrix) error {
	if m.Rows < 0 || m.Cols < 0 || m.Cols%m.Type.BlockSize() != 0 {
		return fmt.Errorf("%w: %s: %d×%d of %s, whose blocks are of %d values", ErrShape, m.Name, m.Rows, m.Cols, m.Type, m.Type.BlockSize())
	}
	if m.Rows == 0 {
		return nil
	}
	if need := (m.Rows-1)*m.Stride + m.Type.Bytes(m.Cols); m.Stride < 0 || need > len(m.Data) {
		return fmt.Errorf("%w: %s: %d bytes, want %d", ErrShape, m.Name, len(m.Data), need)
	}
	return nil
}

// CheckPair tells whether two matrices are the factors of a gate.
func CheckPair(gate, up kernels.Matrix) error {
	if gate.Rows != up.Rows {
		return fmt.Errorf("%w: %s has %d rows, the gate %s has %d", ErrShape, up.Name, up.Rows, gate.Name, gate.Rows)
	}
	return nil
}

// Pair keeps the parts as they are.
func (o *Ops) Pair(gate, up kernels.Matrix) (kernels.Weight, error) {
	if err := CheckPair(gate, up); err != nil {
		return nil, err
	}
	return o.Weight(gate, up)
}

// Weight keeps the parts as they are.
func (o *Ops) Weight(parts ...kernels.Matrix) (kernels.Weight, error) {
	w := &weight{parts: parts}
	for i, m := range parts {
		if err := CheckMatrix(m); err != nil {
			return nil, err
		}
		if i > 0 && m.Cols != w.cols {
			return nil, fmt.Errorf("%w: %s has %d columns, %s has %d", ErrShape, m.Name, m.Cols, parts[0].Name, w.cols)
		}
		w.rows, w.cols = w.rows+m.Rows, m.Cols
	}
	return w, nil
}

type vector []float32

func (v vector) Len() int { return len(v) }

// Vector copies the values.
func (o *Ops) Vector(v []float32) (kernels.Vector, error) {
	return vector(append([]float32(nil), v...)), nil
}
