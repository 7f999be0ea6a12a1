//go:build cuda

package cuda

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"manta/kernels"
)

// A shape is a dense model's, with random weights made on the device.
type shape struct {
	name                                             string
	layers, hidden, heads, kv, size, ffn, vocabulary int
	qkNorm                                           bool
}

var shapes = []shape{
	{"8B", 32, 4096, 32, 8, 128, 14336, 128256, false},
	{"1B", 16, 2048, 32, 8, 64, 8192, 128256, false},
	{"0.6B", 28, 1024, 16, 8, 128, 3072, 151936, true},
	{"70B", 80, 8192, 64, 8, 128, 28672, 128256, false},
}

// of is one of n tensor ranks' slice.
func (s shape) of(n int) shape {
	if n > 1 {
		s.name = fmt.Sprintf("%s/%d", s.name, n)
		s.heads, s.kv, s.ffn, s.vocabulary = s.heads/n, s.kv/n, s.ffn/n, s.vocabulary/n
	}
	return s
}

func (s shape) layerWeights() int {
	return s.hidden*(s.heads+2*s.kv)*s.size + s.heads*s.size*s.hidden + 3*s.hidden*s.ffn
}

// weightBytes is what a step must read of the weights; kvBytes what a row must
// read of keys and values; operations what a row costs in the products.
func (s shape) weightBytes() float64 {
	return 2 * float64(s.layers*s.layerWeights()+s.hidden*s.vocabulary)
}
func (s shape) kvBytes(context int) float64 { return float64(s.layers * 4 * s.kv * s.size * context) }
func (s shape) operations() float64         { return 2 * float64(s.layers*s.layerWeights()) }

// A dummy is a model of a shape on a device, called as runtime/model calls it.
type dummy struct {
	shape
	o                                         *Ops
	embed                                     kernels.Embed
	qkv, out, up, down                        []kernels.Linear
	attention                                 []kernels.Attention
	head                                      kernels.Linear
	x, qkvT, attended, inner, wanted, logitsT kernels.Tensor

	reduce   kernels.Reducer // of a tensor rank; nil: alone
	part     kernels.Tensor  // of its sums
	gathered kernels.Tensor  // logits of all ranks, on rank 0
}

