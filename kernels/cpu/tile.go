package cpu

import (
	"math"
	"unsafe"

	"manta/kernels"
)

func expOf(x float32) float32 { return float32(math.Exp(float64(x))) }

func floatIn(b []byte, at int) *float32 { return (*float32)(unsafe.Pointer(&b[at])) }
func halfIn(b []byte, at int) *uint16   { return (*uint16)(unsafe.Pointer(&b[at])) }

// tile computes, for positions [base, end), the scores of n queries, their
// exponentials less the highest, and the sums of values that they weigh. base
// begins a block, the first of blocks. Slots that a query does not see are not
// read on its behalf: their scores are replaced and their values skipped, since
// what lies there may be anything.
func (t *attentionTask) tile(s *queryScratch, u attentionUnit, n int, blocks []int32, base, end int) {
	c, set := t.c, t.o.kernels
	at := c.at(t.a.Layer, u.head)
	count := (end - base + kernels.BlockTokens - 1) / kernels.BlockTokens
	const stride = 4 * attentionTile
	set.scores[c.store][n-1](&s.scores[0], stride, &s.q[0], uintptr(4*c.dim), &c.k[at], &blocks[0], uintptr(count), uintptr(c.blockBytes()), uintptr(c.dim))
	width := count * kernels.BlockTokens
	from, to := 0, width // what all queries see
	for i := range n {
		lo, hi := 0, min(s.position[i]+1-base, width)
		if t.a.Window > 0 {
			lo = max(0, s.position[i]-t.a.Window+1-base)
		}
		s.lo[i], s.hi[i] = lo, hi
		from, to = max(from, lo), min(to, hi)
		if lo < hi {
			t.soften(s, i, s.scores[i*attentionTile:][:width])
		}
	}
	clear(s.part[:n*c.dim])
	if from >= to {
		for i := range n {
			t.values(s, i, i+1, at, blocks, s.lo[i], s.hi[i])
		}
		return
	}
	for i := range n {
		t.values(s, i, i+1, at, blocks, s.lo[i], from)
	}
	t.values(s, 0, n, at, blocks, from, to)
	for i := range n {
		t.values(s, i, i+1, at, blocks, to, s.hi[i])
	}
}

// soften turns the scores of query i into exp(score - highest) and keeps their
// highest and sum.
func (t *attentionTask) soften(s *queryScratch, i int, scores []float32) {
	set := t.o.kernels
	seen := scores[s.lo[i]:s.hi[i]]
	if t.a.Softcap > 0 {
		set.softcapTo(&seen[0], &seen[0], t.a.Softcap, 2/t.a.Softcap, uintptr(len(seen)))
	}
	for j := range s.lo[i] {
		scores[j] = negativeInfinity
	}
	for j := s.hi[i]; j < len(scores); j++ {
		scores[j] = negativeInfinity
	}
	n := uintptr(len(scores))
	s.tileBest[i] = set.highest(&scores[0], n)
	s.tileTotal[i] = set.expSum(&scores[0], n, s.tileBest[i])
}

// values adds the values of slots [lo, hi), counted from the start of blocks, to
// the parts of queries [from, to).
func (t *attentionTask) values(s *queryScratch, from, to, at int, blocks []int32, lo, hi int) {
	if lo >= hi {
		return
	}
	c := t.c
	kernel := &t.o.kernels.values[c.store][to-from-1]
	size := storeBytes(c.store)
	block := lo / kernels.BlockTokens
	first := lo % kernels.BlockTokens
	for d := 0; d < c.dim; {
		panels, which := 1, 0
		if c.dim-d >= 64 {
			panels, which = 4, 1
		}
		kernel[which](&s.part[from*c.dim+d], uintptr(4*c.dim), &s.scores[from*attentionTile+lo], 4*attentionTile,
			&c.v[at+size*d], &blocks[block], uintptr(first), uintptr(hi-lo), uintptr(c.blockBytes()), uintptr(size*c.dim))
		d += 16 * panels
	}
}
