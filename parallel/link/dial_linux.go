package link

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// control makes the kernel give a connection up when what was sent is not
// acknowledged for unacknowledged: after a cut it would try for minutes, less and
// less often. A peer that is stopped or starved acknowledges all the same.
func control(_, _ string, conn syscall.RawConn) error {
	var failed error
	err := conn.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(unacknowledged.Milliseconds()))
	})
	if err != nil {
		return err
	}
	return failed
}
