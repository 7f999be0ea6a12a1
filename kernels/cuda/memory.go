//go:build cuda

package cuda

import (
	"fmt"
	"runtime"
	"sync"
	"unsafe"

	"gorgonia.org/cu"

	"manta/kernels"
	"manta/kernels/ref"
)

// A buffer is a tensor's or a scratch's device memory. It has room for float32;
// narrow tells that what lies in it now is of the compute type.
type buffer struct {
	at     pointer
	bytes  int
	narrow bool
	turned bool // heads that were made into it lie turned and stored where Attention would have put them
}

func bufferOf(t kernels.Tensor) *buffer { return t.Mem.(*buffer) }

// allocate gives zeroed device memory that lives until Close.
func (o *Ops) allocate(bytes int) (p pointer, err error) {
	err = o.do(func() error {
		d, err := cu.MemAlloc(int64(max(bytes, 256)))
		if err != nil {
			free, total, _ := cu.MemInfo()
			return fmt.Errorf("%w: %d bytes of device memory (%d of %d are free): %v", ErrDevice, bytes, free, total, err)
		}
		o.allocated = append(o.allocated, d)
		p = pointer(d)
		return o.zero(p, bytes)
	})
	return p, err
}

// zero runs on the worker's thread.
func (o *Ops) zero(p pointer, bytes int) error {
	if err := cu.MemsetD8Async(cu.DevicePtr(p), 0, int64(max(bytes, 256)), o.stream); err != nil {
		return fmt.Errorf("%w: zero: %v", ErrDevice, err)
	}
	return nil
}

// upload allocates memory for b and copies it there.
func (o *Ops) upload(b []byte) (pointer, error) {
	p, err := o.allocate(len(b))
	if err != nil || len(b) == 0 {
		return p, err
	}
	return p, o.do(func() error {
		if err := cu.MemcpyHtoDAsync(cu.DevicePtr(p), unsafe.Pointer(&b[0]), int64(len(b)), o.stream); err != nil {
			return fmt.Errorf("%w: upload: %v", ErrDevice, err)
		}
		return o.synchronize()
	})
}

func (o *Ops) synchronize() error {
	if err := o.stream.Synchronize(); err != nil {
		return o.fail(fmt.Errorf("%w: %v", ErrDevice, err))
	}
	return o.fail(o.absent())
}

func (o *Ops) prepareMemory() (err error) {
	if o.arrived, err = o.allocate(4 * arrivals); err == nil {
		o.last, err = o.allocate(4 * o.options.Seats)
	}
	if err == nil {
		o.posted, err = o.allocate(8)
	}
	if err != nil {
		return err
	}
	return o.do(func() error {
		for range slotCount {
			event, err := cu.MakeEvent(cu.DisableTiming)
			if err != nil {
				return fmt.Errorf("%w: event: %v", ErrDevice, err)
			}
			o.slots <- &slot{event: event}
		}
		return nil
	})
}

// need gives scratch memory by name. It grows by doubling; what it had before
// stays, since launches that are written down point there.
func (o *Ops) need(name string, bytes int) *buffer {
	b := o.scratch[name]
	if b != nil && b.bytes >= bytes {
		return b
	}
	size := roomFor(bytes)
	if b == nil {
		b = &buffer{}
		o.scratch[name] = b
	}
	p, err := o.allocate(size)
	if err != nil {
		o.fail(err) //nolint:errcheck // sticks; the step's Pending tells
		return b
	}
	b.at, b.bytes = p, size
	return b
}

// roomFor is how much memory is taken where so much is needed now.
func roomFor(bytes int) int {
	size := 1 << 16
	for size < bytes {
		size *= 2
	}
	return size
}

// Tensor gives zeroed memory.
func (o *Ops) Tensor(rows, cols int) (kernels.Tensor, error) {
	if rows < 0 || cols < 0 {
		return kernels.Tensor{}, fmt.Errorf("cuda: tensor of %d×%d", rows, cols)
	}
	p, err := o.allocate(4 * rows * cols)
	return kernels.Tensor{Rows: rows, Cols: cols, Mem: &buffer{at: p, bytes: 4 * rows * cols}}, err
}

type vector struct {
	at pointer
	n  int
}

func (v *vector) Len() int { return v.n }

// Vector copies the values.
func (o *Ops) Vector(values []float32) (kernels.Vector, error) {
	p, err := o.upload(listBytes(values))
	return &vector{p, len(values)}, err
}

func vectorAt(v kernels.Vector) pointer {
	if v == nil {
		return 0
	}
	return v.(*vector).at
}

type ropeTable struct {
	at    pointer
	pairs int
}

func (t *ropeTable) Dim() int { return 2 * t.pairs }

