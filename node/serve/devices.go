package serve

import (
	"cmp"
	"fmt"
	"runtime"
	"strings"

	"manta/kernels"
	"manta/kernels/cpu"
	"manta/node/wire"
	"manta/runtime/plan"
)

// A Kind is one kind of device on this node.
type Kind interface {
	Name() string
	Devices() []wire.Device
	// Open gives a rank the device; the rank closes it.
	Open(device string, want Want) (kernels.Ops, error)
}

// Want is what a deployment asks of a device.
type Want struct {
	DType string // of activations; "auto": the device's own choice
	Seats int    // sequences at once
}

// CPU is the processor as one device, or as several that share its cores.
type CPU struct {
	Count   int
	Threads int   // cores of each device; 0: all
	Memory  int64 // bytes that shards may use, of all devices together
	Model   string
	// Speed is that of all devices together, once it was measured, and Part how much of
	// it shards may count on; 0: all.
	Speed plan.Speed
	Part  float64
}

// Measured gives the processor with its speed, which takes some milliseconds.
func (c CPU) Measured() (CPU, error) {
	bandwidth, operations, err := cpu.Speed(min(runtime.NumCPU(), c.Count*cmp.Or(c.Threads, runtime.NumCPU())))
	c.Speed = plan.Speed{Bandwidth: bandwidth, Operations: operations}.Times(cmp.Or(c.Part, 1))
	return c, err
}

var _ Kind = CPU{}

// Name implements Kind.
func (CPU) Name() string { return "cpu" }

// Devices implements Kind.
func (c CPU) Devices() []wire.Device {
	var devices []wire.Device
	for i := range c.Count {
		devices = append(devices, wire.Device{
			ID: fmt.Sprintf("cpu:%d", i), Kind: "cpu", Name: c.Model, Memory: c.Memory / int64(c.Count), Speed: c.Speed.Times(1 / float64(c.Count)),
		})
	}
	return devices
}

// Open implements Kind.
func (c CPU) Open(_ string, want Want) (kernels.Ops, error) {
	precision, ok := map[string]cpu.Precision{
		"": cpu.Int8, "auto": cpu.Int8, "float32": cpu.Float32, "int16": cpu.Int16, "int8": cpu.Int8,
	}[want.DType]
	if !ok {
		return nil, fmt.Errorf("serve: --dtype %s on a CPU: give auto, float32, int16 or int8", want.DType)
	}
	return cpu.New(cpu.Options{Threads: c.Threads, Precision: precision})
}

// open finds the device among the node's kinds.
func (s *Server) open(device string, want Want) (kernels.Ops, error) {
	for _, kind := range s.cfg.Devices {
		for _, d := range kind.Devices() {
			if d.ID == device {
				return kind.Open(device, want)
			}
		}
	}
	return nil, fmt.Errorf("serve: this node has no device %q", device)
}

// kindOf is the kind in a device's id.
func kindOf(device string) string {
	kind, _, _ := strings.Cut(device, ":")
	return kind
}
