package model

import (
	"encoding/binary"
	"errors"
	"math"
	"sync"

	"manta/kernels"
)

// sums joins the tensor ranks of a stage, each on a goroutine of its own, over
// float32 activations; sums run in rank order.
type sums struct {
	mu      sync.Mutex // guards what follows
	turn    *sync.Cond
	parts   [][]byte
	arrived int
	round   int
	closed  bool
}

func newSums(n int) *sums {
	s := &sums{parts: make([][]byte, n)}
	s.turn = sync.NewCond(&s.mu)
	return s
}

// Close frees the ranks that wait for one that failed.
func (s *sums) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.turn.Broadcast()
}

// meet brings a rank's part and waits until every rank has come; then look sees
// all parts, and nobody goes on before each has looked.
func (s *sums) meet(rank int, part []byte, look func(parts [][]byte)) error {
	s.mu.Lock()
	s.parts[rank] = part
	err := s.wait()
	s.mu.Unlock()
	if err != nil {
		return err
	}
	look(s.parts)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.wait()
}

func (s *sums) wait() error {
	round := s.round
	if s.arrived++; s.arrived == len(s.parts) {
		s.arrived, s.round = 0, s.round+1
		s.turn.Broadcast()
	}
	for s.round == round && !s.closed {
		s.turn.Wait()
	}
	if s.closed {
		return errors.New("another rank failed")
	}
	return nil
}

// summing is one rank's side.
type summing struct {
	sums *sums
	rank int
}

var _ kernels.Reducer = summing{}

func (r summing) Rank() int { return r.rank }
func (r summing) Size() int { return len(r.sums.parts) }

func (r summing) AllReduce(ops kernels.Ops, t kernels.Tensor) error {
	part := make([]byte, t.Rows*ops.RowBytes(t))
	total := make([]byte, len(part))
	if err := ops.Get(part, t); err != nil {
		return err
	}
	if err := r.sums.meet(r.rank, part, func(parts [][]byte) {
		for at := 0; at < len(total); at += 4 {
			var sum float32
			for _, p := range parts {
				sum += math.Float32frombits(binary.LittleEndian.Uint32(p[at:]))
			}
			binary.LittleEndian.PutUint32(total[at:], math.Float32bits(sum))
		}
	}); err != nil {
		return err
	}
	return ops.Put(t, total)
}

func (r summing) Gather(ops kernels.Ops, out, part kernels.Tensor) error {
	mine := make([]byte, part.Rows*ops.RowBytes(part))
	if err := ops.Get(mine, part); err != nil {
		return err
	}
	var all []byte
	if err := r.sums.meet(r.rank, mine, func(parts [][]byte) {
		for row := range part.Rows {
			for _, p := range parts {
				size := len(p) / part.Rows
				all = append(all, p[row*size:(row+1)*size]...)
			}
		}
	}); err != nil || r.rank > 0 {
		return err
	}
	return ops.Put(out, all)
}
