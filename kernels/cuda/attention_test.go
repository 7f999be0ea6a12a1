//go:build cuda

package cuda

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"manta/kernels"
	"manta/kernels/ref"
)

type attentionCase struct {
	name               string
	heads, kv, size    int
	headMap            []int32
	window             int
	softcap            float32
	norm, across       bool
	interleaved, plain bool  // plain: no rope
	floatCache         bool  // keys and values in float32 whatever is computed in
	lengths            []int // of the sequences
}

var attentionCases = []attentionCase{
	{name: "groups of 4, 128", heads: 8, kv: 2, size: 128, lengths: []int{1, 15, 16, 17, 64, 65, 130, 333}},
	{name: "groups of 3, 64", heads: 9, kv: 3, size: 64, lengths: []int{5, 63, 129, 400}},
	{name: "uneven map, norms", heads: 7, kv: 3, size: 64, headMap: []int32{0, 0, 1, 1, 1, 1, 2}, norm: true, lengths: []int{30, 70, 200}},
	{name: "groups of 12, window", heads: 12, kv: 1, size: 128, window: 37, lengths: []int{3, 37, 38, 100, 300}},
	{name: "window and cap", heads: 4, kv: 2, size: 64, window: 100, softcap: 5, lengths: []int{64, 101, 290}},
	{name: "one head each, interleaved", heads: 3, kv: 3, size: 128, interleaved: true, lengths: []int{9, 80}},
	{name: "groups of 8", heads: 8, kv: 1, size: 128, norm: true, lengths: []int{70, 200}},
	{name: "more chunks than tiles", heads: 2, kv: 1, size: 64, lengths: []int{330, 330, 330, 330, 330}},
	{name: "many rows", heads: 8, kv: 8, size: 128, norm: true, lengths: spread(80, 140)},
	{name: "many rows, groups of 12, window and cap", heads: 48, kv: 4, size: 64, window: 50, softcap: 5, lengths: spread(150, 100)},
	{name: "more rows than warps", heads: 32, kv: 16, size: 64, norm: true, lengths: append(spread(150, 100), 400, 500)},
	{name: "more rows than warps, interleaved, window and cap", heads: 16, kv: 16, size: 128, interleaved: true, window: 200, softcap: 5, lengths: append(spread(150, 40), 300)},
	{name: "size 80, norm across", heads: 4, kv: 2, size: 80, norm: true, across: true, lengths: []int{9, 80, 130}},
	{name: "size 16, float32 cache, no rope", heads: 4, kv: 1, size: 16, plain: true, floatCache: true, lengths: []int{20, 70}},
	{name: "size 256", heads: 4, kv: 2, size: 256, lengths: []int{70}},
}

// spread gives n lengths up to most, every second one such that chunks of 64 leave
// one row.
func spread(n, most int) []int {
	list := make([]int, n)
	for i := range list {
		list[i] = min(65, most)
		if i%2 == 0 {
			list[i] = 1 + i*37%most
		}
	}
	return list
}

// lastAlone is a chunk: all tokens of a sequence but its last one, then that.
const lastAlone = 0

