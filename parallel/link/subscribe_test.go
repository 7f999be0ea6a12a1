package link

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
)

// scripted is a connection that reads what a server says and keeps what it is told.
type scripted struct {
	net.Conn
	says io.Reader
	told bytes.Buffer
}

func (s *scripted) Read(p []byte) (int, error)  { return s.says.Read(p) }
func (s *scripted) Write(p []byte) (int, error) { return s.told.Write(p) }
func (*scripted) Close() error                  { return nil }

// Messages come whole whatever their size: chunks of an earlier version are larger than
// the buffer. Pings are answered, and what is no NATS ends the connection.
func TestSubscriberReads(t *testing.T) {
	sizes := []int{0, 1, recordBytes, inboxBuffer - 2, inboxBuffer - 1, inboxBuffer, 1 << 20}
	var says strings.Builder
	for i, size := range sizes {
		fmt.Fprintf(&says, "MSG node.b.c.node.a.k%d 1 %d\r\n%s\r\nPING\r\n", i, size, strings.Repeat(string(rune('a'+i)), size))
	}
	says.WriteString("MSG node.b.c.node.a.x 1 many\r\n")
	conn := &scripted{says: strings.NewReader(says.String())}
	s := newReader(conn, inboxBuffer)
	next := 0
	err := s.run(func(subject, data []byte) {
		if want := fmt.Sprintf("node.b.c.node.a.k%d", next); string(subject) != want {
			t.Fatalf("subject %q, want %q", subject, want)
		}
		if len(data) != sizes[next] || strings.Trim(string(data), string(rune('a'+next))) != "" {
			t.Fatalf("message %d: %d bytes, want %d of %c", next, len(data), sizes[next], 'a'+next)
		}
		next++
	})
	if !errors.Is(err, ErrProtocol) || next != len(sizes) {
		t.Fatalf("%v after %d messages", err, next)
	}
	if got, want := conn.told.String(), strings.Repeat("PONG\r\n", len(sizes)); got != want {
		t.Errorf("told %q", got)
	}
}

// Whatever a server says, reading ends with an error.
func FuzzSubscriber(f *testing.F) {
	f.Add([]byte("MSG a.b 1 3\r\nabc\r\nPING\r\nINFO {}\r\n-ERR 'x'\r\n"))
	f.Add([]byte("MSG a.b 1 9999999\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s := newReader(&scripted{says: bytes.NewReader(data)}, inboxBuffer)
		if err := s.run(func(subject, data []byte) {}); err == nil {
			t.Fatal("it ended without an error")
		}
	})
}
