//go:build cuda

package cuda

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"manta/kernels"
)

// linkedRanks opens ranks that are joined, on as many GPUs as there are.
func linkedRanks(t testing.TB, n, way int, o Options) ([]*Ops, []kernels.Reducer, kernels.Link) {
	t.Helper()
	// Streams that wait for each other must not share one of the device's queues.
	if t, ok := t.(*testing.T); ok {
		t.Setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32")
	}
	list, err := Devices()
	if err != nil || len(list) == 0 {
		t.Skipf("no GPU: %v", err)
	}
	ranks, all := make([]*Ops, n), make([]kernels.Ops, n)
	for r := range n {
		all[r], err = New(r%len(list), o)
		if err != nil {
			t.Fatal(err)
		}
		ranks[r] = all[r].(*Ops)
		t.Cleanup(func() { ranks[r].Close() })
	}
	l, err := ranks[0].Link(all)
	if err != nil || l == nil {
		t.Fatalf("link: %v, %v", l, err)
	}
	l.(*link).way = way
	l.Open()
	t.Cleanup(l.Close)
	reducers := make([]kernels.Reducer, n)
	for r := range n {
		reducers[r] = l.Reducer(r)
	}
	return ranks, reducers, l
}

// onRanks runs f for every rank at once.
func onRanks(t testing.TB, n int, f func(r int) error) {
	t.Helper()
	errs := make([]error, n)
	var all sync.WaitGroup
	for r := range n {
		all.Go(func() { errs[r] = f(r) })
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// oneRow is a batch without a model: collectives need none.
func oneRow() *kernels.Batch {
	return &kernels.Batch{Tokens: []int32{1}, Positions: []int32{0}, Spans: []kernels.Span{{Count: 1, Blocks: [][]int32{{0}}}}}
}

func randomBytes(random *rand.Rand, floats int) []byte {
	b := make([]byte, 4*floats)
	for i := range floats {
		v := float32(random.NormFloat64() * math.Exp(random.NormFloat64()*4))
		binary.LittleEndian.PutUint32(b[4*i:], math.Float32bits(v))
	}
	return b
}

// addTo is what the reduction over the host does (parallel/comm).
func addTo(sum, part []byte) {
	little := binary.LittleEndian
	for i := 0; i < len(sum); i += 4 {
		v := math.Float32frombits(little.Uint32(sum[i:])) + math.Float32frombits(little.Uint32(part[i:]))
		little.PutUint32(sum[i:], math.Float32bits(v))
	}
}

// Whatever the way and the size, a sum over ranks has the bits of one over the host
// in rank order, step after step and as a graph; so has what it is added to.
func TestSumsOverRanksAreTheHosts(t *testing.T) {
	for _, n := range []int{2, 3, 4} {
		for _, way := range []int{pushedOnce, pushedTwice, readThere, anyWay} {
			t.Run(fmt.Sprintf("%d ranks, way %d", n, way), func(t *testing.T) {
				ranks, reducers, _ := linkedRanks(t, n, way, Options{Compute: kernels.F32, Patience: 20 * time.Second})
				for _, size := range [][2]int{{1, 1}, {1, 2}, {1, 7}, {1, 13}, {1, 576}, {3, 1001}, {8, 4096}, {33, 2050}, {64, 4096}, {300, 4098}} {
					sumsOnce(t, ranks, reducers, size[0], size[1])
				}
			})
		}
	}
}

func sumsOnce(t *testing.T, ranks []*Ops, reducers []kernels.Reducer, rows, cols int) {
	t.Helper()
	const steps, sums = 6, 5 // from the third step on as a graph
	n, random := len(ranks), rand.New(rand.NewPCG(uint64(rows), uint64(cols)))
	x, y, parts := make([]kernels.Tensor, n), make([]kernels.Tensor, n), make([][]byte, n)
	for r, o := range ranks {
		x[r], _ = o.Tensor(rows, cols)
		y[r], _ = o.Tensor(rows, cols)
		parts[r] = randomBytes(random, rows*cols)
	}
	start := randomBytes(random, rows*cols)
	sum, total := append([]byte(nil), parts[0]...), append([]byte(nil), start...)
	for _, p := range parts[1:] {
		addTo(sum, p)
	}
	// Sums of sums: each adds what all hold by then.
	want := append([]byte(nil), sum...)
	for i := range sums {
		if i > 0 {
			again := append([]byte(nil), want...)
			for range n - 1 {
				addTo(again, want)
			}
			want = again
		}
		addTo(total, want)
	}
	for step := range steps {
		onRanks(t, n, func(r int) error {
			o := ranks[r]
			if err := errors.Join(o.Put(y[r], parts[r]), o.Put(x[r], start), o.Begin(oneRow())); err != nil {
				return err
			}
			for range sums {
				if err := reducers[r].AllReduce(o, y[r]); err != nil {
					return err
				}
				o.Add(x[r], y[r], nil)
			}
			if _, err := o.End().Wait(); err != nil {
				return err
			}
			for _, is := range []struct {
				name string
				t    kernels.Tensor
				want []byte
			}{{"sum", y[r], want}, {"total", x[r], total}} {
				got := make([]byte, len(is.want))
				if err := o.Get(got, is.t); err != nil {
					return err
				}
				for i := 0; i < len(got); i += 4 {
					g, w := binary.LittleEndian.Uint32(got[i:]), binary.LittleEndian.Uint32(is.want[i:])
					if g != w && !(math.IsNaN(float64(math.Float32frombits(g))) && math.IsNaN(float64(math.Float32frombits(w)))) {
						return fmt.Errorf("%d×%d, step %d, rank %d: %s at %d is %x, want %x", rows, cols, step, r, is.name, i/4, g, w)
					}
				}
			}
			return nil
		})
	}
}

// Ranks' columns come to stand side by side on every rank, uneven ones too.
func TestGatherOverRanks(t *testing.T) {
	for _, widths := range [][]int{{8, 8}, {5, 3}, {64, 32, 96}, {1, 2, 3, 4}, {4096, 4096, 4096, 4096}} {
		n, width := len(widths), 0
		for _, w := range widths {
			width += w
		}
		ranks, reducers, _ := linkedRanks(t, n, anyWay, Options{Compute: kernels.F32, Patience: 20 * time.Second})
		const rows = 5
		random := rand.New(rand.NewPCG(uint64(width), 1))
		want, at := make([]byte, 4*rows*width), 0
		parts := make([][]byte, n)
		for r, w := range widths {
			parts[r] = randomBytes(random, rows*w)
			for row := range rows {
				copy(want[4*(row*width+at):], parts[r][4*row*w:4*(row+1)*w])
			}
			at += w
		}
		onRanks(t, n, func(r int) error {
			o := ranks[r]
			part, err := o.Tensor(rows, widths[r])
			if err != nil {
				return err
			}
			out, err := o.Tensor(rows, width)
			if err != nil {
				return err
			}
			for range 4 {
				if err := errors.Join(o.Put(part, parts[r]), o.Begin(oneRow()), reducers[r].Gather(o, out, part)); err != nil {
					return err
				}
				if _, err := o.End().Wait(); err != nil {
					return err
				}
				got := make([]byte, len(want))
				if err := o.Get(got, out); err != nil {
					return err
				}
				if r == 0 && string(got) != string(want) {
					return fmt.Errorf("widths %v: rank %d gathered other values", widths, r)
				}
			}
			return nil
		})
	}
}

// A rank whose kernel waits in vain says for whom, and its device counts as lost.
func TestARankThatNeverArrivesIsNoticed(t *testing.T) {
	for _, way := range []int{pushedOnce, pushedTwice, readThere} {
		ranks, reducers, l := linkedRanks(t, 2, way, Options{Compute: kernels.F32, Patience: 200 * time.Millisecond})
		y := make([]kernels.Tensor, 2)
		for r, o := range ranks {
			y[r], _ = o.Tensor(1, 64)
		}
		pending := make([]kernels.Pending, 2)
		onRanks(t, 2, func(r int) error {
			o := ranks[r]
			if err := o.Begin(oneRow()); err != nil {
				return err
			}
			if err := reducers[r].AllReduce(o, y[r]); err != nil {
				return err
			}
			if r == 1 { // it meets the other, but what it launches is nothing
				o.step.list, o.step.names = nil, nil
			}
			pending[r] = o.End()
			return nil
		})
		if _, err := pending[0].Wait(); !errors.Is(err, ErrDevice) {
			t.Errorf("way %d: rank 0 says %v, want ErrDevice", way, err)
		} else {
			t.Log(err)
		}
		l.Close()
		pending[1].Wait() //nolint:errcheck // it did nothing
	}
}

// A step that not all ranks come to is launched on none, and the devices go on in
// the next epoch.
func TestAnEpochEndsWhereNotAllRanksCome(t *testing.T) {
	ranks, reducers, l := linkedRanks(t, 2, anyWay, Options{Compute: kernels.F32, Patience: 20 * time.Second})
	sumsOnce(t, ranks, reducers, 2, 100)
	y, _ := ranks[0].Tensor(2, 100)
	if _, err := ranks[1].Tensor(2, 100); err != nil {
		t.Fatal(err)
	}
	reducer := reducers[0].(*linked)
	for known, parts := range reducer.known { // a tensor that both know
		y.Mem = known
		_ = parts
		break
	}
	if err := errors.Join(ranks[0].Begin(oneRow()), reducer.AllReduce(ranks[0], y)); err != nil {
		t.Fatal(err)
	}
	pending := ranks[0].End()
	l.Close()
	if _, err := pending.Wait(); !errors.Is(err, kernels.ErrUnlinked) || errors.Is(err, ErrDevice) {
		t.Fatalf("got %v, want ErrUnlinked alone", err)
	}
	l.Open()
	sumsOnce(t, ranks, reducers, 2, 100)
}

// BenchmarkSumsOverRanks is the time of one sum within a graph of 64. Ranks that
// share a device tell what the kernels cost, not what a link does.
func BenchmarkSumsOverRanks(b *testing.B) {
	list, _ := Devices()
	for _, n := range []int{max(2, len(list))} {
		for _, way := range []int{pushedOnce, pushedTwice, readThere} {
			ranks, reducers, _ := linkedRanks(b, n, way, Options{Compute: kernels.F32})
			for _, rows := range []int{1, 8, 16, 32, 64, 128, 256, 512, 1024, 4096} {
				const cols, sums = 4096, 64
				if way != readThere && 4*rows*cols > twiceBytes {
					continue
				}
				y := make([]kernels.Tensor, n)
				for r, o := range ranks {
					y[r], _ = o.Tensor(rows, cols)
				}
				b.Run(fmt.Sprintf("%d ranks, way %d, %d×%d", n, way, rows, cols), func(b *testing.B) {
					step := func(r int) error {
						o := ranks[r]
						if err := o.Begin(oneRow()); err != nil {
							return err
						}
						for range sums {
							if err := reducers[r].AllReduce(o, y[r]); err != nil {
								return err
							}
						}
						_, err := o.End().Wait()
						return err
					}
					for range captureAt + 1 {
						onRanks(b, n, step)
					}
					best := time.Hour
					for b.Loop() {
						for range 20 {
							since := time.Now()
							onRanks(b, n, step)
							best = min(best, time.Since(since))
						}
					}
					b.ReportMetric(float64(best.Nanoseconds())/sums/1000, "µs/sum")
				})
			}
		}
	}
}

// BenchmarkRanks prints the time of steps over as many tensor ranks as there are GPUs.
func BenchmarkRanks(b *testing.B) {
	list, err := Devices()
	if err != nil || len(list) < 2 {
		b.Skipf("%d GPUs (%v)", len(list), err)
	}
	n := len(list)
	for _, s := range wantedShapes() {
		ranks, reducers, _ := linkedRanks(b, n, anyWay, Options{Compute: kernels.BF16, Seats: 256})
		const most = 8192
		dummies := make([]*dummy, n)
		onRanks(b, n, func(r int) error {
			d := newDummy(b, ranks[r], s.of(n), most, 256, 257*33+most/16+2)
			d.reduce, d.part = reducers[r], must(d.o.Tensor(most, s.hidden))
			if d.gathered = d.logitsT; r == 0 {
				d.gathered = must(d.o.Tensor(256, s.vocabulary))
			}
			dummies[r] = d
			return nil
		})
		line := func(name string, batch *kernels.Batch, rows []kernels.SampleRow, steps int) {
			var times []time.Duration
			for round := range 6 {
				took := make([]time.Duration, n)
				onRanks(b, n, func(r int) error {
					took[r] = inARow(b, steps, func() kernels.Pending { return dummies[r].step(b, batch, rows) })
					return nil
				})
				if round > 0 {
					times = append(times, slices.Max(took))
				}
			}
			slices.Sort(times)
			fmt.Printf("| %s, %s | %.3f |\n", s.of(n).name, name, times[len(times)/2].Seconds()*1e3)
		}
		batch, rows := decodeBatch(1, 1024)
		line("one stream, context 1k", batch, rows, 50)
		for _, count := range []int{8, 64, 128, 256} {
			batch, rows := decodeBatch(count, 512)
			line(fmt.Sprintf("batch %d, context 512", count), batch, rows, 10)
		}
		for _, count := range []int{1024, 8192} {
			batch, rows := promptBatch(count)
			line(fmt.Sprintf("prompt of %d", count), batch, rows, 2)
		}
		for _, d := range dummies {
			if err := d.o.Close(); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// Products whose columns are gathered write them to rank 0 by themselves; the result is
// that of products and a gather.
func TestGatheredProductsOverRanks(t *testing.T) {
	const hidden = 512
	for _, widths := range [][]int{{1000, 1000}, {520, 264}, {36, 37}, {256, 128, 512, 64}} {
		n, width := len(widths), 0
		for _, w := range widths {
			width += w
		}
		ranks, reducers, _ := linkedRanks(t, n, anyWay, Options{Compute: kernels.BF16, Patience: 20 * time.Second})
		ones := make([]float32, hidden)
		for i := range ones {
			ones[i] = 1
		}
		for _, rows := range []int{1, 3, 6, 70, 200} {
			random := rand.New(rand.NewPCG(uint64(rows), uint64(width)))
			input := randomBytes(random, rows*hidden)
			parts, got := make([][]byte, n), make([]byte, 4*rows*width)
			onRanks(t, n, func(r int) error {
				o := ranks[r]
				x, y, part, out := must(o.Tensor(rows, hidden)), must(o.Tensor(rows, 8)), must(o.Tensor(rows, widths[r])), kernels.Tensor{}
				if r == 0 {
					out = must(o.Tensor(rows, width))
				}
				head := kernels.Linear{Weight: must(o.DummyWeight(widths[r], hidden, .1, uint32(r+1))), Norm: &kernels.Norm{Weight: must(o.Vector(ones)), Eps: 1e-5}}
				parts[r] = make([]byte, 4*rows*widths[r])
				for step := range 6 {
					if err := errors.Join(o.Put(x, input), o.Begin(rowsOnly(rows))); err != nil {
						return err
					}
					for range 3 { // so that it becomes a graph
						if step > 0 {
							if err := reducers[r].AllReduce(o, y); err != nil {
								return err
							}
						}
						o.Linear(part, x, head)
						if step > 0 {
							if err := reducers[r].Gather(o, out, part); err != nil {
								return err
							}
						}
					}
					if _, err := o.End().Wait(); err != nil {
						return err
					}
					if step == 0 {
						if err := o.Get(parts[r], part); err != nil {
							return err
						}
						if r == 0 {
							if err := o.Put(out, make([]byte, 4*rows*width)); err != nil {
								return err
							}
						}
					}
				}
				if r == 0 {
					return o.Get(got, out)
				}
				return nil
			})
			want, at := make([]byte, 4*rows*width), 0
			for r, w := range widths {
				for row := range rows {
					copy(want[4*(row*width+at):], parts[r][4*row*w:4*(row+1)*w])
				}
				at += w
			}
			if string(got) != string(want) {
				t.Errorf("widths %v, %d rows: rank 0 gathered other values", widths, rows)
			}
		}
	}
}

// What rank 0 draws is what a following step's rows stand for on every rank.
func TestDrawnTokensFollowOverRanks(t *testing.T) {
	const vocabulary, hidden = 1000, 64
	for _, n := range []int{2, 4} {
		ranks, reducers, _ := linkedRanks(t, n, anyWay, Options{Compute: kernels.BF16, Patience: 20 * time.Second})
		random := rand.New(rand.NewPCG(1, uint64(n)))
		seats, odd := []int32{7, 0, 3, 200, 12}, kernels.SampleRow{Seat: -1, Target: 5, TopLogprobs: -1}
		wanted := make([]int, len(seats))
		logits := make([]byte, 4*(len(seats)+1)*vocabulary)
		b := rowsOnly(len(seats))
		rows := []kernels.SampleRow{odd} // of a prompt whose tokens are scored
		rows[0].Row = int32(len(seats))
		for i, seat := range seats {
			b.Tokens[i] = -1 - seat
			rows = append(rows, kernels.SampleRow{Row: int32(i), Seat: seat, Target: -1, TopP: 1, RepetitionPenalty: 1, TopLogprobs: -1})
		}
		tables, out, at := make([]kernels.Embed, n), make([]kernels.Tensor, n), make([]kernels.Tensor, n)
		var first []byte // the whole table, as rows
		onRanks(t, n, func(r int) error {
			o := ranks[r]
			tables[r] = kernels.Embed{Table: must(o.DummyWeight(vocabulary, hidden, 1, 3)), Scale: 1}
			out[r], at[r] = must(o.Tensor(vocabulary, hidden)), must(o.Tensor(len(seats)+1, vocabulary))
			all := rowsOnly(vocabulary)
			for i := range all.Tokens {
				all.Tokens[i] = int32(i)
			}
			if err := o.Begin(all); err != nil {
				return err
			}
			o.Embed(out[r], tables[r])
			if _, err := o.End().Wait(); err != nil || r > 0 {
				return err
			}
			first = make([]byte, 4*vocabulary*hidden)
			return o.Get(first, out[r])
		})
		for step := range 6 {
			for i := range logits {
				logits[i] = 0
			}
			last := slices.Clone(wanted)
			for i := range wanted {
				wanted[i] = random.IntN(vocabulary)
				binary.LittleEndian.PutUint32(logits[4*(i*vocabulary+wanted[i]):], math.Float32bits(1))
			}
			onRanks(t, n, func(r int) error {
				o, x := ranks[r], out[r].Top(len(seats))
				if err := errors.Join(o.Put(at[r], logits), o.Begin(b)); err != nil {
					return err
				}
				o.Embed(x, tables[r])
				if r == 0 {
					o.Sample(at[r], rows)
				}
				if err := reducers[r].(kernels.Follower).Follow(o, rows); err != nil {
					return err
				}
				if _, err := o.End().Wait(); err != nil {
					return err
				}
				got := make([]byte, 4*len(seats)*hidden)
				if err := o.Get(got, x); err != nil || step == 0 {
					return err
				}
				for i, token := range last {
					if string(got[4*i*hidden:4*(i+1)*hidden]) != string(first[4*token*hidden:4*(token+1)*hidden]) {
						return fmt.Errorf("%d ranks, step %d: rank %d has another token at seat %d", n, step, r, seats[i])
					}
				}
				return nil
			})
		}
	}
}

// Rows that are summed, added to a residual and normalised in one kernel have the bits
// that they have when each is done by itself.
func TestRowsOverRanks(t *testing.T) {
	const steps, sums, width = 5, 3, 264
	for _, n := range []int{2, 4} {
		ranks, reducers, l := linkedRanks(t, n, anyWay, Options{Compute: kernels.BF16, Patience: 20 * time.Second})
		for _, size := range [][2]int{{5, 512}, {7, 4100}, {64, 4096}, {131, 520}, {200, 4096}} {
			rows, hidden := size[0], size[1]
			random := rand.New(rand.NewPCG(uint64(rows), uint64(hidden)))
			start := randomBytes(random, rows*hidden)
			parts, x, y, out, products := make([][]byte, n), make([]kernels.Tensor, n), make([]kernels.Tensor, n), make([]kernels.Tensor, n), make([]kernels.Linear, n)
			onRanks(t, n, func(r int) error {
				o := ranks[r]
				gain := make([]float32, hidden)
				for i := range gain {
					gain[i] = 1 + float32(i%7)/8
				}
				x[r], y[r], out[r] = must(o.Tensor(rows, hidden)), must(o.Tensor(rows, hidden)), must(o.Tensor(rows, width))
				products[r] = kernels.Linear{Weight: must(o.DummyWeight(width, hidden, .1, 7)), Norm: &kernels.Norm{Weight: must(o.Vector(gain)), Eps: 1e-5}}
				return nil
			})
			for r := range parts {
				parts[r] = randomBytes(random, rows*hidden)
			}
			got := make([][3][][]byte, 4) // way, what, rank
			for way := range got {
				l.(*link).way = []int{readThere, pushedOnce, pushedTwice, anyWay}[way]
				for what := range got[way] {
					got[way][what] = make([][]byte, n)
				}
				onRanks(t, n, func(r int) error {
					o := ranks[r]
					for range steps {
						if err := errors.Join(o.Put(y[r], parts[r]), o.Put(x[r], start), o.Begin(rowsOnly(rows))); err != nil {
							return err
						}
						for range sums {
							if err := reducers[r].AllReduce(o, y[r]); err != nil {
								return err
							}
							o.Add(x[r], y[r], nil)
							o.Linear(out[r], x[r], products[r])
						}
						if _, err := o.End().Wait(); err != nil {
							return err
						}
					}
					for what, tensor := range []kernels.Tensor{x[r], y[r], out[r]} {
						got[way][what][r] = make([]byte, 4*tensor.Rows*tensor.Cols)
						if err := o.Get(got[way][what][r], tensor); err != nil {
							return err
						}
					}
					return nil
				})
				for what, name := range []string{"residual", "sum", "product"} {
					for r := range n {
						if string(got[way][what][r]) != string(got[0][what][0]) {
							t.Errorf("%d ranks, %d×%d, way %d: rank %d has another %s", n, rows, hidden, way, r, name)
						}
					}
				}
			}
		}
	}
}