// Rope computes the angles of all positions on the host, as ref does.
func (o *Ops) Rope(inverse []float32, scale float32, positions int) (kernels.RopeTable, error) {
	n := len(inverse)
	table, cos, sin := make([]float32, 2*n*positions), make([]float32, n), make([]float32, n)
	for p := range positions {
		ref.RopeAngles(p, inverse, scale, cos, sin)
		for i := range n {
			table[2*(p*n+i)], table[2*(p*n+i)+1] = cos[i], sin[i]
		}
	}
	at, err := o.upload(listBytes(table))
	return &ropeTable{at, n}, err
}

type cache struct {
	spec kernels.CacheSpec
	k, v pointer
}

func (c *cache) Spec() kernels.CacheSpec { return c.spec }

func (c *cache) layerBytes() int {
	s := c.spec
	return s.Blocks * kernels.BlockTokens * s.KVHeads * s.HeadDim * s.Type.BlockBytes()
}

// Cache makes the memory of all blocks, zeroed: unwritten slots are finite.
func (o *Ops) Cache(spec kernels.CacheSpec) (kernels.Cache, error) {
	if spec.Type != kernels.F32 && spec.Type != kernels.F16 && spec.Type != kernels.BF16 {
		return nil, fmt.Errorf("cuda: a cache of type %s; use F32, F16 or BF16", spec.Type)
	}
	c := &cache{spec: spec}
	var err error
	if c.k, err = o.allocate(spec.Layers * c.layerBytes()); err == nil {
		c.v, err = o.allocate(spec.Layers * c.layerBytes())
	}
	return c, err
}

// A weight is in the order of src/pack.cuh, or with float32 plain rows.
type weight struct {
	at         pointer
	rows, cols int
	chunks     int // of 32 columns, even
	segment    int // chunks of a segment, even
	segments   int
	paired     bool // blocks of a gate's two factors in turn
}

func (w *weight) Shape() (int, int) { return w.rows, w.cols }

// shape gives the layout of a weight: what a product's order of summation depends on.
func (o *Ops) shape(rows, cols int) *weight {
	w := &weight{rows: rows, cols: cols, chunks: (cols + 63) / 64 * 2}
	// Segments let the 16 warps of a block share few rows: a column count past 1024
	// is cut, and more where there are too few blocks of rows to occupy the warps of
	// 132 multiprocessors. Where there are rows enough, few segments are less to add.
	split, most := 1, 16
	switch {
	case rows >= 24576: // every warp has rows of its own
		most = 1
	case rows >= 4096:
		most = 4
	}
	for w.chunks/split > 32 && split < most {
		split *= 2
	}
	for perBlock := ceil(ceil(rows, 8), 132); 2*split*perBlock <= 16 && split < min(4, most) && w.chunks/split >= 8; {
		split *= 2
	}
	if cols >= 4096 { // a tensor rank's few rows of a wide model
		for tiles := ceil(rows, 128); tiles*split < 64 && w.chunks/split >= 16; {
			split *= 2
		}
	}
	w.segment = ((w.chunks+split-1)/split + 1) / 2 * 2
	w.segments = (w.chunks + w.segment - 1) / w.segment
	return w
}

func (o *Ops) weightBytes(w *weight) int {
	if !o.half {
		return 4 * w.rows * w.cols
	}
	return ceil(w.rows, 64) * 8 * w.chunks * 512
}

// Weight stacks the parts. Quantized types are dequantized when loaded: on this
// device every weight is of the compute type.
func (o *Ops) Weight(parts ...kernels.Matrix) (kernels.Weight, error) {
	return o.stack(false, parts...)
}

// Pair lays blocks of both factors in turn, so that a tile of both lies together.
func (o *Ops) Pair(gate, up kernels.Matrix) (kernels.Weight, error) {
	if err := ref.CheckPair(gate, up); err != nil {
		return nil, err
	}
	return o.stack(o.pairs(2*gate.Rows), gate, up)
}

// pairs tells whether the factors of a gate of so many rows are blocks in turn: else
// they are multiplied in two passes.
func (o *Ops) pairs(rows int) bool { return o.half && rows/2%8 == 0 }

func (o *Ops) stack(paired bool, parts ...kernels.Matrix) (kernels.Weight, error) {
	rows, cols := 0, 0
	for i, m := range parts {
		if err := ref.CheckMatrix(m); err != nil {
			return nil, err
		}
		if i > 0 && m.Cols != cols {
			return nil, fmt.Errorf("%w: %s has %d columns, %s has %d", ref.ErrShape, m.Name, m.Cols, parts[0].Name, cols)
		}
		rows, cols = rows+m.Rows, m.Cols
	}
	w := o.shape(rows, cols)
	w.paired = paired
	var err error
	if w.at, err = o.allocate(o.weightBytes(w)); err != nil {
		return nil, err
	}
	row := 0
	for _, m := range parts {
		if err := o.load(w, m, row); err != nil {
			return nil, fmt.Errorf("%s: %w", m.Name, err)
		}
		row += m.Rows
	}
	return w, nil
}

