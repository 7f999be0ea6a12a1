//go:build unix && !linux

package api

import "syscall"

const canTryWrite = true

// write writes what a connection takes at once; none of it is no error.
func (d *direct) write(fd uintptr) {
	for {
		d.took, d.failed = syscall.Write(int(fd), d.rest)
		if d.failed != syscall.EINTR {
			break
		}
	}
	if d.failed == syscall.EAGAIN {
		d.failed = nil
	}
	d.took = max(d.took, 0)
}
