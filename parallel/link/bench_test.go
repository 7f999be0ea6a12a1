//go:build !windows

package link

import (
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"manta/internal/trust"
)

// hopRounds is how often a benchmark goes round: both sides have a turn in each, so
// that what else the machine does meets both alike.
const hopRounds = 40

// BenchmarkHop sends a message to a receiver's handler and waits for it, by link and
// by bare TLS with a length before each message. What it prints is the median over
// the rounds: times of one hop, by the clock and by the processor, and their ratios:
// what NATS, chunks and credit cost.
func BenchmarkHop(b *testing.B) {
	for _, h := range hops {
		size := h.hidden * h.rows * 4
		b.Run(fmt.Sprintf("%dx%d", h.rows, h.hidden), func(b *testing.B) {
			byLink, byTLS := linkHop(b, size), tlsHop(b, size)
			times := max(4, (4<<20)/size)
			byLink(times + 64) // the first 128 KiB of a TLS connection travel in small records
			byTLS(times + 64)
			var link, bare []cost
			for b.Loop() {
				link, bare = link[:0], bare[:0]
				for range hopRounds {
					link = append(link, measure(b, times, byLink))
					bare = append(bare, measure(b, times, byTLS))
				}
			}
			b.ReportMetric(0, "ns/op")
			median := func(of func(i int) float64) float64 {
				values := make([]float64, hopRounds)
				for i := range values {
					values[i] = of(i)
				}
				slices.Sort(values)
				return values[hopRounds/2]
			}
			b.ReportMetric(median(func(i int) float64 { return link[i].clock }), "link-µs")
			b.ReportMetric(median(func(i int) float64 { return bare[i].clock }), "tls-µs")
			b.ReportMetric(median(func(i int) float64 { return link[i].clock / bare[i].clock }), "clock-ratio")
			b.ReportMetric(median(func(i int) float64 { return link[i].cpu }), "link-cpu-µs")
			b.ReportMetric(median(func(i int) float64 { return bare[i].cpu }), "tls-cpu-µs")
			b.ReportMetric(median(func(i int) float64 { return link[i].cpu / bare[i].cpu }), "cpu-ratio")
		})
	}
}

// A cost is what one hop took, in µs.
type cost struct{ clock, cpu float64 }

func measure(b *testing.B, times int, hop func(times int)) cost {
	start, used := time.Now(), cpuTime(b)
	hop(times)
	return cost{
		clock: time.Since(start).Seconds() * 1e6 / float64(times),
		cpu:   (cpuTime(b) - used).Seconds() * 1e6 / float64(times),
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

// linkHop gives a function that sends a message by link as often as it is told.
func linkHop(b *testing.B, size int) func(times int) {
	d := &directory{}
	join := func(id trust.Identity) *Link {
		l, err := Start(Config{
			Authority: authority(b, id, secret), Listen: "127.0.0.1:0", Resolve: d.resolve, Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(l.Close)
		d.set(id, l.Address())
		return l
	}
	from, to := join(headA), join(nodeB)
	arrived := make(chan int, 1)
	to.Handle("hop", func(m Message) { arrived <- len(m.Data) })
	data := make([]byte, size)
	return func(times int) {
		for range times {
			if err := from.Send(b.Context(), nodeB, Bulk, "hop", data); err != nil {
				b.Fatal(err)
			}
			if n := <-arrived; n != size {
				b.Fatalf("%d bytes of %d", n, size)
			}
		}
	}
}

// tlsHop does the same over a connection with nothing around the message.
func tlsHop(b *testing.B, size int) func(times int) {
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
		conn := tls.Server(raw, authority(b, nodeB, secret).Server())
		var length [8]byte
		data := make([]byte, size)
		for {
			if _, err := io.ReadFull(conn, length[:]); err != nil {
				return
			}
			if _, err := io.ReadFull(conn, data[:binary.LittleEndian.Uint64(length[:])]); err != nil {
				return
			}
			arrived <- len(data)
		}
	}()
	raw, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	conn := tls.Client(raw, authority(b, headA, secret).Client(nodeB))
	b.Cleanup(func() { conn.Close(); <-ended })
	if err := conn.HandshakeContext(b.Context()); err != nil {
		b.Fatal(err)
	}
	data := make([]byte, 8+size)
	binary.LittleEndian.PutUint64(data, uint64(size))
	return func(times int) {
		for range times {
			if _, err := conn.Write(data); err != nil {
				b.Fatal(err)
			}
			<-arrived
		}
	}
}