func newDummy(t testing.TB, o *Ops, s shape, rows, wanted, blocks int) *dummy {
	d := &dummy{shape: s, o: o}
	seed := uint32(0)
	random := func(r, c int) kernels.Weight {
		seed++
		return must(o.DummyWeight(r, c, 1.7/float32(c)*8, seed))
	}
	ones := func(n int) kernels.Vector {
		v := make([]float32, n)
		for i := range v {
			v[i] = 1
		}
		return must(o.Vector(v))
	}
	norm := &kernels.Norm{Weight: ones(s.hidden), Eps: 1e-5}
	inverse := make([]float32, s.size/2)
	for i := range inverse {
		inverse[i] = 1 / float32(1+i)
	}
	rope := must(o.Rope(inverse, 1, 16384))
	cache := must(o.Cache(kernels.CacheSpec{Layers: s.layers, Blocks: blocks, KVHeads: s.kv, HeadDim: s.size, Type: kernels.BF16}))
	var heads []int32
	for h := range s.heads {
		heads = append(heads, int32(h*s.kv/s.heads))
	}
	var perHead *kernels.Norm
	if s.qkNorm {
		perHead = &kernels.Norm{Weight: ones(s.size), Eps: 1e-6}
	}
	d.embed = kernels.Embed{Table: random(s.vocabulary, s.hidden), Scale: 1}
	for l := range s.layers {
		d.qkv = append(d.qkv, kernels.Linear{Weight: random((s.heads+2*s.kv)*s.size, s.hidden), Norm: norm})
		d.attention = append(d.attention, kernels.Attention{Cache: cache, Layer: l, Heads: s.heads, KVHeads: s.kv, HeadDim: s.size,
			HeadMap: heads, Scale: 0.088, Rope: rope, QNorm: perHead, KNorm: perHead})
		d.out = append(d.out, kernels.Linear{Weight: random(s.hidden, s.heads*s.size), Accumulate: true})
		up := random(2*s.ffn, s.hidden)
		up.(*weight).paired = true
		d.up = append(d.up, kernels.Linear{Weight: up, Norm: norm, Activation: kernels.SiLU, Gated: true})
		d.down = append(d.down, kernels.Linear{Weight: random(s.hidden, s.ffn), Accumulate: true})
	}
	for l := range s.layers {
		d.qkv[l].Attention = &d.attention[l]
	}
	d.head = kernels.Linear{Weight: d.embed.Table, Norm: norm}
	d.x, d.qkvT = must(o.Tensor(rows, s.hidden)), must(o.Tensor(rows, (s.heads+2*s.kv)*s.size))
	d.attended, d.inner = must(o.Tensor(rows, s.heads*s.size)), must(o.Tensor(rows, s.ffn))
	d.wanted, d.logitsT = must(o.Tensor(wanted, s.hidden)), must(o.Tensor(wanted, s.vocabulary))
	if err := o.Vocabulary(s.vocabulary); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *dummy) step(t testing.TB, b *kernels.Batch, rows []kernels.SampleRow) kernels.Pending {
	if err := d.o.Begin(b); err != nil {
		t.Fatal(err)
	}
	n := len(b.Tokens)
	x, qkv, attended, inner := d.x.Top(n), d.qkvT.Top(n), d.attended.Top(n), d.inner.Top(n)
	d.o.Embed(x, d.embed)
	for l := range d.layers {
		d.o.Linear(qkv, x, d.qkv[l])
		d.o.Attention(attended, qkv, d.attention[l])
		d.add(t, x, attended, d.out[l])
		d.o.Linear(inner, x, d.up[l])
		d.add(t, x, inner, d.down[l])
	}
	w := len(b.Wanted)
	d.o.Gather(d.wanted.Top(w), x)
	d.o.Linear(d.logitsT.Top(w), d.wanted.Top(w), d.head)
	logits := d.logitsT
	if d.reduce != nil {
		logits = d.gathered
		if err := d.reduce.Gather(d.o, logits.Top(w), d.logitsT.Top(w)); err != nil {
			t.Error(err)
		}
	}
	if d.reduce == nil || d.reduce.Rank() == 0 {
		d.o.Sample(logits.Top(w), rows)
	}
	return d.o.End()
}

// add computes x += part · Wᵀ, over all ranks.
func (d *dummy) add(t testing.TB, x, part kernels.Tensor, product kernels.Linear) {
	if d.reduce == nil {
		d.o.Linear(x, part, product)
		return
	}
	y := d.part.Top(x.Rows)
	product.Accumulate = false
	d.o.Linear(y, part, product)
	if err := d.reduce.AllReduce(d.o, y); err != nil {
		t.Error(err)
	}
	d.o.Add(x, y, nil)
}

// decodeBatch is one token of each of n sequences that have so much context.
func decodeBatch(n, context int) (*kernels.Batch, []kernels.SampleRow) {
	b := &kernels.Batch{}
	var rows []kernels.SampleRow
	per := context/16 + 1
	order := rand.New(rand.NewPCG(1, 1)).Perm(n * per)
	for i := range n {
		blocks := make([]int32, per)
		for k := range blocks {
			blocks[k] = int32(order[i*per+k])
		}
		b.Tokens, b.Positions = append(b.Tokens, int32(-1-i)), append(b.Positions, int32(context))
		b.Spans = append(b.Spans, kernels.Span{Row: i, Count: 1, Start: context, Blocks: [][]int32{blocks}})
		b.Wanted = append(b.Wanted, int32(i))
		rows = append(rows, kernels.SampleRow{Row: int32(i), Seat: int32(i), Target: -1, TopP: 1, RepetitionPenalty: 1, TopLogprobs: -1})
	}
	return b, rows
}

// promptBatch is one sequence's first n tokens.
func promptBatch(n int) (*kernels.Batch, []kernels.SampleRow) {
	b, rows := decodeBatch(1, n)
	b.Tokens, b.Positions = make([]int32, n), make([]int32, n)
	for i := range n {
		b.Tokens[i], b.Positions[i] = int32(i*7%1000), int32(i)
	}
	b.Spans[0].Count, b.Spans[0].Start, b.Wanted = n, 0, []int32{int32(n - 1)}
	return b, rows
}

