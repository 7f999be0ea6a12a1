package ref

import (
	"math"

	"manta/kernels"
)

// Attention stores the batch's keys and values, then computes for each query head
// softmax(Scale · q·kᵀ) · v over the positions that it sees (Vaswani et al. 2017,
// §3.2.1), from the first to the last, K and V as the cache stores them.
func (o *Ops) Attention(out, qkv kernels.Tensor, a kernels.Attention) {
	check(out.Rows == qkv.Rows && qkv.Rows == len(o.batch.Tokens) &&
		out.Cols == a.Heads*a.HeadDim && qkv.Cols == (a.Heads+2*a.KVHeads)*a.HeadDim, "attention", out, qkv)
	c := a.Cache.(*cache)
	x := append([]float32(nil), values(qkv)...)
	for _, s := range o.batch.Spans {
		blocks := s.Blocks[a.Group]
		for r := s.Row; r < s.Row+s.Count; r++ {
			position := s.Start + r - s.Row
			q, k, v := split(x[r*qkv.Cols:(r+1)*qkv.Cols], a)
			prepare(q, position, a.QNorm, a)
			prepare(k, position, a.KNorm, a)
			for h := range a.KVHeads {
				at := c.offset(a.Layer, blocks[position/kernels.BlockTokens], position, h)
				c.k.put(at, k[h*a.HeadDim:(h+1)*a.HeadDim])
				c.v.put(at, v[h*a.HeadDim:(h+1)*a.HeadDim])
			}
		}
		for r := s.Row; r < s.Row+s.Count; r++ {
			q, _, _ := split(x[r*qkv.Cols:(r+1)*qkv.Cols], a)
			for h := range a.Heads {
				lo, hi := h*a.HeadDim, (h+1)*a.HeadDim
				attend(row(out, r)[lo:hi], q[lo:hi], c, blocks, s.Start+r-s.Row, int(a.HeadMap[h]), a)
			}
		}
	}
}

// split cuts a row into its queries, keys and values.
func split(x []float32, a kernels.Attention) (q, k, v []float32) {
	nq, nk := a.Heads*a.HeadDim, a.KVHeads*a.HeadDim
	return x[:nq], x[nq : nq+nk], x[nq+nk:]
}

// prepare normalises and rotates the heads of one row in place.
func prepare(heads []float32, position int, n *kernels.Norm, a kernels.Attention) {
	if n != nil && a.NormAcross {
		normalise(heads, heads, n)
	}
	for lo := 0; lo < len(heads); lo += a.HeadDim {
		head := heads[lo : lo+a.HeadDim]
		if n != nil && !a.NormAcross {
			normalise(head, head, n)
		}
		if a.Rope != nil {
			t := a.Rope.(*ropeTable)
			at := position * t.pairs
			Rotate(head, t.cos[at:at+t.pairs], t.sin[at:at+t.pairs], a.Interleaved)
		}
	}
}

// attend computes one query head at one position.
func attend(out, q []float32, c *cache, blocks []int32, position, kvHead int, a kernels.Attention) {
	first := 0
	if a.Window > 0 {
		first = max(0, position-a.Window+1)
	}
	scores := make([]float32, position-first+1)
	kv := make([]float32, a.HeadDim)
	highest := float32(math.Inf(-1))
	for i := range scores {
		p := first + i
		c.k.get(kv, c.offset(a.Layer, blocks[p/kernels.BlockTokens], p, kvHead))
		scores[i] = Softcap(a.Softcap, a.Scale*Dot(q, kv))
		highest = max(highest, scores[i])
	}
	clear(out)
	var sum float32
	for i, score := range scores {
		p := first + i
		weight := float32(math.Exp(float64(score - highest)))
		sum += weight
		c.v.get(kv, c.offset(a.Layer, blocks[p/kernels.BlockTokens], p, kvHead))
		for j, v := range kv {
			out[j] += float32(weight * v)
		}
	}
	for j := range out {
		out[j] /= sum
	}
}
