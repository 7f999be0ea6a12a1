package cpu

import (
	"fmt"

	"manta/kernels"
)

// A seat is what the sampler keeps of one sequence.
type seat struct {
	counts *counts
	last   int32
}

// token gives the token of a row: the batch's, or what was sampled last for a seat.
func (o *Ops) token(r int) int32 {
	t := o.batch.Tokens[r]
	if t >= 0 {
		return t
	}
	s := o.seats[-1-t]
	if s == nil {
		panic(fmt.Sprintf("cpu: embed: row %d takes its token from seat %d, which is empty", r, -1-t))
	}
	return s.last
}

// Embed computes out = Scale · Table[token] (+ Positions[position]) for the batch's rows.
func (o *Ops) Embed(out kernels.Tensor, a kernels.Embed) {
	table := a.Table.(*weight)
	check(out.Rows == len(o.batch.Tokens) && out.Cols == table.cols, "embed", out)
	position := o.grow(&o.scratch.wide, out.Cols)
	for r := range out.Rows {
		x := row(out, r)
		table.row(int(o.token(r)), x)
		if a.Scale != 1 {
			for i := range x {
				x[i] *= a.Scale
			}
		}
		if a.Positions == nil {
			continue
		}
		a.Positions.(*weight).row(int(o.batch.Positions[r]), position)
		o.kernels.addTo(&x[0], &position[0], uintptr(len(x)))
	}
}

// Gather copies the wanted rows of x to the top of out.
func (o *Ops) Gather(out, x kernels.Tensor) {
	check(out.Rows >= len(o.batch.Wanted) && out.Cols == x.Cols, "gather", out, x)
	for i, r := range o.batch.Wanted {
		copy(row(out, i), row(x, int(r)))
	}
}
