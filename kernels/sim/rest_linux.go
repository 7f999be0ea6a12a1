package sim

import (
	"syscall"
	"time"
)

// rest sleeps for less than grain, or a little longer.
func rest(d time.Duration) {
	t := syscall.NsecToTimespec(int64(d))
	_ = syscall.Nanosleep(&t, nil) // one that is cut short is made up for by a timer
}
