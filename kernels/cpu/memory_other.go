//go:build !linux

package cpu

import "unsafe"

// mapHuge takes the memory from the Go heap where no huge pages can be asked for.
func mapHuge(size int) (mapping, error) {
	whole := make([]byte, size+pageLine)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(whole)))) & (pageLine - 1)
	return mapping{whole, whole[skip:][:size]}, nil
}

func (m mapping) unmap() error { return nil }
