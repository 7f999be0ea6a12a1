package serve

import (
	"fmt"

	"manta/kernels"
	"manta/kernels/sim"
	"manta/node/wire"
	"manta/runtime/plan"
)

// Sim is simulated devices: a step takes the time that a cost model gives it, and
// its tokens are made up.
type Sim struct {
	Count   int
	Figures sim.Figures
}

var _ Kind = Sim{}

// Name implements Kind.
func (Sim) Name() string { return "sim" }

// Devices implements Kind.
func (s Sim) Devices() []wire.Device {
	var devices []wire.Device
	for i := range s.Count {
		devices = append(devices, wire.Device{
			ID: fmt.Sprintf("sim:%d", i), Kind: "sim", Name: s.Figures.Name, Memory: s.Figures.Memory,
			Speed: plan.Speed{Bandwidth: s.Figures.Bandwidth, Operations: s.Figures.Operations},
		})
	}
	return devices
}

// Open implements Kind.
func (s Sim) Open(string, Want) (kernels.Ops, error) { return sim.New(s.Figures), nil }
