// Package kernels declares what a device does for a model: the types of stored
// numbers, handles to what lies in a device's memory, and Ops, the coarse
// operations that runtime/model calls. It computes nothing itself.
//
// ref, cpu and cuda implement Ops. ref is the definition: the others are tested
// against it on odd shapes.
//
// The law of bits (shared by all implementations): what an operation computes
// for a row depends on that row's inputs, the layout and the device kind, never
// on how many rows stand beside it nor on how a sequence was cut into steps.
package kernels

import (
	"errors"
	"fmt"
)

// BlockTokens is the number of tokens whose keys and values one block holds.
const BlockTokens = 16

// A Matrix is a weight as its file stores it: Rows × Cols values of Type in
// host memory that is mapped and never written. Row r begins at byte r·Stride
// of Data.
type Matrix struct {
	Name       string
	Type       DType
	Rows, Cols int
	Stride     int // bytes from one row to the next
	Data       []byte
}

// SliceRows gives rows [lo, hi) without copying.
func (m Matrix) SliceRows(lo, hi int) (Matrix, error) {
	if lo < 0 || hi < lo || hi > m.Rows {
		return Matrix{}, fmt.Errorf("kernels: %s: rows [%d, %d) of %d", m.Name, lo, hi, m.Rows)
	}
	m.Data, m.Rows = m.Data[lo*m.Stride:], hi-lo
	return m, nil
}

// SliceCols gives columns [lo, hi) without copying. Both must fall on the
// type's block boundary.
func (m Matrix) SliceCols(lo, hi int) (Matrix, error) {
	block := m.Type.BlockSize()
	if lo < 0 || hi < lo || hi > m.Cols || lo%block != 0 || (hi%block != 0 && hi != m.Cols) {
		return Matrix{}, fmt.Errorf("kernels: %s: columns [%d, %d) of %d in blocks of %d", m.Name, lo, hi, m.Cols, block)
	}
	m.Data, m.Cols = m.Data[lo/block*m.Type.BlockBytes():], hi-lo
	return m, nil
}

// A Tensor is activations in a device's memory: Rows × Cols values, row-major.
// The number format is the device's choice (float32 on ref and cpu). Only the
// Ops that made it reads Mem.
type Tensor struct {
	Rows, Cols int
	Mem        any
}

// Top gives a view of the first rows.
func (t Tensor) Top(rows int) Tensor {
	t.Rows = rows
	return t
}

// Handles to what a model loads once. Each is used only with the Ops that made
// it and lives until that is closed.
type (
	// A Weight is a Rows × Cols matrix in the layout that the device's products want.
	Weight interface{ Shape() (rows, cols int) }
	// A Vector is a bias or a norm's weight.
	Vector interface{ Len() int }
	// A RopeTable holds the angles of rotary position embeddings.
	RopeTable interface{ Dim() int }
	// A Cache is the paged keys and values of the layers of one attention group.
	Cache interface{ Spec() CacheSpec }
)

// CacheSpec sizes a Cache. Bytes: 2 · Layers · Blocks · BlockTokens · KVHeads · HeadDim · Type.
type CacheSpec struct {
	Layers, Blocks   int
	KVHeads, HeadDim int // of this rank
	Type             DType
}

// Bytes is the device memory that the cache takes.
func (s CacheSpec) Bytes() int64 {
	return 2 * int64(s.Layers) * int64(s.Blocks) * BlockTokens * int64(s.KVHeads) * int64(s.Type.Bytes(s.HeadDim))
}

// A Batch is one step's rows as a device sees them. It is not modified after Begin.
type Batch struct {
	// Tokens holds one token a row; a negative value -1-s means «the token that
	// was sampled last for seat s», which the host may not know yet.
	Tokens    []int32
	Positions []int32 // absolute position of each row in its sequence
	Spans     []Span  // in row order; they cover all rows
	Wanted    []int32 // rows whose logits are wanted, ascending
}

// A Span is the consecutive rows of one sequence within a batch.
type Span struct {
	Row, Count int // rows [Row, Row+Count) …
	Start      int // … are positions [Start, Start+Count)
	// Blocks[g][i] is the block of group g that holds positions
	// [i·BlockTokens, (i+1)·BlockTokens); -1 where a window has passed it.
	Blocks [][]int32
}

