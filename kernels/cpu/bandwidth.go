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
	const size, part, passes = 256 << 20, 64 << 10, 9
	data, err := o.memory.take(size + hugePage) // what is asked for ahead ends inside
	if err != nil {
		return 0, err
	}
	for i := 0; i < len(data); i += pageLine {
		data[i] = 1
	}
	t := &streamTask{o.kernels, data, part}
	rates := make([]float64, passes)
	for i := range rates {
		begin := time.Now()
		o.pool.run(t, size/part)
		rates[i] = size / time.Since(begin).Seconds()
	}
	slices.Sort(rates)
	return rates[passes/2], nil
}
