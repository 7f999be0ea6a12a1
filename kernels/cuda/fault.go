//go:build cuda && fault

package cuda

import "manta/kernels"

// Fault writes where no memory is. It exists in test builds alone (-tags fault):
// whoever serves must outlive it.
func Fault(ops kernels.Ops) error {
	o := ops.(*Ops)
	a := fillArguments{out: 1 << 20, count: 1 << 20, seed: 1, scale: 1}
	return o.once("fill"+o.suffix, 2048, 256, bytesOf(&a))
}
