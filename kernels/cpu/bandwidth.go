package cpu

import (
	"slices"
	"time"

	"manta/kernels"
)

// A streamTask reads memory once.
type streamTask struct {
	set  *kernelSet
	data []byte
	part int
}

func (t *streamTask) do(_, unit int) {
	t.set.stream(&t.data[unit*t.part], uintptr(t.part/256))
}

// ReadBandwidth measures how many bytes a second this machine reads from memory,
// as weights stream by: huge pages, all threads, the median of some passes.
func ReadBandwidth(threads int) (float64, error) {
	o, err := newOps(Options{Threads: threads}, fastest())
	if err != nil {
		return 0, err
	}
	rate, err := o.readBandwidth()
	if closed := o.Close(); err == nil {
		err = closed
	}
	return rate, err
}

func (o *Ops) readBandwidth() (float64, error) {
	const passes = 9
	t, err := o.newReader(readBytes)
	if err != nil {
		return 0, err
	}
	rates := make([]float64, passes)
	for i := range rates {
		rates[i] = t.pass(o)
	}
	slices.Sort(rates)
	return rates[passes/2], nil
}

// Sizes of a pass: more than caches hold, in units that keep all threads reading to
// its end.
const (
	readBytes = 256 << 20
	fewBytes  = 64 << 20 // when it must not take long
	readPart  = 64 << 10
)

// newReader makes so much memory to be read.
func (o *Ops) newReader(bytes int) (*streamTask, error) {
	data, err := o.memory.take(bytes + hugePage) // what is asked for ahead ends inside
	if err != nil {
		return nil, err
	}
	for i := 0; i < len(data); i += pageLine {
		data[i] = 1
	}
	return &streamTask{o.kernels, data, readPart}, nil
}

// pass reads it once and gives bytes a second.
func (t *streamTask) pass(o *Ops) float64 {
	begin := time.Now()
	bytes := len(t.data) - hugePage
	o.pool.run(t, bytes/readPart)
	return float64(bytes) / time.Since(begin).Seconds()
}

// Speed measures within some milliseconds what this machine's cores read from memory
// in a second, and how many multiplications and additions they do in products of
// bfloat16 with many rows: the best of a few runs, since whatever else runs here can
// only take from it.
func Speed(threads int) (bandwidth, operations float64, err error) {
	o, err := newOps(Options{Threads: threads, Precision: Int8}, fastest())
	if err != nil {
		return 0, 0, err
	}
	defer func() {
		if closed := o.Close(); err == nil {
			err = closed
		}
	}()
	reader, err := o.newReader(fewBytes)
	if err != nil {
		return 0, 0, err
	}
	const passes, products = 5, 9
	const rows, side = 64, 512
	for range passes {
		bandwidth = max(bandwidth, reader.pass(o))
	}
	square := kernels.Matrix{Name: "speed", Type: kernels.BF16, Rows: side, Cols: side, Stride: 2 * side, Data: make([]byte, 2*side*side)}
	weight, err := o.Weight(square)
	if err != nil {
		return 0, 0, err
	}
	x, err := o.Tensor(rows, side)
	if err != nil {
		return 0, 0, err
	}
	out, err := o.Tensor(rows, side)
	if err != nil {
		return 0, 0, err
	}
	for range products {
		begin := time.Now()
		o.Linear(out, x, kernels.Linear{Weight: weight})
		operations = max(operations, 2*rows*side*side/time.Since(begin).Seconds())
	}
	return bandwidth, operations, o.failed
}
