package ref

import (
	"math"
	"math/rand/v2"
	"testing"

	"manta/kernels"
)

// attentionCase is one set of arguments; the sequences have odd lengths.
type attentionCase struct {
	name                    string
	heads, kvHeads, headDim int
	window, rotated         int
	softcap                 float32
	interleaved             bool
	norms, across           bool
	cacheType               kernels.DType
	tolerance               float64
}

var attentionCases = []attentionCase{
	{name: "plain", heads: 2, kvHeads: 2, headDim: 8, tolerance: 1e-5},
	{name: "grouped and turned", heads: 5, kvHeads: 2, headDim: 8, rotated: 8, tolerance: 1e-5},
	{name: "turned in part", heads: 2, kvHeads: 1, headDim: 10, rotated: 4, tolerance: 1e-5},
	{name: "interleaved", heads: 2, kvHeads: 1, headDim: 8, rotated: 8, interleaved: true, tolerance: 1e-5},
	{name: "window", heads: 2, kvHeads: 1, headDim: 8, rotated: 8, window: 5, tolerance: 1e-5},
	{name: "capped", heads: 2, kvHeads: 1, headDim: 8, softcap: 0.7, tolerance: 1e-5},
	{name: "norms", heads: 4, kvHeads: 2, headDim: 8, rotated: 8, norms: true, tolerance: 1e-5},
	{name: "norms across", heads: 4, kvHeads: 2, headDim: 8, rotated: 8, norms: true, across: true, tolerance: 1e-5},
	{name: "stored as binary16", heads: 2, kvHeads: 1, headDim: 8, rotated: 8, cacheType: kernels.F16, tolerance: 2e-3},
	{name: "stored as bfloat16", heads: 2, kvHeads: 1, headDim: 8, rotated: 8, cacheType: kernels.BF16, tolerance: 2e-2},
}

// headMap gives uneven groups: the first KV head has all but the last queries.
func (c attentionCase) headMap() []int32 {
	m := make([]int32, c.heads)
	for i := range m {
		m[i] = int32(min(i*c.kvHeads/c.heads, c.kvHeads-1))
	}
	return m
}

func (c attentionCase) args(t *testing.T, o *Ops) kernels.Attention {
	t.Helper()
	a := kernels.Attention{
		Layer: 1, Heads: c.heads, KVHeads: c.kvHeads, HeadDim: c.headDim, HeadMap: c.headMap(),
		Scale: 0.4, Softcap: c.softcap, Window: c.window, NormAcross: c.across, Interleaved: c.interleaved,
	}
	a.Cache = must(o.Cache(kernels.CacheSpec{Layers: 2, Blocks: 9, KVHeads: c.kvHeads, HeadDim: c.headDim, Type: c.cacheType}))
	if c.rotated > 0 {
		a.Rope = must(o.Rope(c.inverse(), 1.1, 64))
	}
	if c.norms {
		q, k := c.normWeights()
		a.QNorm = &kernels.Norm{Weight: must(o.Vector(q)), Eps: 1e-6}
		a.KNorm = &kernels.Norm{Weight: must(o.Vector(k)), Eps: 1e-6}
	}
	return a
}

func (c attentionCase) inverse() []float32 {
	inverse := make([]float32, c.rotated/2)
	for i := range inverse {
		inverse[i] = float32(math.Pow(100, -float64(i)/float64(len(inverse))))
	}
	return inverse
}

func (c attentionCase) normWeights() (q, k []float32) {
	nq, nk := c.headDim, c.headDim
	if c.across {
		nq, nk = c.heads*c.headDim, c.kvHeads*c.headDim
	}
	for i := range nq {
		q = append(q, 1+float32(i)/10)
	}
	for i := range nk {
		k = append(k, 2-float32(i)/20)
	}
	return q, k
}

