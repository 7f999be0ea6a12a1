// Package ref computes every operation of kernels.Ops in plain Go and float32,
// each sum in the one obvious order. It is the definition that the other devices
// are tested against; it is never fast, and it starts no goroutine.
//
// Sampling is written here once: Sample and Counts serve every device that keeps
// its logits in host memory. So do Dequantize and the small pure functions.
//
// Every operation has ended when its call returns, so a Pending has nothing to
// wait for. An Ops belongs to one goroutine at a time.
package ref

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"manta/kernels"
)

// ErrShape is wrapped by the errors of sizes that do not fit.
var ErrShape = errors.New("ref: shapes do not fit")

// Ops is the plain Go device.
type Ops struct {
	batch   *kernels.Batch
	sampled []kernels.Sampled
	seats   map[int32]*seat
	sampler Sampler
}

// A seat is what the sampler keeps of one sequence.
type seat struct {
	counts *Counts
	last   int32
}

var _ kernels.Ops = (*Ops)(nil)

// New gives a device of its own.
func New() *Ops { return &Ops{seats: map[int32]*seat{}} }

// values gives the numbers of a tensor's rows.
func values(t kernels.Tensor) []float32 { return t.Mem.([]float32)[:t.Rows*t.Cols] }

// row gives the numbers of one row of a tensor.
func row(t kernels.Tensor, r int) []float32 {
	return t.Mem.([]float32)[r*t.Cols : (r+1)*t.Cols]
}

// check panics where a caller broke the contract on shapes.
func check(ok bool, operation string, tensors ...kernels.Tensor) {
	if ok {
		return
	}
	shapes := ""
	for _, t := range tensors {
		shapes += fmt.Sprintf(" %d×%d", t.Rows, t.Cols)
	}
	panic("ref: " + operation + ": shapes do not fit:" + shapes)
}

// Tensor gives zeroed memory.
func (o *Ops) Tensor(rows, cols int) (kernels.Tensor, error) {
	if rows < 0 || cols < 0 {
		return kernels.Tensor{}, fmt.Errorf("%w: tensor of %d×%d", ErrShape, rows, cols)
	}
	return kernels.Tensor{Rows: rows, Cols: cols, Mem: make([]float32, rows*cols)}, nil
}

// Begin checks that the batch is one: spans in row order that cover all rows,
// with a block for every position from the first row on.
func (o *Ops) Begin(b *kernels.Batch) error {
	if len(b.Positions) != len(b.Tokens) {
		return fmt.Errorf("%w: %d positions for %d tokens", ErrShape, len(b.Positions), len(b.Tokens))
	}
	next := 0
	for i, s := range b.Spans {
		if s.Row != next || s.Count < 1 || s.Row+s.Count > len(b.Tokens) {
			return fmt.Errorf("%w: span %d holds rows [%d, %d), want a start at %d and an end by %d", ErrShape, i, s.Row, s.Row+s.Count, next, len(b.Tokens))
		}
		for r := range s.Count {
			if int(b.Positions[s.Row+r]) != s.Start+r {
				return fmt.Errorf("%w: span %d: row %d is position %d, want %d", ErrShape, i, s.Row+r, b.Positions[s.Row+r], s.Start+r)
			}
		}
		for g, blocks := range s.Blocks {
			if len(blocks)*kernels.BlockTokens < s.Start+s.Count {
				return fmt.Errorf("%w: span %d, group %d: %d blocks for %d positions", ErrShape, i, g, len(blocks), s.Start+s.Count)
			}
		}
		next = s.Row + s.Count
	}
	if next != len(b.Tokens) {
		return fmt.Errorf("%w: spans cover %d of %d rows", ErrShape, next, len(b.Tokens))
	}
	for i, r := range b.Wanted {
		if r < 0 || int(r) >= len(b.Tokens) || i > 0 && r <= b.Wanted[i-1] {
			return fmt.Errorf("%w: wanted row %d of %d rows", ErrShape, r, len(b.Tokens))
		}
	}
	o.batch, o.sampled = b, nil
	return nil
}

// pending is a step that has ended already.
type pending struct{ sampled []kernels.Sampled }

func (p pending) Wait() ([]kernels.Sampled, error) { return p.sampled, nil }

// End closes the step.
func (o *Ops) End() kernels.Pending {
	p := pending{o.sampled}
	o.batch, o.sampled = nil, nil
	return p
}

// Seat prepares a sampler seat.
func (o *Ops) Seat(s int32, prompt, output []int32) {
	last := int32(0)
	if len(prompt) > 0 {
		last = prompt[len(prompt)-1]
	}
	if len(output) > 0 {
		last = output[len(output)-1]
	}
	o.seats[s] = &seat{counts: NewCounts(prompt, output), last: last}
}

// Feed sets the token that another rank sampled.
func (o *Ops) Feed(s, token int32) {
	if o.seats[s] == nil {
		o.seats[s] = &seat{counts: NewCounts(nil, nil)}
	}
	o.seats[s].last = token
}

// RowBytes counts four bytes a value.
func (o *Ops) RowBytes(t kernels.Tensor) int { return 4 * t.Cols }

// Put copies little-endian float32 values in.
func (o *Ops) Put(t kernels.Tensor, src []byte) error {
	x := values(t)
	if len(src) != 4*len(x) {
		return fmt.Errorf("%w: put %d bytes into %d×%d", ErrShape, len(src), t.Rows, t.Cols)
	}
	for i := range x {
		x[i] = math.Float32frombits(binary.LittleEndian.Uint32(src[4*i:]))
	}
	return nil
}

// Get copies little-endian float32 values out.
func (o *Ops) Get(dst []byte, t kernels.Tensor) error {
	x := values(t)
	if len(dst) != 4*len(x) {
		return fmt.Errorf("%w: get %d bytes from %d×%d", ErrShape, len(dst), t.Rows, t.Cols)
	}
	for i, v := range x {
		binary.LittleEndian.PutUint32(dst[4*i:], math.Float32bits(v))
	}
	return nil
}

// Close has nothing to free.
func (o *Ops) Close() error { return nil }
