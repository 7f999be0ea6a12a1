//go:build !cuda

package cuda

import (
	"fmt"

	"manta/kernels"
)

// Devices lists none.
func Devices() ([]Info, error) { return nil, nil }

// New says that the program was built without CUDA.
func New(device int, options Options) (kernels.Ops, error) {
	return nil, fmt.Errorf("%w: device %d: this program was built without the tag cuda; use make cuda", ErrUnavailable, device)
}
