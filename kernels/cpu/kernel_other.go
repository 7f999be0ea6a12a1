//go:build !amd64

package cpu

// levels gives the plain Go kernels: no assembly is written for this processor.
func levels() []*kernelSet { return []*kernelSet{plain()} }
