// Package cpu computes the operations of kernels.Ops on processor cores: with
// AVX-512 or AVX2 where the machine has them, in plain Go elsewhere. Activations
// are float32. Weights are repacked when loaded, into huge pages outside the Go heap.
//
// An operation has ended when its call returns: the caller's goroutine and a pool
// of threads share its units of work. Results do not depend on the number of
// threads, nor on how many rows stand beside a row (the law of bits): each output
// has one order of summation.
//
// An Ops belongs to one goroutine at a time, which must Close it. It reads the
// Data of loaded matrices until then (single rows of embedding tables).
package cpu

import (
	"fmt"
	"math"
	"runtime"
	"unsafe"

	"manta/kernels"
)

// A Precision is how activations enter products. Weights that are floats meet
// float32, but for bfloat16 under Int8.
type Precision uint8

const (
	// Float32 activations: the definition's arithmetic.
	Float32 Precision = iota
	// Int16 activations: two signed bytes a value with a scale for each 32 values,
	// products exact within a block. Falls back to Float32 in plain Go.
	Int16
	// Int8 activations: one signed byte a value with a scale for each 32 values and a
	// power of two, by which they are finer, for each eight; two bytes in the
	// projections of attention, which is half of what int8 costs in accuracy, and where
	// a product has as many outputs as a vocabulary. Weights in bfloat16 meet bfloat16
	// where the processor multiplies it.
	Int8
)

// Options choose how a device computes.
type Options struct {
	// Threads is the number of cores to use; 0 means all.
	Threads   int
	Precision Precision
}

// Ops is the processor as a device.
type Ops struct {
	kernels *kernelSet
	pool    *pool
	memory  memory
	workers []worker
	integer form // of activations that meet quantized weights
	float   form // of those that meet bfloat16

	batch   *kernels.Batch
	sampled []kernels.Sampled
	seats   map[int32]*seat
	failed  error // of this step

	norm      kernels.Norm
	packing   packTask
	linear    linearTask
	prepare   prepareTask
	rows      rowsTask
	attention attentionTask
	experts   expertsTask
	sampling  sampleTask
	scratch   scratch
}

var _ kernels.Ops = (*Ops)(nil)

// New starts the threads of a device.
func New(options Options) (kernels.Ops, error) {
	return newOps(options, fastest())
}

func newOps(options Options, set *kernelSet) (*Ops, error) {
	threads := options.Threads
	if threads <= 0 {
		threads = runtime.NumCPU()
	}
	o := &Ops{kernels: set, seats: map[int32]*seat{}}
	if set.integers != nil {
		o.integer = [...]form{Float32: floatForm, Int16: wordForm, Int8: byteForm}[options.Precision]
	}
	if set.dots != nil && options.Precision == Int8 {
		o.float = brainForm
	}
	o.workers = make([]worker, threads)
	for i := range o.workers {
		if err := o.workers[i].prepare(&o.memory); err != nil {
			_ = o.memory.release()
			return nil, err
		}
	}
	o.pool = newPool(threads, set.spin)
	return o, nil
}

// Close ends the threads and frees all that was loaded.
func (o *Ops) Close() error {
	o.pool.close()
	return o.memory.release()
}

// A buffer is the memory of a tensor: rows of stride values, of which those past
// the columns are zero.
type buffer struct {
	data   []float32
	stride int
}

// strideOf pads rows to whole blocks of 32 columns, and away from multiples of
// 2 KB, at which the lines of several rows would fall into one set of the cache.
func strideOf(cols int) int {
	stride := (cols + 31) / 32 * 32
	if stride%512 == 0 && stride > 0 {
		stride += 32
	}
	return stride
}

func (b *buffer) row(r, cols int) []float32 { return b.data[r*b.stride:][:cols] }

func bufferOf(t kernels.Tensor) *buffer { return t.Mem.(*buffer) }

// row gives one row of a tensor.
func row(t kernels.Tensor, r int) []float32 { return bufferOf(t).row(r, t.Cols) }

// check panics where a caller broke the contract on shapes.
func check(ok bool, operation string, tensors ...kernels.Tensor) {
	if ok {
		return
	}
	shapes := ""
	for _, t := range tensors {
		shapes += fmt.Sprintf(" %d×%d", t.Rows, t.Cols)
	}
	panic("cpu: " + operation + ": shapes do not fit:" + shapes)
}

// Tensor gives zeroed memory.
func (o *Ops) Tensor(rows, cols int) (kernels.Tensor, error) {
	if rows < 0 || cols < 0 {
		return kernels.Tensor{}, fmt.Errorf("%w: tensor of %d×%d", ErrShape, rows, cols)
	}
	stride := strideOf(cols)
	data, err := o.memory.floats(rows * stride)
	if err != nil {
		return kernels.Tensor{}, fmt.Errorf("tensor of %d×%d: %w", rows, cols, err)
	}
	return kernels.Tensor{Rows: rows, Cols: cols, Mem: &buffer{data, stride}}, nil
}

type vector []float32

func (v vector) Len() int { return len(v) }

// Vector copies the values.
func (o *Ops) Vector(values []float32) (kernels.Vector, error) {
	v, err := o.memory.floats(len(values))
	copy(v, values)
	return vector(v), err
}

func floats(v kernels.Vector) []float32 {
	if v == nil {
		return nil
	}
	return v.(vector)
}

// pending is a step that has ended already.
type pending struct {
	sampled []kernels.Sampled
	err     error
}

func (p pending) Wait() ([]kernels.Sampled, error) { return p.sampled, p.err }

// Begin starts a step.
func (o *Ops) Begin(b *kernels.Batch) error {
	if err := checkBatch(b); err != nil {
		return err
	}
	o.batch, o.sampled, o.failed = b, nil, nil
	return nil
}

// End closes the step.
func (o *Ops) End() kernels.Pending {
	o.pool.rest()
	p := pending{o.sampled, o.failed}
	o.batch, o.sampled = nil, nil
	return p
}

// fail makes the step's Wait report an error.
func (o *Ops) fail(err error) {
	if o.failed == nil {
		o.failed = err
	}
}

// RowBytes counts four bytes a value.
func (o *Ops) RowBytes(t kernels.Tensor) int { return 4 * t.Cols }

// Put copies little-endian float32 values in, as memory holds them.
func (o *Ops) Put(t kernels.Tensor, src []byte) error {
	if len(src) != 4*t.Rows*t.Cols {
		return fmt.Errorf("%w: put %d bytes into %d×%d", ErrShape, len(src), t.Rows, t.Cols)
	}
	for r := range t.Rows {
		copy(bytesOf(row(t, r)), src[4*r*t.Cols:])
	}
	return nil
}

// Get copies little-endian float32 values out.
func (o *Ops) Get(dst []byte, t kernels.Tensor) error {
	if len(dst) != 4*t.Rows*t.Cols {
		return fmt.Errorf("%w: get %d bytes from %d×%d", ErrShape, len(dst), t.Rows, t.Cols)
	}
	for r := range t.Rows {
		copy(dst[4*r*t.Cols:], bytesOf(row(t, r)))
	}
	return nil
}

func floatOf(bits uint32) float32 { return math.Float32frombits(bits) }

// bytesOf gives the memory of numbers.
func bytesOf(x []float32) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(x))), 4*len(x))
}
