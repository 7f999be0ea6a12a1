//go:build cuda && fault

package serve

import (
	"os"
	"os/signal"
	"syscall"

	"manta/kernels"
	"manta/kernels/cuda"
)

// A test build's devices fault at SIGUSR2, in the middle of whatever they do.
func init() {
	openedGPU = func(ops kernels.Ops) {
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, syscall.SIGUSR2)
		go func() { // ends with the process, which is what it is for
			<-signals
			_ = cuda.Fault(ops) // the launch succeeds; what follows does not
		}()
	}
}
