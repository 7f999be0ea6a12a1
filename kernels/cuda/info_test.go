package cuda

import "testing"

// What a GPU is, as its driver tells it, gives what its data sheet has: bandwidth, and
// operations of dense 16-bit products.
func TestSpeedIsThatOfTheDataSheet(t *testing.T) {
	for name, c := range map[string]struct {
		info                  Info
		bandwidth, operations float64
	}{
		"H200": {Info{Major: 9, Multiprocessor: 132, Clock: 1980e3, MemoryClock: 3201e3, MemoryBus: 6016}, 4.8e12, 1070e12},
		"H100": {Info{Major: 9, Multiprocessor: 132, Clock: 1830e3, MemoryClock: 2619e3, MemoryBus: 5120}, 3.35e12, 989e12},
		"A100": {Info{Major: 8, Multiprocessor: 108, Clock: 1410e3, MemoryClock: 1215e3, MemoryBus: 5120}, 1.555e12, 312e12},
		"A10":  {Info{Major: 8, Minor: 6, Multiprocessor: 72, Clock: 1695e3, MemoryClock: 6251e3, MemoryBus: 384}, 600e9, 125e12},
		"L4":   {Info{Major: 8, Minor: 9, Multiprocessor: 58, Clock: 2040e3, MemoryClock: 6251e3, MemoryBus: 192}, 300e9, 121e12},
		"V100": {Info{Major: 7, Multiprocessor: 80, Clock: 1530e3, MemoryClock: 877e3, MemoryBus: 4096}, 900e9, 125e12},
		"T4":   {Info{Major: 7, Minor: 5, Multiprocessor: 40, Clock: 1590e3, MemoryClock: 5001e3, MemoryBus: 256}, 320e9, 65e12},
	} {
		bandwidth, operations := c.info.Speed()
		if r := bandwidth / reachedBandwidth / c.bandwidth; r < 0.97 || r > 1.03 {
			t.Errorf("%s reads %.3g bytes a second, %.2f of its data sheet's", name, bandwidth, r)
		}
		if r := operations / reachedOperations / c.operations; r < 0.97 || r > 1.03 {
			t.Errorf("%s does %.3g operations a second, %.2f of its data sheet's", name, operations, r)
		}
	}
	if bandwidth, operations := (Info{Major: 9, Multiprocessor: 132}).Speed(); bandwidth != 0 || operations != 0 {
		t.Errorf("%v, %v of an unknown clock", bandwidth, operations)
	}
}
