//go:build unix && !linux

package device

import "syscall"

// attributes: a terminal's signals are for the node alone. A node that is killed
// cuts the life line, which is all there is here.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
