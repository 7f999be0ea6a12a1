//go:build !linux && !darwin

package node

// assumedMemory is what a machine is taken to have where it can't be asked.
const assumedMemory = 8 << 30

func machineMemory() int64 { return assumedMemory }

func processorName() string { return "" }
