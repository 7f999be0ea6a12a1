package node

import (
	"runtime"

	"manta/node/serve"
)

// CPU gives this machine's processor as one device. Shards may use three quarters
// of the memory that is free now; the rest is for the page cache, the heads and
// whatever else runs here.
func CPU() serve.CPU {
	name := processorName()
	if name == "" {
		name = runtime.GOARCH
	}
	return serve.CPU{Count: 1, Memory: machineMemory() / 4 * 3, Model: name}
}
