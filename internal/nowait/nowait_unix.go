//go:build unix && !linux

// Package nowait writes sockets that do not block. Elsewhere than on Linux the
// scheduler is told of it: raw system calls are not for programs there.
package nowait

import "syscall"

// Write writes what the socket takes; what can't be done at once is EAGAIN.
func Write(fd uintptr, p []byte) (int, error) {
	for {
		n, err := syscall.Write(int(fd), p)
		if err != syscall.EINTR {
			return max(n, 0), err
		}
	}
}