// run computes the attention of all sequences, in chunks of so many tokens, and
// gives the outputs, sequence by sequence.
func (c attentionCase) run(t testing.TB, o kernels.Ops, cacheType kernels.DType, chunk int) [][]float32 {
	t.Helper()
	r := rand.New(rand.NewPCG(7, uint64(c.size)))
	cols := (c.heads + 2*c.kv) * c.size
	blocks := 0
	for _, n := range c.lengths {
		blocks += (n + 15) / 16
	}
	order := r.Perm(blocks + 3) // where blocks lie says nothing
	a := kernels.Attention{Heads: c.heads, KVHeads: c.kv, HeadDim: c.size, HeadMap: c.headMap, Scale: 0.11, Softcap: c.softcap, Window: c.window,
		Layer: 1, Interleaved: c.interleaved, NormAcross: c.across, Cache: must(o.Cache(kernels.CacheSpec{Layers: 2, Blocks: blocks + 3, KVHeads: c.kv, HeadDim: c.size, Type: cacheType}))}
	if a.HeadMap == nil {
		for h := range c.heads {
			a.HeadMap = append(a.HeadMap, int32(h*c.kv/c.heads))
		}
	}
	if !c.plain {
		inverse := make([]float32, c.size/2-c.size%3)
		for i := range inverse {
			inverse[i] = 1 / float32(1+i*i)
		}
		a.Rope = must(o.Rope(inverse, 1, 512))
	}
	if c.norm {
		q, k := c.size, c.size
		if c.across {
			q, k = q*c.heads, k*c.kv
		}
		a.QNorm = &kernels.Norm{Weight: must(o.Vector(random(r, q, 1))), Eps: 1e-5}
		a.KNorm = &kernels.Norm{Weight: must(o.Vector(random(r, k, 1))), Eps: 1e-5}
	}
	var inputs [][]float32
	var tables [][]int32
	for _, n := range c.lengths {
		inputs = append(inputs, random(r, n*cols, 1))
		var table []int32
		for range (n + 15) / 16 {
			table = append(table, int32(order[0]))
			order = order[1:]
		}
		tables = append(tables, table)
	}
	outputs := make([][]float32, len(c.lengths))
	for done := make([]int, len(c.lengths)); ; {
		b := &kernels.Batch{}
		var x []float32
		var who []int
		for s, n := range c.lengths {
			count := min(chunk, n-done[s])
			if chunk == lastAlone {
				count = min(max(n-1-done[s], 1), n-done[s])
			}
			if count == 0 {
				continue
			}
			table := slices.Clone(tables[s])
			if c.window > 0 { // what no row sees any more is gone
				for i := range table {
					if (i+1)*16 <= done[s]-c.window+1 {
						table[i] = -1
					}
				}
			}
			b.Spans = append(b.Spans, kernels.Span{Row: len(b.Tokens), Count: count, Start: done[s], Blocks: [][]int32{nil, table}})
			for i := range count {
				b.Tokens, b.Positions = append(b.Tokens, 0), append(b.Positions, int32(done[s]+i))
			}
			x = append(x, inputs[s][done[s]*cols:(done[s]+count)*cols]...)
			who = append(who, s)
		}
		if len(who) == 0 {
			return outputs
		}
		for i := range b.Spans { // group 0 is another kind's
			b.Spans[i].Blocks[0] = make([]int32, (b.Spans[i].Start+b.Spans[i].Count+15)/16)
		}
		a.Group = 1
		qkv, out := tensor(t, o, len(b.Tokens), cols, x), must(o.Tensor(len(b.Tokens), c.heads*c.size))
		poison(t, o, out)
		step(t, o, b, func() { o.Attention(out, qkv, a) })
		y := read(t, o, out)
		for i, s := range who {
			at := b.Spans[i].Row * out.Cols
			outputs[s] = append(outputs[s], y[at:at+b.Spans[i].Count*out.Cols]...)
			done[s] += b.Spans[i].Count
		}
	}
}

// Attention agrees with ref, and gives the same bits whether a sequence comes in
// chunks of 1, 7 or 64, all at once, or but for its last token, alone or beside others.
func TestAttentionAgreesWithReferenceAndKeepsBits(t *testing.T) {
	for _, c := range computeTypes {
		t.Run(c.compute.String(), func(t *testing.T) {
			t.Parallel()
			attentionAgrees(t, open(t, c.compute), c.compute, c.tolerance, attentionCases, lastAlone, 1, 7, 64)
		})
	}
}

// chosen makes one kernel for rows that stand alone the one that is chosen, where it can.
func chosen(t testing.TB, i int) {
	all := rowsKernels
	t.Cleanup(func() { rowsKernels = all })
	rowsKernels = []rowsKernel{all[0], all[i]}
	rowsKernels[1].begin = math.Inf(-1)
}