// Ops is a device. One goroutine at a time calls it. Operations run in the order
// of the calls, perhaps after the call returns; a device error sticks and comes
// out of the step's Pending. Shapes are checked by the caller (runtime/model)
// when a model is loaded; a call with shapes that do not fit panics.
type Ops interface {
	// Tensor gives rows × cols of scratch memory that lives until Close.
	Tensor(rows, cols int) (Tensor, error)
	// Weight stacks the rows of parts (equal columns) into one matrix.
	Weight(parts ...Matrix) (Weight, error)
	// Pair stacks the two factors of a gate, equally many rows of each: weights of Linear
	// with Gated and Experts.GateUp, and of nothing else.
	Pair(gate, up Matrix) (Weight, error)
	Vector(values []float32) (Vector, error)
	// Rope: pair i turns by position · inverse[i]; cos and sin are times scale.
	Rope(inverse []float32, scale float32, positions int) (RopeTable, error)
	Cache(spec CacheSpec) (Cache, error)

	// Begin starts a step; the operations up to End belong to it.
	Begin(b *Batch) error
	Embed(out Tensor, a Embed)
	Norm(out, x Tensor, n Norm)
	Linear(out, x Tensor, a Linear)
	Attention(out, qkv Tensor, a Attention)
	Experts(out, x Tensor, a Experts)
	// Add computes x += norm(y); n may be nil.
	Add(x, y Tensor, n *Norm)
	// Gather copies the wanted rows of x to the top of out.
	Gather(out, x Tensor)
	// Sample draws or scores tokens from logits whose row i is wanted row i.
	Sample(logits Tensor, rows []SampleRow)
	// End closes the step. The batch and the sample rows stay untouched until Wait
	// returns; the block tables in Spans only until End does.
	End() Pending

	// Seat prepares a sampler seat for a sequence: its prompt and output so far.
	Seat(seat int32, prompt, output []int32)
	// Feed sets the token last sampled for a seat (by another rank).
	Feed(seat, token int32)

	// Put and Get move activations between host bytes and a tensor, in order with
	// the other operations; Get waits for them.
	Put(t Tensor, src []byte) error
	Get(dst []byte, t Tensor) error
	// RowBytes is the number of bytes of one row in Put and Get.
	RowBytes(t Tensor) int

	Close() error
}

// A Pending is a step that has been handed to the device.
type Pending interface {
	// Wait gives what Sample drew, in the order of its rows, or the device's error.
	Wait() ([]Sampled, error)
}

// A Reducer combines what the tensor ranks of a stage each hold a part of.
// Sums run in rank order whatever the algorithm.
type Reducer interface {
	Rank() int
	Size() int
	// AllReduce adds t over all ranks, in place.
	AllReduce(ops Ops, t Tensor) error
	// Gather puts the columns of every rank's part side by side into out, on rank 0.
	Gather(ops Ops, out, part Tensor) error
}

// A Follower is the Reducer of a rank whose device learns from rank 0's what that draws.
type Follower interface {
	// Follow has the tokens that rank 0 draws for rows stand at their seats on every rank.
	// All ranks call it last in a step, rank 0 after Sample.
	Follow(ops Ops, rows []SampleRow) error
}

// A Linker is an Ops whose device may address the memory of others.
type Linker interface {
	// Link joins the tensor ranks of a stage, given in rank order, once their models
	// are loaded: their reducers then need no host. It gives nil where the devices do
	// not reach each other.
	Link(ranks []Ops) (Link, error)
}

// A Link is joined devices. It outlives epochs; one at a time is open.
type Link interface {
	// Open begins an epoch. All the ranks are idle.
	Open()
	// Reducer is a rank's, for all epochs.
	Reducer(rank int) Reducer
	// Close ends the epoch, at any time: ranks that wait for others, and steps that
	// were not launched on all of them, end with ErrUnlinked.
	Close()
}

// ErrUnlinked: the epoch ended before all ranks had come to a step. It is never why
// the epoch ended.
var ErrUnlinked = errors.New("kernels: the epoch has ended")

// A Stager is an Ops whose steps pass rows between stages by themselves: who writes
// a step down waits for none.
type Stager interface {
	// Bring fills t with what rows gives, before all else of the step. The device's
	// thread calls it; an error is of this step alone.
	Bring(t Tensor, rows func() ([]byte, error))
	// Take gives t, as the step leaves it, to send. Whoever waits for the device calls
	// it, while further steps run; the step has ended when it has returned.
	Take(t Tensor, send func(rows []byte) error)
	// Hop joins the device to that of the next stage, for steps of up to rows × cols
	// values, depth of them in flight; nil where they don't reach each other.
	Hop(next Ops, rows, cols, depth int) (Hop, error)
}

// A Hop takes rows from a stage's device to the next one's without the host. It
// outlives epochs; one at a time is open.
type Hop interface {
	// Open begins an epoch. Both are idle.
	Open()
	// Send gives t, as the step leaves it, to the next stage; Receive fills t with that
	// before all else of the step. Steps with rows call them in the same order.
	Send(t Tensor)
	Receive(t Tensor)
	// Close ends the epoch, at any time: a step that waits for rows ends with ErrUnlinked.
	Close()
}
