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

// Devices gives what --devices names: «cuda», the GPUs; «cpu», or «cpu:N» for the
// processor as N devices that share its cores and memory; «auto», the GPUs if
// there are any, else the processor.
func Devices(text string) ([]serve.Kind, error) {
	kind, count, several := strings.Cut(text, ":")
	if several && kind != "cpu" {
		return nil, fmt.Errorf("%w: %q: give auto, cuda, cpu or cpu:N", ErrDevices, text)
	}
	switch kind {
	case "cpu":
		return processor(count, several)
	case "cuda", "auto":
	default:
		return nil, fmt.Errorf("%w: %q: give auto, cuda, cpu or cpu:N", ErrDevices, text)
	}
	gpus, err := serve.FindCUDA()
	switch {
	case len(gpus.Devices()) > 0:
		return []serve.Kind{gpus}, nil
	case kind == "auto":
		return processor("", false) // also where the driver is broken: it is said when asked for by name
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrDevices, err)
	}
	return nil, fmt.Errorf("%w: no GPU: is there a driver, and was this program built with make cuda?", ErrDevices)
}

// NewProcesses gives what --device-processes asks for; nil: ranks run in the node's
// own process.
func NewProcesses(when string, kinds []serve.Kind) (*Processes, error) {
	switch when {
	case "never":
		return nil, nil
	case "always":
		return &Processes{}, nil
	case "auto":
	default:
		return nil, fmt.Errorf("device-processes: %q: give auto, always or never", when)
	}
	for _, kind := range kinds {
		if kind.Name() == serve.KindCUDA {
			return &Processes{}, nil
		}
	}
	return nil, nil
}

// processor is the CPU as devices. Shards may use three quarters of the memory that
// is free now; the rest is for the page cache and whatever else runs here.
func processor(count string, several bool) ([]serve.Kind, error) {
	cpu := serve.CPU{Count: 1, Memory: machineMemory() / 4 * 3, Model: processorName()}
	if cpu.Model == "" {
		cpu.Model = runtime.GOARCH
	}
	if several {
		n, err := strconv.Atoi(count)
		if err != nil || n < 1 || n > 64 {
			return nil, fmt.Errorf("%w: cpu:%s: N must be 1 to 64", ErrDevices, count)
		}
		cpu.Count, cpu.Threads = n, max(1, runtime.NumCPU()/n)
	}
	return []serve.Kind{cpu}, nil
}
