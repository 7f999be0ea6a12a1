//go:build !amd64

package cpu

// fastest gives the plain Go kernels: no assembly is written for this processor.
func fastest() *kernelSet { return plain() }