// inARow times n steps that follow each other with two in flight, from the outside: what
// an engine would see, host and all. It gives the time of one.
func inARow(t testing.TB, n int, step func() kernels.Pending) time.Duration {
	t.Helper()
	var last kernels.Pending
	begin := time.Now()
	for range n {
		p := step()
		if last != nil {
			if _, err := last.Wait(); err != nil {
				t.Fatal(err)
			}
		}
		last = p
	}
	if _, err := last.Wait(); err != nil {
		t.Fatal(err)
	}
	return time.Since(begin) / time.Duration(n)
}

// median times steps in a row, of which the first round counts for nothing.
func (d *dummy) median(t testing.TB, b *kernels.Batch, rows []kernels.SampleRow, steps, rounds int) time.Duration {
	var times []time.Duration
	for r := range rounds + 1 {
		took := inARow(t, steps, func() kernels.Pending { return d.step(t, b, rows) })
		if r > 0 {
			times = append(times, took)
		}
	}
	slices.Sort(times)
	return times[len(times)/2]
}

// elapsed times launches on the device, as the median of rounds.
func (o *Ops) elapsed(t testing.TB, f func()) time.Duration {
	t.Helper()
	var times []time.Duration
	for range 6 {
		if err := o.do(o.synchronize); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		f()
		if err := o.do(o.synchronize); err != nil {
			t.Fatal(err)
		}
		times = append(times, time.Since(begin))
	}
	slices.Sort(times)
	return times[len(times)/2]
}

func (o *Ops) bandwidth(t testing.TB) float64 {
	const bytes = 8 << 30
	w := must(o.DummyWeight(1<<17, 1<<15, 1, 7)).(*weight)
	best := 0.0
	for _, grid := range []int{4, 8, 16} {
		a := readArguments{in: w.at, count: bytes / 16, out: o.arrived}
		d := o.elapsed(t, func() {
			for range 4 {
				if err := o.once("readAll", grid*o.info.Multiprocessor, 512, bytesOf(&a)); err != nil {
					t.Fatal(err)
				}
			}
		})
		best = max(best, 4*bytes/d.Seconds())
	}
	return best
}

// wantedShapes are those that MANTA_BENCH names, whole or, as in 8B/4, one of so many
// tensor ranks' slices; or those that fit on one GPU.
func wantedShapes() (list []shape) {
	for _, wanted := range strings.Fields(cmp.Or(os.Getenv("MANTA_BENCH"), "8B 1B 0.6B")) {
		name, ranks, _ := strings.Cut(wanted, "/")
		n, _ := strconv.Atoi(ranks)
		for _, s := range shapes {
			if s.name == name {
				list = append(list, s.of(n))
			}
		}
	}
	return list
}

