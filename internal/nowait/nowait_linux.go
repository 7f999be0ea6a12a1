// Package nowait reads and writes sockets that do not block, without telling the
// scheduler. A system call that it is told of wakes the runtime's monitor, a thread,
// whenever the process was idle before; these wait for nothing, so it need not know.
//
// Whoever calls it holds the descriptor open. It never waits: what can't be done at
// once is EAGAIN.
package nowait

import (
	"syscall"
	"unsafe"
)

// Read reads what has come; 0 bytes without an error are the end.
func Read(fd uintptr, p []byte) (int, error) { return call(syscall.SYS_READ, fd, p) }

// Write writes what the socket takes.
func Write(fd uintptr, p []byte) (int, error) { return call(syscall.SYS_WRITE, fd, p) }

func call(number, fd uintptr, p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		n, _, errno := syscall.RawSyscall(number, fd, uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
		switch errno {
		case 0:
			return int(n), nil
		case syscall.EINTR:
		default:
			return 0, errno
		}
	}
}
