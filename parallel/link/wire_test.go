package link

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
)

// The sizes of a stage hop: rows × hidden values of float32.
var hops = []struct{ hidden, rows int }{{576, 1}, {576, 64}, {576, 512}, {8192, 1}, {8192, 64}, {8192, 512}}

// countingRelay stands before a peer's address and counts what is sent to it.
func countingRelay(t *testing.T, behind string) (address string, carried *atomic.Int64) {
	t.Helper()
	carried = new(atomic.Int64)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			in, err := listener.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", behind)
			if err != nil {
				in.Close()
				continue
			}
			running.Go(func() { defer in.Close(); io.Copy(in, out) })
			running.Go(func() { defer out.Close(); io.Copy(counter{out, carried}, in) })
		}
	})
	t.Cleanup(func() { listener.Close(); running.Wait() })
	return listener.Addr().String(), carried
}

type counter struct {
	to    io.Writer
	count *atomic.Int64
}

func (c counter) Write(data []byte) (int, error) {
	c.count.Add(int64(len(data)))
	return c.to.Write(data)
}

// What travels is the rows and, for each chunk of them, no more than a fiftieth of a
// TLS record: names, numbers, NATS and TLS.
func TestBytesOnTheWire(t *testing.T) {
	d := &directory{}
	a, b := start(t, d, headA, secret, nil), start(t, d, nodeB, secret, nil)
	address, carried := countingRelay(t, b.Address())
	d.set(nodeB, address)
	t.Cleanup(a.Close) // before the relay waits for its ends
	arrived := make(chan struct{}, 1)
	b.Handle("x", func(Message) { arrived <- struct{}{} })
	send := func(size int) int64 {
		before := carried.Load()
		if err := a.Send(soon(t), nodeB, Bulk, "x", make([]byte, size)); err != nil {
			t.Fatal(err)
		}
		select {
		case <-arrived:
		case <-soon(t).Done():
			t.Fatal("nothing came")
		}
		return carried.Load() - before
	}
	send(1 << 20) // a TLS connection begins with small records
	for _, h := range hops {
		size := h.hidden * h.rows * 4
		took := send(size)
		t.Logf("%d rows of %d: %d bytes, %d on the wire, %.4f", h.rows, h.hidden, size, took, float64(took)/float64(size))
		chunks := int64(size/(recordBytes*49/50) + 1)
		if most := int64(size) + chunks*recordBytes/50; took > most {
			t.Errorf("%d rows of %d: %d bytes on the wire, at most %d", h.rows, h.hidden, took, most)
		}
	}
}
