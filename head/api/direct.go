package api

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"strconv"
	"syscall"

	"manta/internal/nowait"
)

// direct writes pieces of an answer straight to its connection, as chunks of
// HTTP/1.1 (RFC 9112, §7.1): a system call each, which does not wait. net/http has
// sent the header before, holds nothing back meanwhile, and writes the last chunk
// when the handler returns.
type direct struct {
	conn net.Conn
	raw  syscall.RawConn
	try  func(fd uintptr) // writes of rest what fd takes; sets took and failed
	rest []byte           // of the chunk that is sent in part; it lies in spare
	// spare is the buffer that is not in use.
	spare  bytes.Buffer
	took   int
	failed error
}

// chunkRoom leaves place for a chunk's head: its length in hexadecimal digits.
const chunkRoom = "00000000\r\n"

type connectionKey struct{}

// withConnection is http.Server's ConnContext.
func withConnection(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connectionKey{}, c)
}

// directly gives what writes an answer past net/http, nil where that can't be: the
// connection is not bare TCP, or the client is older than chunks.
func directly(r *http.Request) *direct {
	conn, ok := r.Context().Value(connectionKey{}).(*net.TCPConn)
	if !ok || !r.ProtoAtLeast(1, 1) || r.ProtoMajor != 1 {
		return nil
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil
	}
	d := &direct{conn: conn, raw: raw}
	d.try = d.write
	return d
}

// write writes what the connection takes of rest at once; none of it is no error.
func (d *direct) write(fd uintptr) {
	if d.took, d.failed = nowait.Write(fd, d.rest); d.failed == syscall.EAGAIN {
		d.failed = nil
	}
}

// send writes what the connection takes of a buffer that begins with chunkRoom, and
// reports whether that was all. The buffer is empty afterwards, unless what came
// before it is not sent yet.
func (d *direct) send(b *bytes.Buffer) (done bool, err error) {
	for {
		if len(d.rest) == 0 {
			if b.Len() == 0 {
				return true, nil
			}
			d.frame(b)
		}
		// Control, not Write: a deadline of an earlier wait says nothing here.
		if err := d.raw.Control(d.try); err != nil {
			return false, err
		}
		if d.rest = d.rest[d.took:]; len(d.rest) > 0 || d.failed != nil {
			return false, d.failed
		}
	}
}

// finish writes all of it, waiting within the connection's deadline.
func (d *direct) finish(b *bytes.Buffer) error {
	for len(d.rest) > 0 || b.Len() > 0 {
		if len(d.rest) == 0 {
			d.frame(b)
		}
		n, err := d.conn.Write(d.rest)
		if d.rest = d.rest[n:]; err != nil {
			return err
		}
	}
	return nil
}

// frame makes a chunk of the buffer, which is empty then.
func (d *direct) frame(b *bytes.Buffer) {
	b.WriteString("\r\n")
	data := b.Bytes()
	var digits [16]byte
	length := strconv.AppendInt(digits[:0], int64(len(data)-len(chunkRoom)-2), 16)
	from := len(chunkRoom) - 2 - len(length)
	copy(data[from:], length)
	d.rest = data[from:]
	*b, d.spare = d.spare, *b // the content stays where it is
	b.Reset()
}
