//go:build cuda

package cuda

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"manta/kernels"
)

// stagesOf opens two devices, on two GPUs where there are, and joins them.
func stagesOf(t *testing.T, rows, cols, depth int) (from, to *Ops, h kernels.Hop) {
	t.Helper()
	list, err := Devices()
	if err != nil || len(list) == 0 {
		t.Skipf("no GPU: %v", err)
	}
	var ops [2]*Ops
	for i := range ops {
		o, err := New(i%len(list), Options{Compute: kernels.F32})
		if err != nil {
			t.Fatal(err)
		}
		ops[i] = o.(*Ops)
		t.Cleanup(func() { o.Close() })
	}
	h, err = ops[0].Hop(ops[1], rows, cols, depth)
	if err != nil || h == nil {
		t.Fatalf("hop: %v, %v", h, err)
	}
	return ops[0], ops[1], h
}

// What a step of one stage leaves is what the step of the next begins with: every
// byte, with as many steps in flight as there may be, over devices' memory and over
// the host's.
func TestRowsBetweenStages(t *testing.T) {
	const cols, most, depth, steps = 1030, 65, 3, 40
	for _, way := range []string{"hop", "host"} {
		t.Run(way, func(t *testing.T) {
			from, to, h := stagesOf(t, most, cols, depth)
			h.Open()
			defer h.Close()
			random := rand.New(rand.NewPCG(3, 4))
			zeros := make([]float32, most*cols)
			hidden, input := tensor(t, from, most, cols, zeros), tensor(t, to, most, cols, zeros)
			var source, result [steps]kernels.Tensor
			var want [steps][]byte
			for i := range steps {
				n := 1 + random.IntN(most)
				want[i] = randomBytes(random, n*cols)
				source[i], result[i] = tensor(t, from, n, cols, zeros[:n*cols]), tensor(t, to, n, cols, zeros[:n*cols])
				if err := from.Put(source[i], want[i]); err != nil {
					t.Fatal(err)
				}
			}
			inFlight, onItsWay := make(chan struct{}, depth), make(chan []byte, depth)
			sent := make(chan kernels.Pending, steps)
			go func() {
				defer close(sent)
				for i := range steps {
					inFlight <- struct{}{}
					n := source[i].Rows
					if err := from.Begin(rowsWanted(n)); err != nil {
						t.Error(err)
						return
					}
					from.Gather(hidden.Top(n), source[i]) // what the step before left is gone
					if way == "hop" {
						h.Send(hidden.Top(n))
					} else {
						from.Take(hidden.Top(n), func(rows []byte) error { onItsWay <- bytes.Clone(rows); return nil })
					}
					sent <- from.End()
				}
			}()
			came := make(chan kernels.Pending, steps)
			go func() {
				defer close(came)
				for i := range steps {
					x := input.Top(source[i].Rows)
					if err := to.Begin(rowsWanted(x.Rows)); err != nil {
						t.Error(err)
						return
					}
					if way == "hop" {
						h.Receive(x)
					} else {
						to.Bring(x, func() ([]byte, error) { return <-onItsWay, nil })
					}
					to.Gather(result[i], x)
					came <- to.End()
				}
			}()
			for range steps {
				for _, p := range []kernels.Pending{<-sent, <-came} {
					if p == nil {
						t.FailNow()
					}
					if _, err := p.Wait(); err != nil {
						t.Fatal(err)
					}
				}
				<-inFlight
			}
			for i := range steps {
				got := make([]byte, len(want[i]))
				if err := to.Get(got, result[i]); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got, want[i]) {
					t.Errorf("step %d: other rows have come than were sent", i)
				}
			}
		})
	}
}

// rowsWanted is a batch without a model whose rows are all wanted.
func rowsWanted(n int) *kernels.Batch {
	b := &kernels.Batch{Tokens: make([]int32, n), Spans: []kernels.Span{{Count: n, Blocks: [][]int32{make([]int32, n/kernels.BlockTokens+1)}}}}
	for i := range int32(n) {
		b.Positions, b.Wanted = append(b.Positions, i), append(b.Wanted, i)
	}
	return b
}

// A stage whose rows do not come waits until its epoch ends; the device is well, and
// serves the next. So it is with rows that can't be sent.
func TestRowsThatDoNotCome(t *testing.T) {
	from, to, h := stagesOf(t, 4, 64, 2)
	x, y := tensor(t, from, 4, 64, make([]float32, 256)), tensor(t, to, 4, 64, make([]float32, 256))
	step := func(o *Ops, write func()) kernels.Pending {
		t.Helper()
		if err := o.Begin(oneRow()); err != nil {
			t.Fatal(err)
		}
		write()
		return o.End()
	}
	h.Open()
	waits := step(to, func() { h.Receive(y) })
	h.Close()
	if _, err := waits.Wait(); !errors.Is(err, kernels.ErrUnlinked) {
		t.Errorf("the epoch ended: %v", err)
	}
	lost := fmt.Errorf("lost")
	if _, err := step(to, func() { to.Bring(y, func() ([]byte, error) { return nil, lost }) }).Wait(); !errors.Is(err, lost) {
		t.Errorf("rows that are lost: %v", err)
	}
	if _, err := step(to, func() { to.Bring(y, func() ([]byte, error) { return make([]byte, 8), nil }) }).Wait(); err == nil {
		t.Error("8 bytes were taken for 1024")
	}
	if _, err := step(from, func() { from.Take(x, func([]byte) error { return lost }) }).Wait(); !errors.Is(err, lost) {
		t.Errorf("rows that can't be sent: %v", err)
	}
	h.Open()
	defer h.Close()
	sent, came := step(from, func() { h.Send(x) }), step(to, func() { h.Receive(y) })
	for _, p := range []kernels.Pending{sent, came} {
		if _, err := p.Wait(); err != nil {
			t.Errorf("the next epoch: %v", err)
		}
	}
}
