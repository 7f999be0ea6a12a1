// Package gpu lists a node's GPUs and says how they are, through NVML. It is the
// only importer of go-nvml, and only under the build tag cuda (NVML's binding
// needs cgo); without the tag, or without a driver, Open says that there are none.
//
// It computes nothing and opens no CUDA context: reading it costs a GPU nothing.
package gpu

import "errors"

// ErrUnavailable is wrapped where NVML can't be used: the program was built
// without the tag cuda, or there is no NVIDIA driver.
var ErrUnavailable = errors.New("gpu: no NVML")

// Device is one GPU as it is now.
type Device struct {
	Index int
	UUID  string // stable across boots and orders
	Name  string
	Bus   string // PCI address

	Links []Link // to other GPUs that it can address

	Memory, Free int64 // bytes
	Utilisation  int   // percent of the last sample period in which a kernel ran
	Temperature  int   // °C
	Watts        float64
	// Uncorrected counts ECC errors since the driver was loaded; -1 where the GPU
	// does not count them.
	Uncorrected int64
	// Lost says why the GPU can't be used any more ("fell off the bus"), or is
	// empty. A lost GPU keeps its Index, UUID and Name only.
	Lost string
}

// Link is the way between two GPUs.
type Link struct {
	UUID  string // of the other
	Speed int64  // bytes a second, one way
}

// Fault is an Xid error that the driver reported.
type Fault struct {
	UUID string
	Xid  uint64
	// Fatal: the device must be drained (its contexts are gone or its memory is bad).
	Fatal bool
}

// fatalXids are those after which no context on the device is safe: NVIDIA's Xid
// catalogue (GPU deployment guide, "XID Errors").
var fatalXids = map[uint64]bool{
	48:  true, // double-bit ECC error
	62:  true, // internal micro-controller halt
	74:  true, // NVLink error
	79:  true, // fell off the bus
	95:  true, // uncontained memory error
	119: true, // the GPU's system processor timed out
	120: true, // the same, error
	140: true, // unrecovered ECC error
}

// Fatal tells whether a device must be drained after an Xid.
func Fatal(xid uint64) bool { return fatalXids[xid] }
