//go:build cuda && fault

package serve

import (
	"os"
	"os/signal"
	"syscall"

	"manta/kernels"
	"manta/kernels/cuda"
)

// A test build's devices fault at SIGUSR2, in the middle of whatever they do; at SIGUSR1
// their queue stands still, at SIGALRM the thread that feeds them.
func init() {
	openedGPU = func(ops kernels.Ops) {
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM)
		go func() { // ends with the process, which is what it is for
			switch s := <-signals; s {
			case syscall.SIGUSR2:
				_ = cuda.Fault(ops) // the launch succeeds; what follows does not
			default:
				_ = cuda.Stall(ops, s == syscall.SIGALRM) // what follows is not done
			}
		}()
	}
}
