package cpu

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// mapHuge maps size bytes, a multiple of a huge page, and asks for huge pages.
func mapHuge(size int) (mapping, error) {
	whole, err := unix.Mmap(-1, 0, size+hugePage, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return mapping{}, err
	}
	// Refused where the kernel has none; small pages serve as well.
	_ = unix.Madvise(whole, unix.MADV_HUGEPAGE)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(whole)))) & (hugePage - 1)
	return mapping{whole, whole[skip:][:size]}, nil
}

func (m mapping) unmap() error { return unix.Munmap(m.whole) }
