package nowait

import (
	"syscall"
	"testing"
)

// A read tells nothing yet, something, and the end apart.
func TestRead(t *testing.T) {
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(pair[1])
	p := make([]byte, 8)
	if n, err := Read(uintptr(pair[1]), p); n != 0 || err != syscall.EAGAIN {
		t.Errorf("nothing yet: %d, %v", n, err)
	}
	if n, err := Write(uintptr(pair[0]), []byte("abc")); n != 3 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	if n, err := Read(uintptr(pair[1]), p); string(p[:n]) != "abc" || err != nil {
		t.Errorf("%q, %v", p[:n], err)
	}
	syscall.Close(pair[0])
	if n, err := Read(uintptr(pair[1]), p); n != 0 || err != nil {
		t.Errorf("the end: %d, %v", n, err)
	}
}
