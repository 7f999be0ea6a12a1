package weights

import "golang.org/x/sys/unix"

// adviseHuge asks for huge pages. On ext4 and xfs the kernel then reads what is
// not cached yet straight into them (Linux 6.18: all of a 1.3 GB file); pages that
// are cached, because the file was just written, stay as they are. Kernels that
// have none for files answer EINVAL, and the mapping works all the same.
func adviseHuge(data []byte) {
	_ = unix.Madvise(data, unix.MADV_HUGEPAGE)
}

// populate brings the pages of data into memory, blocking until they are there.
func populate(data []byte) {
	if unix.Madvise(data, unix.MADV_POPULATE_READ) != nil { // before Linux 5.14
		touch(data)
	}
}

// drop takes the pages of data from this process; the system keeps them cached.
func drop(data []byte) {
	_ = unix.Madvise(data, unix.MADV_DONTNEED)
}

// readAhead starts reading data without waiting.
func readAhead(data []byte) {
	_ = unix.Madvise(data, unix.MADV_WILLNEED)
}
