package comm

import (
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"testing"

	"github.com/fxamacker/cbor/v2"
	"golang.org/x/sync/errgroup"

	"manta/kernels/ref"
)

// Every rank ends with the same bits: the sum in rank order, which in float32 is
// not the sum in another order.
func TestAllReduceAddsInRankOrder(t *testing.T) {
	values := []float32{1e8, 1, -1e8, 0.25} // in rank order: ((1e8 + 1) - 1e8) + 0.25
	want := ((values[0] + values[1]) + values[2]) + values[3]
	m := NewMesh(Here(1, len(values)), "", 1, nil)
	got := make([]float32, len(values))
	var run errgroup.Group
	for rank, v := range values {
		reduce := m.Reducer(0, rank)
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
				if err := reduce.AllReduce(ops, x); err != nil {
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

// Parts of unlike width stand side by side, row by row, on rank 0.
func TestGather(t *testing.T) {
	m := NewMesh(Here(1, 2), "", 1, nil)
	var out []byte
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
			if err := errors.Join(ops.Put(part, bytes), m.Reducer(0, rank).Gather(ops, whole, part)); err != nil || rank > 0 {
				return err
			}
			out = make([]byte, 24)
			return ops.Get(out, whole)
		})
	}
	if err := run.Wait(); err != nil {
		t.Fatal(err)
	}
	var got []float32
	for i := 0; i < 24; i += 4 {
		got = append(got, math.Float32frombits(binary.LittleEndian.Uint32(out[i:])))
	}
	if want := []float32{0, 10, 11, 1, 12, 13}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// A rank that never comes does not hold the others for ever.
func TestCloseEndsWaits(t *testing.T) {
	m := NewMesh(Here(1, 2), "", 1, nil)
	ops := ref.New()
	defer ops.Close()
	x, err := ops.Tensor(1, 1)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() { ended <- m.Reducer(0, 0).AllReduce(ops, x) }()
	m.Close()
	if err := <-ended; !errors.Is(err, ErrClosed) {
		t.Errorf("got %v, want ErrClosed", err)
	}
}

// Two nodes' meshes joined by their carriers behave as one; a message that does
// not belong is refused.
func TestMeshAcrossNodes(t *testing.T) {
	nodes := [][]string{{"a", "b"}, {"b", "a"}}
	meshes := make(map[string]*Mesh)
	for _, self := range []string{"a", "b"} {
		meshes[self] = NewMesh(nodes, self, 2, func(node string, _ bool, head, rows []byte) error {
			return meshes[node].Deliver(slices.Concat(head, rows))
		})
	}
	rows := []byte{1, 2, 3, 4}
	for step := range uint64(3) {
		if err := meshes["a"].Pipe(0, 0).Send(step, rows); err != nil {
			t.Fatal(err)
		}
		got, err := meshes["b"].Pipe(1, 0).Receive(step)
		if err != nil || !slices.Equal(got, rows) {
			t.Fatalf("step %d: received %v, %v", step, got, err)
		}
		if err := meshes["b"].Pipe(1, 0).Tell(step, []Drawn{{Sequence: 7, Token: 9}}); err != nil {
			t.Fatal(err)
		}
		for rank, node := range nodes[0] {
			id, tokens, ok, err := meshes[node].Pipe(0, rank).Hear(true)
			if err != nil || !ok || id != step || len(tokens) != 1 || tokens[0].Token != 9 {
				t.Fatalf("rank %d heard %d %v, %v", rank, id, tokens, err)
			}
		}
	}
	if _, _, ok, err := meshes["a"].Pipe(0, 0).Hear(false); ok || err != nil {
		t.Errorf("heard what nobody told: %v, %v", ok, err)
	}
	if err := meshes["a"].Deliver([]byte("nonsense")); !errors.Is(err, ErrProtocol) {
		t.Errorf("nonsense: %v", err)
	}
	foreign := message{Kind: hidden, From: Place{0, 0}, To: Place{1, 0}} // that rank is on b
	data, err := cbor.Marshal(foreign)
	if err != nil {
		t.Fatal(err)
	}
	if err := meshes["a"].Deliver(data); !errors.Is(err, ErrProtocol) {
		t.Errorf("another node's message: %v", err)
	}
	meshes["a"].Close()
	if err := meshes["a"].Pipe(0, 0).Send(9, rows); !errors.Is(err, ErrClosed) {
		t.Errorf("send after the end: %v", err)
	}
}
