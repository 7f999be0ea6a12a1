package api

import (
	"syscall"
	"unsafe"
)

const canTryWrite = true

// write writes what a connection takes at once; none of it is no error. The call waits
// for nothing, so the scheduler is not told of it: that would wake the runtime's monitor,
// a thread, whenever the head was idle before.
func (d *direct) write(fd uintptr) {
	for {
		n, _, errno := syscall.RawSyscall(syscall.SYS_WRITE, fd, uintptr(unsafe.Pointer(&d.rest[0])), uintptr(len(d.rest)))
		switch errno {
		case 0:
			d.took, d.failed = int(n), nil
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
			d.took, d.failed = 0, nil
		default:
			d.took, d.failed = 0, errno
		}
		return
	}
}
