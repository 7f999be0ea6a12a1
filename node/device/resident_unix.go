//go:build unix && !linux

package device

// resident is not known here.
func resident() int64 { return 0 }
