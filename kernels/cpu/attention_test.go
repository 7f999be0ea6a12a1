package cpu

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"manta/kernels"
	"manta/kernels/ref"
)

// An attentionCase is a model's attention and the sequences that use it.
type attentionCase struct {
	name            string
	heads, kv, dim  int
	headMap         []int32
	rope            int // pairs
	window          int
	softcap         float32
	norm, across    bool
	interleaved     bool
	store           kernels.DType
	lengths, chunks []int
}

func attentionCases() []attentionCase {
	return []attentionCase{
		{name: "smollm2", heads: 9, kv: 3, dim: 64, rope: 32, store: kernels.F16, lengths: []int{300, 17, 1}, chunks: []int{64}},
		{name: "one head each, odd dim", heads: 2, kv: 2, dim: 24, rope: 12, store: kernels.F32, lengths: []int{33, 5}, chunks: []int{7, 1}},
		{name: "many share one", heads: 14, kv: 2, dim: 16, rope: 4, store: kernels.BF16, lengths: []int{40}, chunks: []int{40}},
		{name: "long, more heads than a kernel takes", heads: 8, kv: 1, dim: 16, rope: 8, store: kernels.F32, lengths: []int{600}, chunks: []int{599, 1}},
		{name: "window", heads: 4, kv: 2, dim: 80, rope: 40, window: 21, store: kernels.F32, lengths: []int{290, 20}, chunks: []int{5, 64}},
		{name: "softcap, norm", heads: 4, kv: 2, dim: 32, rope: 16, softcap: 20, norm: true, store: kernels.F32, lengths: []int{50}, chunks: []int{9}},
		{name: "norm across, interleaved, uneven map", heads: 3, kv: 2, dim: 128, rope: 64, norm: true, across: true, interleaved: true, headMap: []int32{0, 1, 1}, store: kernels.F32, lengths: []int{31, 16}, chunks: []int{16}},
		{name: "no rope", heads: 2, kv: 1, dim: 8, store: kernels.F16, lengths: []int{10}, chunks: []int{3}},
	}
}

