//go:build !linux

package sim

import "time"

// rest leaves it to a timer.
func rest(time.Duration) {}
