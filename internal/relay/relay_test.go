package relay

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// What is sent arrives and is counted; nothing passes a cut, new connections neither,
// and all goes on when it is mended.
func TestRelay(t *testing.T) {
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	go func() {
		for {
			conn, err := echo.Accept()
			if err != nil {
				return
			}
			go func() { defer conn.Close(); io.Copy(conn, conn) }()
		}
	}()
	r, err := Start(echo.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	dial := func() net.Conn {
		conn, err := net.Dial("tcp", r.Address())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	send := func(conn net.Conn) {
		if _, err := io.WriteString(conn, "hello"); err != nil {
			t.Fatal(err)
		}
	}
	hear := func(conn net.Conn) {
		if _, err := io.ReadFull(conn, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
	}
	first := dial()
	send(first)
	hear(first)
	if forth, back := r.Carried(); forth != 5 || back != 5 {
		t.Fatalf("%d bytes forth, %d back", forth, back)
	}
	r.Cut()
	second := dial()
	for _, conn := range []net.Conn{first, second} {
		send(conn)
		if err := conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("through a cut: %v", err)
		}
		if err := conn.SetReadDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
	}
	r.Mend()
	hear(first)
	hear(second)
}
