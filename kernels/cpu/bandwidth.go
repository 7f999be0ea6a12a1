package cpu

import (
	"slices"
	"time"
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
	t, err := o.newReader()
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
	readPart  = 64 << 10
)

// newReader makes memory to be read.
func (o *Ops) newReader() (*streamTask, error) {
	data, err := o.memory.take(readBytes + hugePage) // what is asked for ahead ends inside
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
	o.pool.run(t, readBytes/readPart)
	return readBytes / time.Since(begin).Seconds()
}
