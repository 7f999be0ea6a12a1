package comm

import (
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"testing"

	"golang.org/x/sync/errgroup"

	"manta/kernels/ref"
)

// Every rank ends with the same bits: the sum in rank order, which in float32 is
// not the sum in another order.
func TestAllReduceAddsInRankOrder(t *testing.T) {
	values := []float32{1e8, 1, -1e8, 0.25} // in rank order: ((1e8 + 1) - 1e8) + 0.25
	want := ((values[0] + values[1]) + values[2]) + values[3]
	l := NewLocal(len(values))
	got := make([]float32, len(values))
	var run errgroup.Group
	for rank, v := range values {
		run.Go(func() error {
			ops := ref.New()
			defer ops.Close()
			x, err := ops.Tensor(2, 3)
			if err != nil {
				return err
			}
			bytes := make([]byte, 2*ops.RowBytes(x))
			for i := 0; i < len(bytes); i += 4 {
				binary.LittleEndian.PutUint32(bytes[i:], math.Float32bits(v))
			}
			if err := ops.Put(x, bytes); err != nil {
				return err
			}
			for range 50 { // the rounds must not mix
				if err := ops.Put(x, bytes); err != nil {
					return err
				}
				if err := l.Rank(rank).AllReduce(ops, x); err != nil {
					return err
				}
			}
			err = ops.Get(bytes, x)
			got[rank] = math.Float32frombits(binary.LittleEndian.Uint32(bytes[len(bytes)-4:]))
			return err
		})
	}
	if err := run.Wait(); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, []float32{want, want, want, want}) {
		t.Errorf("ranks hold %v, want %v each", got, want)
	}
}

// Parts of unlike width stand side by side, row by row.
func TestAllGather(t *testing.T) {
	l := NewLocal(2)
	out := make([][]byte, 2)
	var run errgroup.Group
	for rank, width := range []int{1, 2} {
		run.Go(func() error {
			ops := ref.New()
			defer ops.Close()
			part, err := ops.Tensor(2, width)
			if err != nil {
				return err
			}
			whole, err := ops.Tensor(2, 3)
			if err != nil {
				return err
			}
			bytes := make([]byte, 2*width*4)
			for i := range 2 * width {
				binary.LittleEndian.PutUint32(bytes[4*i:], math.Float32bits(float32(10*rank+i)))
			}
			if err := errors.Join(ops.Put(part, bytes), l.Rank(rank).AllGather(ops, whole, part)); err != nil {
				return err
			}
			out[rank] = make([]byte, 24)
			return ops.Get(out[rank], whole)
		})
	}
	if err := run.Wait(); err != nil {
		t.Fatal(err)
	}
	for rank := range out {
		var got []float32
		for i := 0; i < 24; i += 4 {
			got = append(got, math.Float32frombits(binary.LittleEndian.Uint32(out[rank][i:])))
		}
		if want := []float32{0, 10, 11, 1, 12, 13}; !slices.Equal(got, want) {
			t.Errorf("rank %d: %v, want %v", rank, got, want)
		}
	}
}

// A rank that never comes does not hold the others for ever.
func TestCloseEndsWaits(t *testing.T) {
	l := NewLocal(2)
	ops := ref.New()
	defer ops.Close()
	x, err := ops.Tensor(1, 1)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() { ended <- l.Rank(0).AllReduce(ops, x) }()
	l.Close()
	if err := <-ended; !errors.Is(err, ErrClosed) {
		t.Errorf("got %v, want ErrClosed", err)
	}
}
