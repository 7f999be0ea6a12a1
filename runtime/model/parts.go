package model

import (
	"fmt"

	"manta/kernels"
	"manta/parallel/shard"
)

// tensor gives a whole tensor as stored.
func (n *loader) tensor(name string) kernels.Matrix {
	m, ok := n.source.Tensor(name)
	if !ok && n.err == nil {
		n.err = fmt.Errorf("%w: %s is missing", ErrTensor, name)
	}
	return m
}

// rows gives rows of a product's weight, in output × input order.
func (n *loader) rows(name string, r shard.Range) kernels.Matrix {
	m := n.tensor(name + ".weight")
	if n.err != nil {
		return m
	}
	if n.spec.Transposed {
		if m, n.err = m.SliceCols(r.Lo, r.Hi); n.err == nil {
			m = transpose(m)
		}
		return m
	}
	m, n.err = m.SliceRows(r.Lo, r.Hi)
	return m
}

// block gives rows and columns of a weight.
func (n *loader) block(name string, rows, cols shard.Range) kernels.Matrix {
	m := n.tensor(name + ".weight")
	if n.err != nil {
		return m
	}
	if n.spec.Transposed {
		if m, n.err = m.SliceRows(cols.Lo, cols.Hi); n.err == nil {
			m = transpose(m)
		}
		return m
	}
	if m, n.err = m.SliceRows(rows.Lo, rows.Hi); n.err == nil {
		m, n.err = m.SliceCols(cols.Lo, cols.Hi)
	}
	return m
}

// projection loads a product back to the hidden width, of which this rank has
// some columns, or, if whole, all. Of ranks that each have some, rank 0 alone adds
// the bias: the parts are summed.
func (n *loader) projection(name string, columns shard.Range, bias, whole bool) kernels.Linear {
	hidden := shard.Range{Hi: n.spec.Hidden}
	out := kernels.Linear{Weight: n.weight(n.block(name, hidden, columns))}
	if bias && (n.slice.Rank == 0 || whole) {
		out.Bias = n.vector(n.floats(name+".bias", hidden))
	}
	return out
}

// A named is rows of one tensor.
type named struct {
	name string
	rows shard.Range
}

// qkv gives the rows that stack to this rank's [q heads | k heads | v heads].
func (n *loader) qkv(l int) []named {
	s, q, kv := n.spec, n.slice.Heads, n.slice.KVHeads
	// rows gives those of heads, which in their tensor lie behind first others.
	rows := func(template string, heads shard.Range, first int) named {
		return named{at(template, l, 0), shard.Range{Lo: (first + heads.Lo) * s.HeadDim, Hi: (first + heads.Hi) * s.HeadDim}}
	}
	switch s.Fused {
	case FusedQKV:
		return []named{rows(s.Names.QKV, q, 0), rows(s.Names.QKV, kv, s.Heads), rows(s.Names.QKV, kv, s.Heads+s.KVHeads)}
	case FusedHead:
		var list []named
		for part, heads := range []shard.Range{q, kv, kv} {
			for h := heads.Lo; h < heads.Hi; h++ {
				list = append(list, rows(s.Names.QKV, shard.Range{Hi: 1}, 3*h+part))
			}
		}
		return list
	}
	return []named{rows(s.Names.Q, q, 0), rows(s.Names.K, kv, 0), rows(s.Names.V, kv, 0)}
}

func (n *loader) weight(parts ...kernels.Matrix) (w kernels.Weight) {
	if n.err == nil {
		w, n.err = n.ops.Weight(parts...)
	}
	return w
}

func (n *loader) pair(gate, up kernels.Matrix) (w kernels.Weight) {
	if n.err == nil {
		w, n.err = n.ops.Pair(gate, up)
	}
	return w
}

func (n *loader) vector(values []float32) (v kernels.Vector) {
	if n.err == nil {
		v, n.err = n.ops.Vector(values)
	}
	return v
}

// rope gives the table of one of the Spec's rotations, made once.
func (n *loader) rope(index, positions int) kernels.RopeTable {
	if index == NoRope || n.err != nil {
		return nil
	}
	if n.ropes[index] == nil {
		inverse, scale := n.spec.Ropes[index].Table(positions)
		n.ropes[index], n.err = n.ops.Rope(inverse, scale, positions)
	}
	return n.ropes[index]
}

// transpose copies a matrix of plain numbers to cols × rows. Only GPT-2 stores
// its weights so; the copy lies on the Go heap as long as the device uses it.
func transpose(m kernels.Matrix) kernels.Matrix {
	size := m.Type.BlockBytes()
	t := kernels.Matrix{Name: m.Name, Type: m.Type, Rows: m.Cols, Cols: m.Rows, Stride: m.Rows * size}
	t.Data = make([]byte, t.Rows*t.Stride)
	for r := range m.Rows {
		src := m.Data[r*m.Stride:]
		for c := range m.Cols {
			copy(t.Data[c*t.Stride+r*size:][:size], src[c*size:])
		}
	}
	return t
}
