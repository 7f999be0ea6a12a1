//go:build unix

package nowait

import (
	"syscall"
	"testing"
)

// A socket takes what it has room for, then says EAGAIN instead of waiting; what came
// out of it is what went in.
func TestNothingWaits(t *testing.T) {
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range pair {
		if err := syscall.SetNonblock(fd, true); err != nil {
			t.Fatal(err)
		}
		defer syscall.Close(fd)
	}
	piece := make([]byte, 4096)
	written := 0
	for {
		n, err := Write(uintptr(pair[0]), piece)
		if err == syscall.EAGAIN {
			break
		}
		if err != nil || n == 0 {
			t.Fatalf("%d bytes, %v", n, err)
		}
		written += n
	}
	read := 0
	for {
		n, err := syscall.Read(pair[1], piece)
		if err == syscall.EAGAIN {
			break
		}
		if err == syscall.EINTR {
			continue
		}
		if err != nil || n == 0 {
			t.Fatalf("%d bytes, %v", n, err)
		}
		read += n
	}
	if written == 0 || read != written {
		t.Errorf("wrote %d bytes, read %d", written, read)
	}
	if n, err := Write(uintptr(pair[0]), piece); n != len(piece) || err != nil {
		t.Errorf("with room again: %d bytes, %v", n, err)
	}
}