// run computes all sequences in chunks of the sizes given, each step holding one
// chunk of every sequence that has one left, and gives the outputs by sequence.
func (c attentionCase) run(t testing.TB, o kernels.Ops, chunks []int, poison bool) [][]float32 {
	t.Helper()
	blocks := 0
	for _, n := range c.lengths {
		blocks += (n + 15) / 16
	}
	store, err := o.Cache(kernels.CacheSpec{Layers: 2, Blocks: blocks + 1, KVHeads: c.kv, HeadDim: c.dim, Type: c.store})
	if err != nil {
		t.Fatal(err)
	}
	a := kernels.Attention{Cache: store, Layer: 1, Heads: c.heads, KVHeads: c.kv, HeadDim: c.dim, HeadMap: c.headMap,
		Scale: float32(1 / math.Sqrt(float64(c.dim))), Softcap: c.softcap, Window: c.window, NormAcross: c.across, Interleaved: c.interleaved}
	if a.HeadMap == nil {
		for h := range c.heads {
			a.HeadMap = append(a.HeadMap, int32(h*c.kv/c.heads))
		}
	}
	if c.rope > 0 {
		inverse := make([]float32, c.rope)
		for i := range inverse {
			inverse[i] = float32(math.Pow(10000, -float64(i)/float64(c.rope)))
		}
		if a.Rope, err = o.Rope(inverse, 1, 640); err != nil {
			t.Fatal(err)
		}
	}
	if c.norm {
		q, k := c.dim, c.dim
		if c.across {
			q, k = c.heads*c.dim, c.kv*c.dim
		}
		a.QNorm = &kernels.Norm{Weight: vectorOf(t, o, random(newRand(8), q)), Eps: 1e-6}
		a.KNorm = &kernels.Norm{Weight: vectorOf(t, o, random(newRand(9), k)), Eps: 1e-6}
	}
	width := (c.heads + 2*c.kv) * c.dim
	inputs, tables := make([][]float32, len(c.lengths)), make([][]int32, len(c.lengths))
	order := rand.New(rand.NewPCG(2, 2)).Perm(blocks)
	next := 0
	for i, n := range c.lengths {
		inputs[i] = random(newRand(uint64(20+i)), n*width)
		for range (n + 15) / 16 {
			tables[i] = append(tables[i], int32(order[next]+1))
			next++
		}
	}
	step := func(spans []kernels.Span, rows []float32) []float32 {
		b := &kernels.Batch{Spans: spans}
		for _, s := range spans {
			for r := range s.Count {
				b.Tokens, b.Positions = append(b.Tokens, 0), append(b.Positions, int32(s.Start+r))
			}
		}
		if err := o.Begin(b); err != nil {
			t.Fatal(err)
		}
		out := tensor(t, o, len(b.Tokens), c.heads*c.dim, nil)
		o.Attention(out, tensor(t, o, len(b.Tokens), width, rows), a)
		if _, err := o.End().Wait(); err != nil {
			t.Fatal(err)
		}
		return get(t, o, out)
	}
	if poison { // every slot of every block holds NaN, as a broken sequence left it
		for i, n := range c.lengths {
			full := (n + 15) / 16 * 16
			rows := make([]float32, full*width)
			for j := range rows {
				rows[j] = float32(math.NaN())
			}
			step([]kernels.Span{{Count: full, Blocks: [][]int32{tables[i]}}}, rows)
		}
	}
	outputs, done := make([][]float32, len(c.lengths)), make([]int, len(c.lengths))
	for turn := 0; ; turn++ {
		var spans []kernels.Span
		var rows []float32
		var who []int
		for i, n := range c.lengths {
			count := min(chunks[(turn+i)%len(chunks)], n-done[i])
			if count == 0 {
				continue
			}
			table := append([]int32(nil), tables[i]...)
			for j := range table { // what the window has passed is gone
				if c.window > 0 && (j+1)*16 <= done[i]-c.window+1 {
					table[j] = -1
				}
			}
			spans = append(spans, kernels.Span{Row: len(rows) / width, Count: count, Start: done[i], Blocks: [][]int32{table}})
			rows = append(rows, inputs[i][done[i]*width:(done[i]+count)*width]...)
			who = append(who, i)
			done[i] += count
		}
		if len(spans) == 0 {
			return outputs
		}
		y := step(spans, rows)
		for k, s := range spans {
			outputs[who[k]] = append(outputs[who[k]], y[s.Row*c.heads*c.dim:(s.Row+s.Count)*c.heads*c.dim]...)
		}
	}
}

// Attention is the definition's on odd shapes, with blocks that hold NaN.
func TestAttentionIsRefs(t *testing.T) {
	for _, set := range sets() {
		for _, c := range attentionCases() {
			tolerance := 2e-6
			if c.store != kernels.F32 {
				tolerance = 2e-3 // a key may round to the other neighbour
			}
			got, want := c.run(t, device(t, 2, set), c.chunks, true), c.run(t, ref.New(), c.chunks, false)
			for i := range want {
				near(t, fmt.Sprintf("%s/%s/sequence %d", set.name, c.name, i), got[i], want[i], tolerance)
			}
		}
	}
}

// The law of bits: attention does not depend on how sequences are cut into
// steps, on their neighbours, on the number of threads, nor on what unwritten
// slots hold.
func TestAttentionLawOfBits(t *testing.T) {
	for _, set := range sets() {
		for _, c := range attentionCases() {
			want := c.run(t, device(t, 1, set), []int{1000}, false)
			for threads := 1; threads <= 3; threads++ {
				for _, chunks := range [][]int{{64, 1, 13}, {1}, {7}, {64}} {
					if set.name == "go" && (threads != 2 || len(chunks) != 3) {
						continue // slow, and the same code for any cut
					}
					got := c.run(t, device(t, threads, set), chunks, true)
					for i := range want {
						same(t, fmt.Sprintf("%s/%s/%d threads/chunks %v/sequence %d", set.name, c.name, threads, chunks, i), got[i], want[i])
					}
				}
			}
		}
	}
}
