//go:build cuda

package engine_test

import (
	"testing"

	"manta/kernels"
	"manta/kernels/cpu"
	"manta/kernels/cuda"
	"manta/parallel/shard"
)

// onGPU makes the ranks of a test take the GPUs in turn, in float32.
func onGPU(t *testing.T) {
	t.Helper()
	list, err := cuda.Devices()
	if err != nil || len(list) == 0 {
		t.Skipf("no GPU: %v", err)
	}
	// Streams that wait for each other must not share one of the device's queues.
	t.Setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32")
	open, all := openDevice, takes
	t.Cleanup(func() { openDevice, takes = open, all })
	openDevice = func(rank int, _ cpu.Options) (kernels.Ops, error) {
		return cuda.New(rank%len(list), cuda.Options{Compute: kernels.F32})
	}
	takes = func(l shard.Layout) bool { return l.Ranks() == 1 }
}

// In the float32 mode an engine on a GPU gives every golden model's greedy tokens,
// whatever the chunks, the company, prefix hits, preemption, ranks and stages.
func TestGoldenThroughTheEngineOnGPU(t *testing.T) {
	onGPU(t)
	TestGoldenThroughTheEngine(t)
}

// So do tensor ranks whose sums are kernels of the step, in one and two stages.
func TestGoldenOverRanksOnGPU(t *testing.T) {
	onGPU(t)
	takes = func(l shard.Layout) bool {
		return l.Ranks() > 1 && (l.Tensor == 1 || l.Tensor == 2 || l.Tensor == 4) && l.Pipeline <= 2 && l.StageLayers == nil
	}
	TestGoldenThroughTheEngine(t)
}

// So do seeded draws.
func TestSeededSamplingOnGPU(t *testing.T) {
	onGPU(t)
	TestSeededSamplingDoesNotDependOnCompany(t)
}
