//go:build unix && !linux

package weights

import "golang.org/x/sys/unix"

func adviseHuge([]byte) {}

func populate(data []byte) { touch(data) }

func drop([]byte) {}

func readAhead(data []byte) {
	_ = unix.Madvise(data, unix.MADV_WILLNEED)
}
