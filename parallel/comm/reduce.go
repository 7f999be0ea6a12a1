package comm

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"manta/kernels"
)

// Reducer gives a tensor rank its way to the others of its stage.
func (m *Mesh) Reducer(stage, rank int) kernels.Reducer {
	return &reducer{mesh: m, at: Place{stage, rank}, parts: make([][]byte, len(m.nodes[stage]))}
}

// reducer exchanges parts all to all: each rank adds for itself. Rank 0 joins.
type reducer struct {
	mesh  *Mesh
	at    Place
	round uint64
	parts [][]byte // of the current round, by rank
	out   []byte
}

var _ kernels.Reducer = (*reducer)(nil)

func (r *reducer) Rank() int { return r.at.Rank }
func (r *reducer) Size() int { return len(r.parts) }

// exchange gives this rank's rows of t to the others and waits for theirs; with only,
// rank 0 gets them and gives none.
func (r *reducer) exchange(ops kernels.Ops, t kernels.Tensor, only bool) error {
	r.round++
	own := slices.Grow(r.parts[r.at.Rank][:0], t.Rows*ops.RowBytes(t))[:t.Rows*ops.RowBytes(t)]
	if err := ops.Get(own, t); err != nil {
		return err
	}
	r.parts[r.at.Rank] = own
	for rank := range r.parts {
		if rank == r.at.Rank || only && rank != 0 {
			continue
		}
		to := Place{r.at.Stage, rank}
		if err := r.mesh.put(message{Kind: part, From: r.at, To: to, Number: r.round, Data: own}); err != nil {
			return err
		}
	}
	for rank := range r.parts {
		if rank == r.at.Rank || only && r.at.Rank != 0 {
			continue
		}
		msg, err := r.mesh.take(boxKey{part, Place{r.at.Stage, rank}, r.at}, r.round)
		if err != nil {
			return err
		}
		r.parts[rank] = msg.Data
	}
	return nil
}

// AllReduce adds t over all ranks, in place.
func (r *reducer) AllReduce(ops kernels.Ops, t kernels.Tensor) error {
	if err := r.exchange(ops, t, false); err != nil {
		return err
	}
	r.out = append(r.out[:0], r.parts[0]...)
	for _, p := range r.parts[1:] {
		if err := Add(r.out, p, ops.RowBytes(t)/max(1, t.Cols)); err != nil {
			return err
		}
	}
	return ops.Put(t, r.out)
}

// Gather puts the columns of every rank's part side by side into out, on rank 0.
func (r *reducer) Gather(ops kernels.Ops, out, t kernels.Tensor) error {
	if err := r.exchange(ops, t, true); err != nil || r.at.Rank != 0 {
		return err
	}
	r.out = r.out[:0]
	for row := range t.Rows {
		for _, p := range r.parts {
			width := len(p) / t.Rows
			r.out = append(r.out, p[row*width:(row+1)*width]...)
		}
	}
	if want := t.Rows * ops.RowBytes(out); len(r.out) != want {
		return fmt.Errorf("%w: gathered %d bytes for %d", ErrProtocol, len(r.out), want)
	}
	return ops.Put(out.Top(t.Rows), r.out)
}

// Add computes sum += part over elements of 4 bytes (float32) or 2 (bfloat16,
// added in float32 and rounded to nearest even).
func Add(sum, part []byte, elementBytes int) error {
	if len(sum) != len(part) {
		return fmt.Errorf("%w: a part of %d bytes for a sum of %d", ErrProtocol, len(part), len(sum))
	}
	little := binary.LittleEndian
	switch elementBytes {
	case 4:
		for i := 0; i+4 <= len(sum); i += 4 {
			v := math.Float32frombits(little.Uint32(sum[i:])) + math.Float32frombits(little.Uint32(part[i:]))
			little.PutUint32(sum[i:], math.Float32bits(v))
		}
	case 2:
		for i := 0; i+2 <= len(sum); i += 2 {
			v := bfloat(little.Uint16(sum[i:])) + bfloat(little.Uint16(part[i:]))
			little.PutUint16(sum[i:], round(v))
		}
	default:
		return fmt.Errorf("comm: elements of %d bytes", elementBytes)
	}
	return nil
}

func bfloat(b uint16) float32 { return math.Float32frombits(uint32(b) << 16) }

func round(v float32) uint16 {
	bits := math.Float32bits(v)
	if v != v {
		return uint16(bits>>16) | 0x40
	}
	return uint16((bits + 0x7fff + bits>>16&1) >> 16)
}
