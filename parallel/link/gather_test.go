package link

import (
	"bytes"
	"net"
	"slices"
	"testing"
	"time"
)

// written is a connection that keeps what each write brought.
type written struct {
	net.Conn
	writes [][]byte
}

func (w *written) Write(p []byte) (int, error) {
	w.writes = append(w.writes, bytes.Clone(p))
	return len(p), nil
}

func (*written) SetWriteDeadline(time.Time) error { return nil }

// Whatever is held back goes out in order and whole: with what ends the message, when
// there is enough of it, and when the sender is about to wait.
func TestGatherer(t *testing.T) {
	record := func(b byte) []byte { return bytes.Repeat([]byte{b}, recordBytes+22) }
	for _, test := range []struct {
		name string
		do   func(g *gatherer)
		want []int // records in each write
	}{
		{"one", func(g *gatherer) { g.Write(record(1)) }, []int{1}},
		{"with the last", func(g *gatherer) {
			g.hold(true)
			g.Write(record(1))
			g.Write(record(2))
			g.hold(false)
			g.Write(record(3))
		}, []int{3}},
		{"enough", func(g *gatherer) {
			g.hold(true)
			for b := range byte(9) {
				g.Write(record(b))
			}
			g.hold(false)
			g.Write(record(9))
		}, []int{4, 4, 2}},
		{"before a wait", func(g *gatherer) {
			g.hold(true)
			g.Write(record(1))
			g.flush()
			g.Write(record(2)) // the client library's
			g.flush()
		}, []int{1, 1}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := &written{}
			test.do(&gatherer{Conn: w})
			var got []int
			var last byte
			for _, p := range w.writes {
				if p[0] < last {
					t.Errorf("record %d follows %d", p[0], last)
				}
				got, last = append(got, len(p)/len(record(0))), p[len(p)-1]
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("writes of %v records, want %v", got, test.want)
			}
		})
	}
}
