// Package comm combines what the ranks of a replica each hold a part of: sums and
// gathers across tensor ranks, hidden rows and sampled tokens between stages. It
// implements the Reducer that kernels declares.
//
// Whatever the way (shared memory here), sums run in rank order, so a result's
// bits depend on the layout alone.
package comm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"sync"

	"manta/kernels"
)

// ErrClosed means that the epoch has ended: a rank is gone, or all are stopping.
var ErrClosed = errors.New("comm: closed")

// Local joins the tensor ranks of a stage that live in one process, each on a
// goroutine of its own.
type Local struct {
	parts [][]byte // parts[r] is what rank r brought; written by r before the barrier

	mu      sync.Mutex // guards what follows
	turn    *sync.Cond
	arrived int
	round   int
	closed  bool
}

// NewLocal joins n ranks.
func NewLocal(n int) *Local {
	l := &Local{parts: make([][]byte, n)}
	l.turn = sync.NewCond(&l.mu)
	return l
}

// Close ends every wait with ErrClosed.
func (l *Local) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.turn.Broadcast()
}

// Rank gives rank i's side.
func (l *Local) Rank(i int) kernels.Reducer { return &localRank{group: l, rank: i} }

// barrier waits until every rank has come.
func (l *Local) barrier() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	round := l.round
	if l.arrived++; l.arrived == len(l.parts) {
		l.arrived = 0
		l.round++
		l.turn.Broadcast()
	}
	for round == l.round && !l.closed {
		l.turn.Wait()
	}
	if l.closed {
		return ErrClosed
	}
	return nil
}

type localRank struct {
	group *Local
	rank  int
	out   []byte
}

var _ kernels.Reducer = (*localRank)(nil)

func (r *localRank) Rank() int { return r.rank }
func (r *localRank) Size() int { return len(r.group.parts) }

// bring publishes this rank's rows of t and waits for the others'.
func (r *localRank) bring(ops kernels.Ops, t kernels.Tensor) error {
	size := t.Rows * ops.RowBytes(t)
	part := r.group.parts[r.rank]
	if cap(part) < size {
		part = make([]byte, size)
	}
	part = part[:size]
	if err := ops.Get(part, t); err != nil {
		return err
	}
	r.group.parts[r.rank] = part
	return r.group.barrier()
}

// AllReduce adds t over all ranks, in place.
func (r *localRank) AllReduce(ops kernels.Ops, t kernels.Tensor) error {
	if err := r.bring(ops, t); err != nil {
		return err
	}
	r.out = append(r.out[:0], r.group.parts[0]...)
	for _, part := range r.group.parts[1:] {
		if err := Add(r.out, part, ops.RowBytes(t)/max(1, t.Cols)); err != nil {
			return err
		}
	}
	if err := ops.Put(t, r.out); err != nil {
		return err
	}
	return r.group.barrier() // nobody overwrites a part that another still reads
}

// AllGather puts the columns of every rank's part side by side into out.
func (r *localRank) AllGather(ops kernels.Ops, out, part kernels.Tensor) error {
	if err := r.bring(ops, part); err != nil {
		return err
	}
	r.out = r.out[:0]
	for row := range part.Rows {
		for _, p := range r.group.parts {
			width := len(p) / part.Rows
			r.out = append(r.out, p[row*width:(row+1)*width]...)
		}
	}
	if want := part.Rows * ops.RowBytes(out); len(r.out) != want {
		return fmt.Errorf("comm: gathered %d bytes for %d", len(r.out), want)
	}
	if err := ops.Put(out.Top(part.Rows), r.out); err != nil {
		return err
	}
	return r.group.barrier()
}

// Add computes sum += part over elements of 4 bytes (float32) or 2 (bfloat16,
// added in float32 and rounded to nearest even).
func Add(sum, part []byte, elementBytes int) error {
	if len(sum) != len(part) {
		return fmt.Errorf("comm: a part of %d bytes for a sum of %d", len(part), len(sum))
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
