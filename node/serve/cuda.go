package serve

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"

	"manta/kernels"
	"manta/kernels/cuda"
	"manta/node/gpu"
	"manta/node/wire"
	"manta/runtime/plan"
)

// CUDA is the GPUs that the driver shows this process (CUDA_VISIBLE_DEVICES).
type CUDA struct {
	found  []foundGPU
	health *gpuHealth
}

type foundGPU struct {
	device wire.Device
	uuid   string
}

var (
	_ Kind    = (*CUDA)(nil)
	_ Watched = (*CUDA)(nil)
)

// KindCUDA is the name of that kind.
const KindCUDA = "cuda"

// FindCUDA lists the GPUs as they are now: shards may use the memory that is free.
// Without a driver, or in a program built without CUDA, there are none.
func FindCUDA() (*CUDA, error) {
	c := &CUDA{health: newGPUHealth(nil)}
	found, err := cuda.Devices()
	if err != nil {
		return c, fmt.Errorf("serve: list GPUs: %w", err)
	}
	free, links := map[string]int64{}, map[string][]gpu.Link{}
	if len(found) > 0 {
		// Without NVML (a driver's container may lack it) GPUs are taken for empty and well.
		if reader, err := gpu.Open(); err == nil {
			c.health = newGPUHealth(reader)
			known, err := reader.Read()
			if err != nil {
				return c, fmt.Errorf("serve: read GPUs: %w", err)
			}
			for _, d := range known {
				free[d.UUID], links[d.UUID] = d.Free, d.Links
			}
		}
	}
	for _, d := range found {
		memory, known := free[d.UUID]
		if !known {
			memory = d.Memory
		}
		bandwidth, operations := d.Speed()
		c.found = append(c.found, foundGPU{wire.Device{
			ID: fmt.Sprintf("%s:%d", KindCUDA, d.Index), Kind: KindCUDA, Name: d.Name, Memory: memory,
			Speed: plan.Speed{Bandwidth: bandwidth, Operations: operations},
		}, d.UUID})
	}
	for i, f := range c.found {
		for _, l := range links[f.uuid] {
			for _, other := range c.found {
				if other.uuid == l.UUID {
					c.found[i].device.Links = append(c.found[i].device.Links, wire.DeviceLink{To: other.device.ID, Speed: l.Speed})
				}
			}
		}
	}
	return c, nil
}

// Name implements Kind.
func (*CUDA) Name() string { return KindCUDA }

// Devices implements Kind. A GPU that is lost is not among them.
func (c *CUDA) Devices() []wire.Device {
	var list []wire.Device
	for _, f := range c.found {
		if c.health.usable(f.uuid) {
			d := f.device
			d.Memory = c.health.memory(f.uuid, d.Memory)
			list = append(list, d)
		}
	}
	return list
}

// GPUs implements Watched.
func (c *CUDA) GPUs() []wire.GPU { return c.health.list() }

// Watch implements Watched.
func (c *CUDA) Watch(ctx context.Context, log *slog.Logger, changed func()) error {
	return c.health.watch(ctx, log, changed)
}

// Open implements Kind.
func (c *CUDA) Open(device string, want Want) (kernels.Ops, error) {
	compute, ok := map[string]kernels.DType{
		"": kernels.BF16, "auto": kernels.BF16, "bfloat16": kernels.BF16,
		"float16": kernels.F16, "half": kernels.F16, "float32": kernels.F32, "float": kernels.F32,
	}[want.DType]
	if !ok {
		return nil, fmt.Errorf("serve: --dtype %s on a GPU: give auto, bfloat16, float16 or float32", want.DType)
	}
	index, err := strconv.Atoi(strings.TrimPrefix(device, KindCUDA+":"))
	if err != nil {
		return nil, fmt.Errorf("serve: GPU %q: %w", device, err)
	}
	ops, err := cuda.New(index, cuda.Options{Compute: compute, Seats: want.Seats})
	if err == nil {
		openedGPU(ops)
	}
	return ops, err
}

// openedGPU is told of every device that is opened; a test build makes them fault.
var openedGPU = func(kernels.Ops) {}

// deviceLost tells whether an error comes from a device's driver: its context is
// gone, and with it whatever the process had there.
func deviceLost(err error) bool { return errors.Is(err, cuda.ErrDevice) }
