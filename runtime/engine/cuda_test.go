//go:build cuda

package engine_test

import (
	"testing"

	"manta/kernels"
	"manta/kernels/cpu"
	"manta/kernels/cuda"
)

// onGPU makes every rank of a test use device 0, in float32.
func onGPU(t *testing.T) {
	t.Helper()
	if list, err := cuda.Devices(); err != nil || len(list) == 0 {
		t.Skipf("no GPU: %v", err)
	}
	open, most := openDevice, mostRanks
	t.Cleanup(func() { openDevice, mostRanks = open, most })
	openDevice = func(cpu.Options) (kernels.Ops, error) { return cuda.New(0, cuda.Options{Compute: kernels.F32}) }
	mostRanks = 2
}

// In the float32 mode an engine on a GPU gives every golden model's greedy tokens,
// whatever the chunks, the company, prefix hits, preemption, ranks and stages.
func TestGoldenThroughTheEngineOnGPU(t *testing.T) {
	onGPU(t)
	TestGoldenThroughTheEngine(t)
}

// So do seeded draws.
func TestSeededSamplingOnGPU(t *testing.T) {
	onGPU(t)
	TestSeededSamplingDoesNotDependOnCompany(t)
}