// DummyWeight gives random values in ±scale, made on the device.
func (o *Ops) DummyWeight(rows, cols int, scale float32, seed uint32) (kernels.Weight, error) {
	w := o.shape(rows, cols)
	var err error
	if w.at, err = o.allocate(o.weightBytes(w)); err != nil {
		return nil, err
	}
	count := o.weightBytes(w) / 4
	if o.half {
		count *= 2
	}
	a := fillArguments{out: w.at, count: pointer(count), seed: seed, scale: scale}
	return w, o.once("fill"+o.suffix, 2048, 256, bytesOf(&a))
}

// once launches one kernel outside of a step.
func (o *Ops) once(name string, grid, threads int, arguments []byte) error {
	return o.do(func() error {
		k := o.kernels[name]
		l := []launch{{function: k.function, x: uint32(grid), y: 1, z: 1, threads: uint32(threads)}}
		return launchAll(o.stream, l, arguments, false, func(int) string { return name })
	})
}

const stageBytes = 32 << 20 // of pinned memory, twice, while a weight is loaded

// load copies a matrix through pinned chunks, packing one while the next is read.
func (o *Ops) load(w *weight, m kernels.Matrix, row0 int) error {
	if m.Rows == 0 || m.Cols == 0 {
		return nil
	}
	kind, rowBytes := m.Type, m.Type.Bytes(m.Cols)
	if m.Type.BlockSize() > 1 {
		kind, rowBytes = kernels.F32, 4*m.Cols
	}
	per := min(m.Rows, max(1, stageBytes/rowBytes))
	stages, err := o.stages(per * rowBytes)
	if err != nil {
		return err
	}
	for row, i := 0, 0; row < m.Rows; row, i = row+per, i+1 {
		n := min(per, m.Rows-row)
		s := &stages[i%2]
		if err := o.do(s.event.Synchronize); err != nil {
			return o.fail(fmt.Errorf("%w: load: %v", ErrDevice, err))
		}
		copyRows(s.host, m, row, n, rowBytes)
		a := packArguments{source: s.device, out: w.at, stride: int64(rowBytes), rows: int32(n), row0: int32(row0 + row),
			columns: int32(m.Cols), chunks: int32(w.chunks), kind: int32(kind)}
		if w.paired {
			a.half = int32(w.rows / 2)
		}
		err := o.do(func() error {
			if err := cu.MemcpyHtoDAsync(cu.DevicePtr(s.device), unsafe.Pointer(&s.host[0]), int64(n*rowBytes), o.stream); err != nil {
				return fmt.Errorf("%w: load: %v", ErrDevice, err)
			}
			k := o.kernels["pack"+o.suffix]
			l := []launch{{function: k.function, x: uint32(n), y: 1, z: 1, threads: 256}}
			if err := launchAll(o.stream, l, bytesOf(&a), false, func(int) string { return k.name }); err != nil {
				return err
			}
			return s.event.Record(o.stream)
		})
		if err != nil {
			return o.fail(err)
		}
	}
	return nil
}

// A stage is pinned memory with its device twin.
type stage struct {
	host   []byte
	device pointer
	event  cu.Event
}

// stages gives the two stages of loading, each of at least so many bytes.
func (o *Ops) stages(bytes int) (*[2]stage, error) {
	bytes = max(bytes, stageBytes)
	if len(o.loading[0].host) >= bytes {
		return &o.loading, nil
	}
	b := o.need("stage", 2*bytes)
	err := o.do(func() (err error) {
		for i := range o.loading {
			s := &o.loading[i]
			if s.host, err = o.pin(bytes); err != nil {
				return err
			}
			if s.event, err = cu.MakeEvent(cu.DisableTiming); err != nil {
				return fmt.Errorf("%w: event: %v", ErrDevice, err)
			}
			s.device = b.at + pointer(i*bytes)
		}
		return o.synchronize()
	})
	if err == nil {
		err = o.sticky()
	}
	return &o.loading, err
}

// pin runs on the worker's thread.
func (o *Ops) pin(bytes int) ([]byte, error) {
	b, err := pinned(bytes)
	if err == nil {
		o.host = append(o.host, b)
	}
	return b, err
}

// copyRows writes n rows one after the other, dequantized where they are in blocks.
func copyRows(dst []byte, m kernels.Matrix, row, n, rowBytes int) {
	workers := min(runtime.GOMAXPROCS(0), 16)
	var all sync.WaitGroup
	for k := range workers {
		all.Go(func() {
			for r := k * n / workers; r < (k+1)*n/workers; r++ {
				to := dst[r*rowBytes : (r+1)*rowBytes]
				if m.Type.BlockSize() > 1 {
					ref.Dequantize(m, row+r, unsafe.Slice((*float32)(unsafe.Pointer(&to[0])), m.Cols))
					continue
				}
				copy(to, m.Data[(row+r)*m.Stride:][:rowBytes])
			}
		})
	}
	all.Wait()
}
