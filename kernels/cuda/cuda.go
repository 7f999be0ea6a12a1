// Package cuda runs the operations of kernels.Ops on an NVIDIA GPU.
//
// It is built with the tag cuda (make cuda); without the tag New and Devices say
// so, and nothing else is compiled. With it the program needs a C compiler when it
// is built and nothing when it starts: the driver is looked up at run time, and
// machine code for the kernels (src/) is embedded, so nothing is compiled either.
//
// A device belongs to one worker: a goroutine locked to its OS thread that owns
// the context and the stream. Ops' methods only write a step down; End hands the
// list over, and the worker launches it, from the third time on as a CUDA graph. A
// second thread waits for steps to end. A device error sticks: it comes out of
// every later Pending, and the process stays alive to report it.
//
// Numbers: the stream of residuals, products without an activation, and logits are
// float32; what only another product reads (activations, attention) is of the
// compute type. With Compute F32 all is float32, for exactness.
//
// The law of bits always holds here: every product has one order of summation
// (src/linear.cuh), attention one of chunks (src/attention.cuh), and sampling adds
// integers (src/sample.cuh). There is no faster mode that breaks it.
package cuda

import (
	"errors"
	"io/fs"
	"time"

	"manta/kernels"
)

// ErrUnavailable is wrapped where no device can be used: the program was built
// without the tag cuda, or there is no driver, or no such device.
var ErrUnavailable = errors.New("cuda: no usable device")

// ErrDevice is wrapped by errors that the driver gave. They stick.
var ErrDevice = errors.New("cuda: device error")

// Options says how a device computes.
type Options struct {
	// Compute is the type of weights and of what products read: BF16 (the zero
	// value F32 is exact and slow), F16 or F32.
	Compute kernels.DType
	// Seats bounds the sampler seats; 0 means 256. Each takes 4 bytes a token of
	// the vocabulary.
	Seats int
	// Patience bounds how long a kernel waits for another tensor rank; 0 means 2 s.
	Patience time.Duration
	// NoGraphs launches every step kernel by kernel.
	NoGraphs bool
	// Images replaces the embedded kernels (tests of other machine code).
	Images fs.FS
}

// Info describes a device.
type Info struct {
	Index          int
	Name           string
	Major, Minor   int // compute capability
	Memory         int64
	UUID           string // as NVML has it
	Multiprocessor int
	// Peaks, in kHz, and the bits of the memory's bus; 0: the driver does not say.
	Clock, MemoryClock, MemoryBus int
}

// Parts of what a GPU is sold with that this package's kernels reach: an H200 reads
// 4.3 to 4.4 of 4.8 TB/s, and a prompt's products do 590 of 990 TFLOP/s (RESULTS.md).
const (
	reachedBandwidth  = 0.9
	reachedOperations = 0.6
)

// Speed is what the device does in a second by what it is, bytes read and operations
// of 16-bit products: good to compare GPUs by. 0: not known.
func (i Info) Speed() (bandwidth, operations float64) {
	const transfers = 2 // a clock
	bandwidth = reachedBandwidth * transfers * 1e3 * float64(i.MemoryClock) * float64(i.MemoryBus) / 8
	return bandwidth, reachedOperations * 1e3 * float64(i.Clock) * float64(i.Multiprocessor) * i.perClock()
}

// perClock is how many operations of dense 16-bit products a multiprocessor does in a
// clock (NVIDIA's white papers of each architecture).
func (i Info) perClock() float64 {
	switch {
	case i.Major == 10:
		return 8192
	case i.Major == 9:
		return 4096
	case i.Major == 8 && i.Minor == 0:
		return 2048
	case i.Major < 7:
		return 256
	}
	return 1024
}
