package link

import (
	"testing"

	"manta/internal/relay"
)

// The sizes of a stage hop: rows × hidden values of float32.
var hops = []struct{ hidden, rows int }{{576, 1}, {576, 64}, {576, 512}, {8192, 1}, {8192, 64}, {8192, 512}}

// What travels is the rows and, for each chunk of them, no more than a fiftieth of a
// TLS record: names, numbers, NATS and TLS.
func TestBytesOnTheWire(t *testing.T) {
	d := &directory{}
	a, b := start(t, d, headA, secret, nil), start(t, d, nodeB, secret, nil)
	way, err := relay.Start(b.Address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(way.Close)
	d.set(nodeB, way.Address())
	arrived := make(chan struct{}, 1)
	b.Handle("x", func(Message) { arrived <- struct{}{} })
	send := func(size int) int64 {
		before, _ := way.Carried()
		if err := a.Send(soon(t), nodeB, Bulk, "x", make([]byte, size)); err != nil {
			t.Fatal(err)
		}
		select {
		case <-arrived:
		case <-soon(t).Done():
			t.Fatal("nothing came")
		}
		after, _ := way.Carried()
		return after - before
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