// Every kernel for rows that stand alone gives the same bits (DESIGN.md, the law of bits).
func TestRowsKernelsKeepBits(t *testing.T) {
	cases := []attentionCase{
		{name: "groups of 4, 128", heads: 8, kv: 2, size: 128, lengths: append(spread(20, 140), 400, 510)},
		{name: "groups of 12", heads: 12, kv: 1, size: 128, lengths: append(spread(9, 140), 300)},
		{name: "uneven map, norms, 64", heads: 7, kv: 3, size: 64, headMap: []int32{0, 0, 1, 1, 1, 1, 2}, norm: true, lengths: append(spread(30, 100), 450)},
		{name: "window and cap, interleaved", heads: 16, kv: 8, size: 128, interleaved: true, window: 100, softcap: 5, lengths: append(spread(40, 90), 290, 64)},
	}
	for _, compute := range []kernels.DType{kernels.BF16, kernels.F16} {
		o := open(t, compute)
		for _, c := range cases {
			t.Run(compute.String()+"/"+c.name, func(t *testing.T) {
				want := c.run(t, o, compute, lastAlone)
				for i, k := range rowsKernels {
					t.Run(fmt.Sprint(k.name, i), func(t *testing.T) {
						chosen(t, i)
						for s, y := range c.run(t, o, compute, lastAlone) {
							sameBits(t, fmt.Sprintf("sequence of %d", c.lengths[s]), y, want[s])
						}
					})
				}
			})
		}
	}
}

// Attention agrees with ref, once through each kernel of 16 bits with few launches: what
// compute-sanitizer's racecheck walks within a minute. Chunks leave one row at the end.
func TestAttentionBriefly(t *testing.T) {
	o := open(t, kernels.BF16)
	for i, k := range rowsKernels {
		t.Run(fmt.Sprint(k.name, i), func(t *testing.T) {
			chosen(t, i)
			attentionAgrees(t, o, kernels.BF16, 6e-3, []attentionCase{
				{name: "groups of 4", heads: 4, kv: 1, size: 128, lengths: []int{130, 66}},
				{name: "one head each", heads: 2, kv: 2, size: 64, lengths: []int{66, 20, 300}},
			}, lastAlone)
		})
	}
	attentionAgrees(t, o, kernels.BF16, 6e-3, []attentionCase{
		{name: "groups of 12, window and cap", heads: 24, kv: 2, size: 64, window: 50, softcap: 5, lengths: slices.Repeat([]int{66}, 5)},
		{name: "more rows than warps", heads: 16, kv: 16, size: 64, lengths: append(slices.Repeat([]int{66}, 150), 300)},
	}, 65, lastAlone)
}

// attentionAgrees compares every case with ref, and chunks of these sizes with the
// whole. References are computed side by side; the device is one case's at a time.
func attentionAgrees(t *testing.T, o *Ops, compute kernels.DType, tolerance float64, cases []attentionCase, chunks ...int) {
	var device sync.Mutex
	for _, a := range cases {
		t.Run(a.name, func(t *testing.T) {
			t.Parallel()
			cacheType := compute
			if a.floatCache {
				cacheType = kernels.F32
			}
			want := a.run(t, ref.New(), cacheType, 1000)
			device.Lock()
			defer device.Unlock()
			got := a.run(t, o, cacheType, 1000)
			for s := range want {
				if d := distance(got[s], want[s]); d > 1.5*tolerance {
					t.Fatalf("sequence of %d: error %.2e, want at most %.0e", a.lengths[s], d, 1.5*tolerance)
				}
			}
			for _, chunk := range chunks {
				for s, y := range a.run(t, o, cacheType, chunk) {
					sameBits(t, fmt.Sprintf("chunks of %d, sequence of %d", chunk, a.lengths[s]), y, got[s])
				}
			}
		})
	}
}
