package serve

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"manta/kernels"
	"manta/kernels/cuda"
	"manta/node/wire"
)

// CUDA is the GPUs that the driver shows this process (CUDA_VISIBLE_DEVICES).
type CUDA struct{ devices []wire.Device }

var _ Kind = CUDA{}

// FindCUDA lists the GPUs as they are now: shards may use the memory that is free.
// Without a driver, or in a program built without CUDA, there are none.
func FindCUDA() (CUDA, error) {
	found, err := cuda.Devices()
	if err != nil {
		return CUDA{}, fmt.Errorf("serve: list GPUs: %w", err)
	}
	var c CUDA
	for _, d := range found {
		c.devices = append(c.devices, wire.Device{ID: fmt.Sprintf("cuda:%d", d.Index), Kind: "cuda", Name: d.Name, Memory: d.Free})
	}
	return c, nil
}

// Name implements Kind.
func (CUDA) Name() string { return "cuda" }

// Devices implements Kind.
func (c CUDA) Devices() []wire.Device { return c.devices }

// Open implements Kind.
func (c CUDA) Open(device string, want Want) (kernels.Ops, error) {
	compute, ok := map[string]kernels.DType{
		"": kernels.BF16, "auto": kernels.BF16, "bfloat16": kernels.BF16,
		"float16": kernels.F16, "half": kernels.F16, "float32": kernels.F32, "float": kernels.F32,
	}[want.DType]
	if !ok {
		return nil, fmt.Errorf("serve: --dtype %s on a GPU: give auto, bfloat16, float16 or float32", want.DType)
	}
	index, err := strconv.Atoi(strings.TrimPrefix(device, "cuda:"))
	if err != nil {
		return nil, fmt.Errorf("serve: GPU %q: %w", device, err)
	}
	return cuda.New(index, cuda.Options{Compute: compute, Seats: want.Seats})
}

// deviceLost tells whether an error comes from a device's driver: its context is
// gone, and with it whatever the process had there.
func deviceLost(err error) bool { return errors.Is(err, cuda.ErrDevice) }
