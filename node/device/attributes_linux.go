package device

import "syscall"

// attributes: a terminal's signals are for the node alone, and a node that is
// killed takes its processes along.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
