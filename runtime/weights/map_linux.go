package weights

import "golang.org/x/sys/unix"

// adviseHuge asks for huge pages. Kernels that have none for files answer
// EINVAL, and the mapping works as it is.
func adviseHuge(data []byte) {
	_ = unix.Madvise(data, unix.MADV_HUGEPAGE)
}

// populate brings the pages of data into memory, blocking until they are there.
func populate(data []byte) {
	if unix.Madvise(data, unix.MADV_POPULATE_READ) != nil { // before Linux 5.14
		touch(data)
	}
	// A second, best-effort wish: huge pages now, not when khugepaged comes by
	// (Linux 6.1 and later, for files on some file systems).
	_ = unix.Madvise(data, unix.MADV_COLLAPSE)
}

// readAhead starts reading data without waiting.
func readAhead(data []byte) {
	_ = unix.Madvise(data, unix.MADV_WILLNEED)
}