// BenchmarkTable prints the time of steps on this machine, each beside its limit.
func BenchmarkTable(b *testing.B) {
	o := open(b, kernels.BF16)
	bandwidth := o.bandwidth(b)
	const peak = 790e12 // bf16, as measured through a library on this kind of machine
	fmt.Printf("\n%s, %d multiprocessors: reads %.2f TB/s\n", o.info.Name, o.info.Multiprocessor, bandwidth/1e12)
	fmt.Printf("| work | ms | limit ms | of limit |\n|---|---|---|---|\n")
	for _, s := range wantedShapes() {
		o := open(b, kernels.BF16)
		const most = 8192
		d := newDummy(b, o, s, most, 256, 257*33+most/16+2)
		line := func(name string, limit float64, took time.Duration) {
			fmt.Printf("| %s, %s | %.3f | %.3f | %.1f%% |\n", s.name, name, took.Seconds()*1e3, limit*1e3, 100*limit/took.Seconds())
		}
		batch, rows := decodeBatch(1, 1024)
		line("one stream, context 1k", (s.weightBytes()+s.kvBytes(1024))/bandwidth, d.median(b, batch, rows, 50, 5))
		for _, n := range []int{8, 64, 128, 256} {
			batch, rows := decodeBatch(n, 512)
			limit := max(s.weightBytes()/bandwidth, s.operations()*float64(n)/peak) + s.kvBytes(512)*float64(n)/bandwidth
			line(fmt.Sprintf("batch %d, context 512", n), limit, d.median(b, batch, rows, 10, 5))
		}
		for _, n := range []int{1024, 8192} {
			batch, rows := promptBatch(n)
			attention := 2 * float64(s.layers*s.heads*s.size) * float64(n) * float64(n)
			line(fmt.Sprintf("prompt of %d", n), (s.operations()*float64(n)+attention)/peak, d.median(b, batch, rows, 1, 5))
		}
		if err := o.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkParts says where a step spends its time: each part alone, as it follows
// itself. MANTA_BENCH picks shapes as for the table.
func BenchmarkParts(b *testing.B) {
	for _, s := range wantedShapes() {
		o := open(b, kernels.BF16)
		s.layers = 8
		d := newDummy(b, o, s, 256, 256, 256*65+2)
		d.parts(b)
		if err := o.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

func (d *dummy) parts(b *testing.B) {
	o, s := d.o, d.shape
	for _, n := range []int{1, 64, 128, 256} {
		batch, rows := decodeBatch(n, 512)
		if _, err := d.step(b, batch, rows).Wait(); err != nil { // or the parts would work on zeros, which take less power
			b.Fatal(err)
		}
		x, qkv, attended, inner, wanted, logits := d.x.Top(n), d.qkvT.Top(n), d.attended.Top(n), d.inner.Top(n), d.wanted.Top(n), d.logitsT.Top(n)
		parts := []struct {
			name  string
			times int
			f     func(l int)
		}{
			{"qkv", s.layers, func(l int) { o.Linear(qkv, x, d.qkv[l]) }},
			{"attention", s.layers, func(l int) { o.Attention(attended, qkv, d.attention[l]) }},
			{"out", s.layers, func(l int) { o.Linear(x, attended, d.out[l]) }},
			{"up", s.layers, func(l int) { o.Linear(inner, x, d.up[l]) }},
			{"down", s.layers, func(l int) { o.Linear(x, inner, d.down[l]) }},
			{"head", 8, func(l int) { o.Linear(logits, wanted, d.head) }},
			{"embed", 8, func(l int) { o.Embed(x, d.embed) }},
			{"sample", 1, func(l int) { o.Sample(logits, rows) }},
		}
		for _, p := range parts {
			took := o.elapsed(b, func() {
				var last kernels.Pending
				for range 8 {
					if err := o.Begin(batch); err != nil {
						b.Fatal(err)
					}
					for l := range p.times {
						p.f(l)
					}
					last = o.End()
				}
				if _, err := last.Wait(); err != nil {
					b.Fatal(err)
				}
			})
			fmt.Printf("%s, batch %d: %s: %.1f µs\n", s.name, n, p.name, took.Seconds()*1e6/8/float64(p.times))
		}
	}
}

// BenchmarkAttention times attention alone, beside what its keys and values or its
// operations allow; as in a step, the next one is handed over while one runs.
func BenchmarkAttention(b *testing.B) {
	o := open(b, kernels.BF16)
	bandwidth := o.bandwidth(b)
	const prompt, deep, peak = 8192, 4096, 790e12
	s := shapes[0]
	s.layers, s.vocabulary = 8, 1000
	d := newDummy(b, o, s, prompt, 256, 64*(deep/16+1)+1)
	line := func(name string, batch *kernels.Batch, limit float64) {
		n := len(batch.Tokens)
		const steps = 32
		took := o.elapsed(b, func() {
			inARow(b, steps, func() kernels.Pending {
				if err := o.Begin(batch); err != nil {
					b.Fatal(err)
				}
				for l := range s.layers {
					o.Attention(d.attended.Top(n), d.qkvT.Top(n), d.attention[l])
				}
				return o.End()
			})
		}).Seconds() / float64(steps*s.layers)
		fmt.Printf("attention, %s, a layer: %.1f µs, limit %.1f, %.1f%%\n", name, took*1e6, limit*1e6, 100*limit/took)
	}
	fmt.Println()
	for _, c := range []struct{ n, context int }{{64, deep}, {64, 512}, {128, 512}, {256, 512}} {
		batch, _ := decodeBatch(c.n, c.context)
		line(fmt.Sprintf("%d × %d", c.n, c.context), batch, s.kvBytes(c.context)/float64(s.layers)*float64(c.n)/bandwidth)
	}
	batch, _ := promptBatch(prompt)
	line(fmt.Sprintf("prompt of %d", prompt), batch, 2*float64(s.heads*s.size)*prompt*prompt/peak)
}
