package node

import (
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"

	"manta/node/serve"
)

// ErrDevices says that --devices is not understood.
var ErrDevices = errors.New("devices")

// Devices gives what --devices names: «cpu», or «cpu:N» for the processor as N
// devices that share its cores and memory. Shards may use three quarters of the
// memory that is free now; the rest is for the page cache and whatever else runs
// here.
func Devices(text string) ([]serve.Kind, error) {
	kind, count, several := strings.Cut(text, ":")
	if kind != "cpu" && kind != "auto" {
		return nil, fmt.Errorf("%w: %q: give auto, cpu or cpu:N", ErrDevices, text)
	}
	cpu := serve.CPU{Count: 1, Memory: machineMemory() / 4 * 3, Model: processorName()}
	if cpu.Model == "" {
		cpu.Model = runtime.GOARCH
	}
	if several {
		n, err := strconv.Atoi(count)
		if err != nil || n < 1 || n > 64 {
			return nil, fmt.Errorf("%w: %q: N must be 1 to 64", ErrDevices, text)
		}
		cpu.Count, cpu.Threads = n, max(1, runtime.NumCPU()/n)
	}
	return []serve.Kind{cpu}, nil
}
