package model

import "manta/kernels"

// Input is the residual stream of a stage that is not the first: the engine puts
// the rows of the stage before into its top.
func (m *Model) Input() kernels.Tensor { return m.hidden }

// Forward runs the slice over a batch, between Begin and End. The last stage
// gives the logits of the wanted rows, on tensor rank 0 alone, any
// other the hidden rows for the next stage. The error is the reducer's.
func (m *Model) Forward(b *kernels.Batch) (kernels.Tensor, error) {
	rows := len(b.Tokens)
	x := m.hidden.Top(rows)
	if m.slice.First() {
		m.ops.Embed(x, m.embed)
	}
	for i := range m.layers {
		if err := m.layer(x, &m.layers[i]); err != nil {
			return kernels.Tensor{}, err
		}
	}
	if !m.slice.Last() {
		return x, nil
	}
	return m.project(x, len(b.Wanted))
}

func (m *Model) layer(x kernels.Tensor, l *layer) error {
	qkv, attended := m.qkv.Top(x.Rows), m.attended.Top(x.Rows)
	heads := l.qkv
	heads.Attention = &l.attention
	m.ops.Linear(qkv, x, heads)
	m.ops.Attention(attended, qkv, l.attention)
	if m.spec.ParallelSums {
		// Both parts read x, so neither is added before both are computed.
		inner := m.inner.Top(x.Rows)
		m.ops.Linear(inner, x, l.up)
		return m.addBoth(x, attended, inner, l)
	}
	attention := m.reduce
	if m.spec.WholeAttention() {
		attention = nil
	}
	if err := m.add(x, attended, l.out, l.outNorm, attention); err != nil {
		return err
	}
	if l.experts != nil {
		y := m.projected.Top(x.Rows)
		m.ops.Experts(y, x, *l.experts)
		return m.addSum(x, y, l.ffnNorm, m.reduce)
	}
	inner := m.inner.Top(x.Rows)
	m.ops.Linear(inner, x, l.up)
	return m.add(x, inner, l.down, l.ffnNorm, m.reduce)
}

// add computes x += norm(Σ over ranks of part · Wᵀ + bias); reduce is nil where
// this rank has the whole sum.
func (m *Model) add(x, part kernels.Tensor, product kernels.Linear, norm *kernels.Norm, reduce kernels.Reducer) error {
	if reduce == nil && norm == nil {
		product.Accumulate = true
		m.ops.Linear(x, part, product)
		return nil
	}
	y := m.projected.Top(x.Rows)
	m.ops.Linear(y, part, product)
	return m.addSum(x, y, norm, reduce)
}

// addBoth adds attention's and the feed-forward layer's parts at once.
func (m *Model) addBoth(x, attended, inner kernels.Tensor, l *layer) error {
	y := x
	out, down := l.out, l.down
	out.Accumulate, down.Accumulate = m.reduce == nil, true
	if m.reduce != nil {
		y = m.projected.Top(x.Rows)
	}
	m.ops.Linear(y, attended, out)
	m.ops.Linear(y, inner, down)
	if m.reduce == nil {
		return nil
	}
	return m.addSum(x, y, nil, m.reduce)
}

// addSum computes x += norm(Σ over ranks of y).
func (m *Model) addSum(x, y kernels.Tensor, norm *kernels.Norm, reduce kernels.Reducer) error {
	if reduce != nil {
		if err := reduce.AllReduce(m.ops, y); err != nil {
			return err
		}
	}
	m.ops.Add(x, y, norm)
	return nil
}

// project gives the logits of the wanted rows.
func (m *Model) project(x kernels.Tensor, wanted int) (kernels.Tensor, error) {
	last, logits := m.wanted.Top(wanted), m.logits
	if m.slice.Rank == 0 {
		logits = logits.Top(wanted)
	}
	if wanted == 0 {
		return logits, nil
	}
	m.ops.Gather(last, x)
	if m.reduce == nil {
		m.ops.Linear(logits, last, m.output)
		return logits, nil
	}
	part := m.part.Top(wanted)
	m.ops.Linear(part, last, m.output)
	return logits, m.reduce.Gather(m.ops, logits, part)
}
