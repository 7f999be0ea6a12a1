package node

import (
	"cmp"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"manta/kernels/sim"
	"manta/node/serve"
)

// ErrDevices says that --devices is not understood.
var ErrDevices = errors.New("devices")

// Devices gives what --devices names: «cuda», the GPUs; «cpu», or «cpu:N» for the
// processor as N devices that share its cores and memory, or «cpu:N@PART» where other
// programs leave that part of its speed; «sim:N», «sim:N@SPEED» or
// «sim:N@SPEED!TOKEN», N simulated devices that compute nothing; «auto», the GPUs if
// there are any, else the processor.
func Devices(text string) ([]serve.Kind, error) {
	kind, count, several := strings.Cut(text, ":")
	if several && kind != "cpu" && kind != "sim" {
		return nil, fmt.Errorf("%w: %q: give auto, cuda, cpu, cpu:N, cpu:N@PART or sim:N", ErrDevices, text)
	}
	switch kind {
	case "cpu":
		return processor(count, several)
	case "sim":
		return simulated(count)
	case "cuda", "auto":
	default:
		return nil, fmt.Errorf("%w: %q: give auto, cuda, cpu, cpu:N, cpu:N@PART or sim:N", ErrDevices, text)
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

// measured gives kinds with the speed of what has to be measured.
func measured(kinds []serve.Kind) ([]serve.Kind, error) {
	kinds = slices.Clone(kinds)
	for i, kind := range kinds {
		if cpu, ok := kind.(serve.CPU); ok {
			with, err := cpu.Measured()
			if err != nil {
				return nil, fmt.Errorf("node: measure the processor: %w", err)
			}
			kinds[i] = with
		}
	}
	return kinds, nil
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

// simulated is N devices, or N@SPEED for some that are so much as fast as an H200;
// behind «!» stands a token that they die of, to try what becomes of the others.
func simulated(text string) ([]serve.Kind, error) {
	what, fatal, dies := strings.Cut(text, "!")
	count, speed, slow := strings.Cut(what, "@")
	n, err := deviceCount("sim", cmp.Or(count, "1"))
	figures := sim.H200
	if dies && err == nil {
		token, failed := strconv.ParseInt(fatal, 10, 32)
		if failed != nil || token < 1 {
			return nil, fmt.Errorf("%w: sim:%s: behind ! stands a token, 1 or more", ErrDevices, text)
		}
		figures.Fatal = int32(token)
	}
	if slow && err == nil {
		part, failed := strconv.ParseFloat(speed, 64)
		if failed != nil || !(part > 0 && part <= 100) {
			return nil, fmt.Errorf("%w: sim:%s: SPEED must be more than 0 and at most 100", ErrDevices, text)
		}
		figures = figures.Times(part)
	}
	return []serve.Kind{serve.Sim{Count: n, Figures: figures}}, err
}

// deviceCount reads how many devices of a kind there are.
func deviceCount(kind, count string) (int, error) {
	n, err := strconv.Atoi(count)
	if err != nil || n < 1 || n > 64 {
		return 0, fmt.Errorf("%w: %s:%s: N must be 1 to 64", ErrDevices, kind, count)
	}
	return n, nil
}

// processor is the CPU as devices. Shards may use three quarters of the memory that
// is free now; the rest is for the page cache and whatever else runs here.
func processor(count string, several bool) ([]serve.Kind, error) {
	cpu := serve.CPU{Count: 1, Memory: machineMemory() / 4 * 3, Model: processorName()}
	if cpu.Model == "" {
		cpu.Model = runtime.GOARCH
	}
	count, part, shared := strings.Cut(count, "@")
	if several {
		n, err := deviceCount("cpu", count)
		if err != nil {
			return nil, err
		}
		if shared {
			if cpu.Part, err = strconv.ParseFloat(part, 64); err != nil || !(cpu.Part > 0 && cpu.Part <= 1) {
				return nil, fmt.Errorf("%w: cpu:%s@%s: PART must be more than 0 and at most 1", ErrDevices, count, part)
			}
		}
		cpu.Count, cpu.Threads = n, max(1, runtime.NumCPU()/n)
	}
	return []serve.Kind{cpu}, nil
}