// want computes one query head at one position in float64 from the formulas.
func (c attentionCase) want(qkv [][]float64, position, head int) []float64 {
	d := c.headDim
	prepared := func(p, at, heads, h int, w []float32) []float64 {
		part := qkv[p][at*d : (at+heads)*d]
		if c.norms && c.across {
			part = rms(part, w, 1e-6)
		}
		x := append([]float64(nil), part[h*d:(h+1)*d]...)
		if c.norms && !c.across {
			x = rms(x, w, 1e-6)
		}
		n := c.rotated / 2
		for i, f := range c.inverse() {
			a, b := i, i+n
			if c.interleaved {
				a, b = 2*i, 2*i+1
			}
			sin, cos := math.Sincos(float64(p) * float64(f))
			x[a], x[b] = 1.1*(x[a]*cos-x[b]*sin), 1.1*(x[b]*cos+x[a]*sin)
		}
		return x
	}
	wq, wk := c.normWeights()
	q := prepared(position, 0, c.heads, head, wq)
	kv := int(c.headMap()[head])
	out, sum := make([]float64, d), 0.0
	for p := range position + 1 {
		if c.window > 0 && p <= position-c.window {
			continue
		}
		k, score := prepared(p, c.heads, c.kvHeads, kv, wk), 0.0
		for i := range q {
			score += 0.4 * q[i] * k[i]
		}
		if c.softcap > 0 {
			score = float64(c.softcap) * math.Tanh(score/float64(c.softcap))
		}
		weight := math.Exp(score)
		sum += weight
		for i := range out {
			out[i] += weight * qkv[p][(c.heads+c.kvHeads+kv)*d+i]
		}
	}
	for i := range out {
		out[i] /= sum
	}
	return out
}

// Attention is the formula at its declaration, for two sequences side by side
// whose blocks lie in no order, the second behind a window whose blocks are gone;
// and whatever the cut into steps, the bits are the same.
func TestAttention(t *testing.T) {
	for _, c := range attentionCases {
		t.Run(c.name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(5, 5))
			width := (c.heads + 2*c.kvHeads) * c.headDim
			lengths := []int{37, 21}
			blocks := [][]int32{{7, 2, 5}, {0, 8}}
			source := New()
			var inputs []kernels.Tensor
			var wide [][][]float64
			for _, n := range lengths {
				x, w := floatTensor(t, source, r, n, width)
				inputs, wide = append(inputs, x), append(wide, w)
			}
			var whole [][]float32
			for _, chunk := range []int{64, 1, 5, 16} {
				o := New()
				a := c.args(t, o)
				got := make([][]float32, 0, 58)
				rows := make([][][]float32, 2)
				for done := 0; done < 37; done += chunk {
					b := &kernels.Batch{}
					var data []float32
					for s, n := range lengths {
						count := min(chunk, n-done)
						if count <= 0 {
							continue
						}
						held := append([]int32(nil), blocks[s]...)
						if c.window > 0 {
							for i := range max(0, done-c.window+1) / kernels.BlockTokens {
								held[i] = -1
							}
						}
						b.Spans = append(b.Spans, kernels.Span{Row: len(b.Tokens), Count: count, Start: done, Blocks: [][]int32{held}})
						for i := range count {
							b.Tokens = append(b.Tokens, 0)
							b.Positions = append(b.Positions, int32(done+i))
							data = append(data, row(inputs[s], done+i)...)
						}
					}
					if err := o.Begin(b); err != nil {
						t.Fatal(err)
					}
					x := kernels.Tensor{Rows: len(b.Tokens), Cols: width, Mem: data}
					out := must(o.Tensor(x.Rows, c.heads*c.headDim))
					o.Attention(out, x, a)
					for _, s := range b.Spans {
						which := 0
						if s.Blocks[0][len(s.Blocks[0])-1] == 8 {
							which = 1
						}
						for i := range s.Count {
							rows[which] = append(rows[which], row(out, s.Row+i))
						}
					}
				}
				got = append(append(got, rows[0]...), rows[1]...)
				if whole == nil {
					whole = got
					continue
				}
				for i := range got {
					for j := range got[i] {
						if math.Float32bits(got[i][j]) != math.Float32bits(whole[i][j]) {
							t.Fatalf("chunks of %d: row %d has other bits", chunk, i)
						}
					}
				}
			}
			for i, values := range whole {
				s, p := 0, i
				if i >= 37 {
					s, p = 1, i-37
				}
				for h := range c.heads {
					for j, want := range c.want(wide[s], p, h) {
						if d := math.Abs(float64(values[h*c.headDim+j]) - want); !(d <= c.tolerance) {
							t.Fatalf("sequence %d, position %d, head %d: %g, want %g", s, p, h, values[h*c.headDim+j], want)
						}
					}
				}
			}
		})
	}
}

// A cache takes types that it can round to, and no other.
func TestCacheTypes(t *testing.T) {
	for d := kernels.F32; d <= kernels.Q6_K; d++ {
		_, err := New().Cache(kernels.CacheSpec{Layers: 1, Blocks: 1, KVHeads: 1, HeadDim: 32, Type: d})
		if want := d <= kernels.BF16; (err == nil) != want {
			t.Errorf("%s: %v", d, err)
		}
	}
}
