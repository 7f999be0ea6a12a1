//go:build !windows

package link

import (
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"manta/internal/trust"
)

// The sizes of a stage hop: rows × hidden values of float32.
var hops = []struct{ hidden, rows int }{{576, 1}, {576, 64}, {576, 512}, {8192, 1}, {8192, 64}, {8192, 512}}

// BenchmarkHop times one message from a sender to the receiver's handler and a
// word back, by link and by bare TLS with a length before each message: the ratio
// is what NATS, chunks and credit cost.
func BenchmarkHop(b *testing.B) {
	for _, h := range hops {
		size := h.hidden * h.rows * 4
		b.Run(fmt.Sprintf("link/%dx%d", h.rows, h.hidden), func(b *testing.B) { benchLink(b, size) })
		b.Run(fmt.Sprintf("tls/%dx%d", h.rows, h.hidden), func(b *testing.B) { benchTLS(b, size) })
	}
}

// cpuTime is what the process has used of its cores: on a busy machine it says
// more than the clock.
func cpuTime(b *testing.B) time.Duration {
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// reportCPU adds the processor time of an operation.
func reportCPU(b *testing.B, since time.Duration) {
	b.ReportMetric(float64(cpuTime(b)-since)/float64(b.N), "cpu-ns/op")
}

func benchAuthority(b *testing.B, id trust.Identity) *trust.Authority {
	a, err := trust.NewAuthority(trust.Secrets{[]byte(secret)}, id)
	if err != nil {
		b.Fatal(err)
	}
	return a
}

func benchLink(b *testing.B, size int) {
	d := &directory{}
	make2 := func(id trust.Identity) *Link {
		l, err := Start(Config{
			Authority: benchAuthority(b, id), Listen: "127.0.0.1:0", Resolve: d.resolve, Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(l.Close)
		d.set(id, l.Address())
		return l
	}
	from, to := make2(headA), make2(nodeB)
	arrived := make(chan int, 1)
	to.Handle("hop", func(m Message) { arrived <- len(m.Data) })
	data := make([]byte, size)
	b.SetBytes(int64(size))
	defer reportCPU(b, cpuTime(b))
	for b.Loop() {
		if err := from.Send(b.Context(), nodeB, Bulk, "hop", data); err != nil {
			b.Fatal(err)
		}
		if n := <-arrived; n != size {
			b.Fatalf("%d bytes of %d", n, size)
		}
	}
}

func benchTLS(b *testing.B, size int) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer listener.Close()
	arrived := make(chan int, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		raw, err := listener.Accept()
		if err != nil {
			return
		}
		defer raw.Close()
		conn := tls.Server(raw, benchAuthority(b, nodeB).Server())
		var length [8]byte
		for {
			if _, err := io.ReadFull(conn, length[:]); err != nil {
				return
			}
			data := make([]byte, binary.LittleEndian.Uint64(length[:]))
			if _, err := io.ReadFull(conn, data); err != nil {
				return
			}
			arrived <- len(data)
		}
	}()
	raw, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	conn := tls.Client(raw, benchAuthority(b, headA).Client(nodeB))
	data := make([]byte, 8+size)
	binary.LittleEndian.PutUint64(data, uint64(size))
	b.SetBytes(int64(size))
	defer reportCPU(b, cpuTime(b))
	for b.Loop() {
		if _, err := conn.Write(data); err != nil {
			b.Fatal(err)
		}
		<-arrived
	}
	conn.Close()
	<-ended
}
