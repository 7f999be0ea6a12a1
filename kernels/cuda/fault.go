//go:build cuda && fault

package cuda

import (
	"gorgonia.org/cu"

	"manta/kernels"
)

// Fault writes where no memory is. It exists in test builds alone (-tags fault):
// whoever serves must outlive it.
func Fault(ops kernels.Ops) error {
	o := ops.(*Ops)
	a := fillArguments{out: 1 << 20, count: 1 << 20, seed: 1, scale: 1}
	return o.once("fill"+o.suffix, 2048, 256, bytesOf(&a))
}

// Stall makes a device stand still: its queue, or the thread that feeds it. Of linked
// ranks all but the first do, so that this one waits for them.
func Stall(ops kernels.Ops, thread bool) error {
	o := ops.(*Ops)
	if o.link != nil && o.rank == 0 {
		return nil
	}
	if thread {
		return o.do(func() error { select {} })
	}
	never, err := o.allocate(4)
	if err != nil {
		return err
	}
	return o.do(func() error { return o.stream.WaitOnValue32(cu.DevicePtr(never), 1, 0) }) // until it is at least 1
}
