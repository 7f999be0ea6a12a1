package cpu

import (
	"unsafe"

	"manta/kernels"
	"manta/kernels/ref"
)

// attentionTile is the number of positions whose softmax is taken at once. Tiles
// lie at absolute positions, so a row's sums do not depend on how its sequence
// was cut into steps.
const attentionTile = 256

// queryScratch is what one worker attends with: up to maxQueries queries that
// share a KV head.
type queryScratch struct {
	dim    int
	q      []float32 // [maxQueries][dim], rotated and scaled
	part   []float32 // [maxQueries][dim], Σ p·v of a tile
	sum    []float32 // [maxQueries][dim], of all tiles so far
	scores []float32 // [maxQueries][attentionTile]
	k, v   []float32
	narrow []uint16

	position    [maxQueries]int
	head        [maxQueries]int
	lo, hi      [maxQueries]int     // what a query sees of the tile
	best, total [maxQueries]float32 // of all tiles so far

	tileBest, tileTotal [maxQueries]float32
}

// prepare makes room for heads of dim numbers.
func (s *queryScratch) prepare(m *memory, dim int) error {
	if dim <= s.dim {
		return nil
	}
	all, err := m.floats(maxQueries*(3*dim+attentionTile) + 3*dim)
	if err != nil {
		return err
	}
	take := func(n int) []float32 {
		part := all[:n:n]
		all = all[n:]
		return part
	}
	s.dim = dim
	s.q, s.part, s.sum = take(maxQueries*dim), take(maxQueries*dim), take(maxQueries*dim)
	s.scores = take(maxQueries * attentionTile)
	s.k, s.v = take(dim), take(dim)
	s.narrow = unsafe.Slice((*uint16)(unsafe.Pointer(&all[0])), dim)
	return nil
}

// An attentionTask attends in units of (span, KV head, some rows). Before, rows
// of spans with several are stored in units of rows; a single row's key and value
// are stored by the unit that attends.
type attentionTask struct {
	o        *Ops
	a        kernels.Attention
	c        *cache
	out, qkv kernels.Tensor
	rope     *ropeTable
	groups   [][]int32 // query heads of each KV head
	flat     []int32
	units    []attentionUnit
	stores   []attentionUnit
	phase    attentionPhase
	pieces   []attentionPiece
	partial  []float32 // of the pieces
}

type attentionPhase uint8

const (
	attending attentionPhase = iota
	storing
	attendingPieces
	joiningPieces
)

// An attentionUnit is rows [lo, hi) of a span and a KV head.
type attentionUnit struct {
	span, head int
	lo, hi     int
}

// rowsOfUnit bounds the rows of one unit of attention.
const rowsOfUnit = 16

// Attention stores the batch's keys and values and attends over what is stored.
func (o *Ops) Attention(out, qkv kernels.Tensor, a kernels.Attention) {
	check(out.Rows == qkv.Rows && qkv.Rows == len(o.batch.Tokens) &&
		out.Cols == a.Heads*a.HeadDim && qkv.Cols == (a.Heads+2*a.KVHeads)*a.HeadDim, "attention", out, qkv)
	t := &o.attention
	t.o, t.a, t.c, t.out, t.qkv, t.rope = o, a, a.Cache.(*cache), out, qkv, nil
	if a.Rope != nil {
		t.rope = a.Rope.(*ropeTable)
	}
	for i := range o.workers {
		if err := o.workers[i].query.prepare(&o.memory, t.c.dim); err != nil {
			o.fail(err)
			return
		}
	}
	t.groupHeads()
	t.cut()
	if len(t.stores) > 0 {
		t.run(storing, len(t.stores))
	}
	if t.split() {
		t.run(attendingPieces, len(t.pieces))
		t.run(joiningPieces, len(t.units))
		return
	}
	t.run(attending, len(t.units))
}

func (t *attentionTask) run(phase attentionPhase, units int) {
	t.phase = phase
	t.o.pool.run(t, units)
}

// groupHeads lists the query heads of each KV head.
func (t *attentionTask) groupHeads() {
	t.flat, t.groups = t.flat[:0], t.groups[:0]
	for range t.a.KVHeads {
		t.groups = append(t.groups, nil)
	}
	if cap(t.flat) < t.a.Heads {
		t.flat = make([]int32, 0, t.a.Heads)
	}
	for g := range t.groups {
		from := len(t.flat)
		for h := range t.a.Heads {
			if int(t.a.HeadMap[h]) == g {
				t.flat = append(t.flat, int32(h))
			}
		}
		t.groups[g] = t.flat[from:len(t.flat):len(t.flat)]
	}
}

// cut divides the batch into units. Long contexts come first, so that the units
// that end last are short.
func (t *attentionTask) cut() {
	t.units, t.stores = t.units[:0], t.stores[:0]
	for i := range t.o.batch.Spans {
		s := &t.o.batch.Spans[i]
		if s.Start+s.Count > 0 && t.rope != nil {
			t.rope.reach(s.Start + s.Count - 1)
		}
		for hi := s.Count; hi > 0; hi -= min(hi, rowsOfUnit) {
			lo := max(0, hi-rowsOfUnit)
			if s.Count > 1 {
				t.stores = append(t.stores, attentionUnit{i, 0, lo, hi})
			}
			for h := range t.groups {
				t.units = append(t.units, attentionUnit{i, h, lo, hi})
			}
		}
	}
}

func (t *attentionTask) do(worker, unit int) {
	s := &t.o.workers[worker].query
	switch t.phase {
	case storing:
		u := t.stores[unit]
		for h := range t.groups {
			t.store(s, u, h)
		}
	case attendingPieces:
		t.attendPiece(s, t.pieces[unit])
	case joiningPieces:
		t.joinPieces(s, unit)
	default:
		u := t.units[unit]
		if t.o.batch.Spans[u.span].Count == 1 {
			t.store(s, u, u.head)
		}
		t.attend(s, u)
	}
}

// store puts the keys and values of one KV head of a unit's rows.
func (t *attentionTask) store(s *queryScratch, u attentionUnit, head int) {
	span := &t.o.batch.Spans[u.span]
	blocks := span.Blocks[t.a.Group]
	dim, nq, nk := t.a.HeadDim, t.a.Heads*t.a.HeadDim, t.a.KVHeads*t.a.HeadDim
	clear(s.k[dim:t.c.dim])
	clear(s.v[dim:t.c.dim])
	for r := u.lo; r < u.hi; r++ {
		position, x := span.Start+r, row(t.qkv, span.Row+r)
		t.turn(s.k[:dim], x[nq:nq+nk], head, position, t.a.KNorm)
		copy(s.v[:dim], x[nq+nk+head*dim:][:dim])
		t.c.put(t.o.kernels, t.a.Layer, head, blocks[position/kernels.BlockTokens], position%kernels.BlockTokens, s.k[:t.c.dim], s.v[:t.c.dim], s.narrow)
	}
}

// turn writes head h of heads into dst, normalised and rotated.
func (t *attentionTask) turn(dst, heads []float32, h, position int, n *kernels.Norm) {
	dim := t.a.HeadDim
	src := heads[h*dim:][:dim]
	switch {
	case n == nil:
	case t.a.NormAcross:
		t.o.kernels.normaliseSlice(dst, heads, h*dim, n)
		src = dst
	default:
		t.o.kernels.normalise(dst, src, n)
		src = dst
	}
	pairs := 0
	if t.rope != nil {
		pairs = len(t.rope.inverse)
	}
	if pairs == 0 || t.a.Interleaved {
		copy(dst, src)
		if pairs > 0 {
			at := position * pairs
			ref.Rotate(dst, t.rope.cos[at:at+pairs], t.rope.sin[at:at+pairs], true)
		}
		return
	}
	at := position * pairs
	t.o.kernels.rotate(&dst[0], &src[0], &t.rope.cos[at], &t.rope.sin[at], uintptr(pairs))
	copy(dst[2*pairs:], src[2*pairs:])
}

// attend computes a unit, in tiles of queries that share the head's loads.
func (t *attentionTask) attend(s *queryScratch, u attentionUnit) {
	heads := t.groups[u.head]
	if len(heads) == 0 {
		return
	}
	parts := (len(heads) + maxQueries - 1) / maxQueries
	rows := max(1, maxQueries/len(heads))
	for r := u.lo; r < u.hi; r += rows {
		for p := range parts {
			n := 0
			for i := r; i < min(r+rows, u.hi); i++ {
				for _, h := range heads[p*len(heads)/parts : (p+1)*len(heads)/parts] {
					t.loadQuery(s, n, u, i, int(h))
					n++
				}
			}
			t.attendTile(s, u, n)
		}
	}
}

func (t *attentionTask) loadQuery(s *queryScratch, n int, u attentionUnit, r, head int) {
	span := &t.o.batch.Spans[u.span]
	dim, padded := t.a.HeadDim, t.c.dim
	q := s.q[n*padded:][:padded]
	t.turn(q[:dim], row(t.qkv, span.Row+r)[:t.a.Heads*dim], head, span.Start+r, t.a.QNorm)
	clear(q[dim:])
	t.o.kernels.scaleTo(&q[0], &q[0], t.a.Scale, uintptr(padded))
	s.position[n], s.head[n] = span.Start+r, head
}

// attendTile computes n queries over all that they see, tile by tile: within a
// tile Σ exp(s - m)·v with the tile's highest score m, then the tiles are joined
// in order (Milakov & Gimelshein 2018, alg. 3).
func (t *attentionTask) attendTile(s *queryScratch, u attentionUnit, n int) {
	for tile := t.firstTile(s.position[0]); tile <= s.position[n-1]/attentionTile; tile++ {
		t.oneTile(s, u, n, tile)
		for i := range n {
			t.join(s, i, tile == t.firstTile(s.position[i]))
		}
	}
	t.write(s, u, n)
}

// oneTile computes n queries over one tile.
func (t *attentionTask) oneTile(s *queryScratch, u attentionUnit, n, tile int) {
	first := 0
	if t.a.Window > 0 {
		first = max(0, s.position[0]-t.a.Window+1) / kernels.BlockTokens * kernels.BlockTokens
	}
	base, end := max(tile*attentionTile, first), min((tile+1)*attentionTile, s.position[n-1]+1)
	blocks := t.o.batch.Spans[u.span].Blocks[t.a.Group]
	t.tile(s, u, n, blocks[base/kernels.BlockTokens:], base, end)
}

// write gives the outputs of n queries: their sums over their totals.
func (t *attentionTask) write(s *queryScratch, u attentionUnit, n int) {
	span := &t.o.batch.Spans[u.span]
	for i := range n {
		dim := t.a.HeadDim
		dst := row(t.out, span.Row+s.position[i]-span.Start)[s.head[i]*dim:][:dim]
		t.o.kernels.scaleTo(&dst[0], &s.sum[i*t.c.dim], 1/s.total[i], uintptr(dim))
	}
}

// firstTile is the first tile of which a position sees something.
func (t *attentionTask) firstTile(position int) int {
	if t.a.Window == 0 {
		return 0
	}
	return max(0, position-t.a.Window+1) / attentionTile
}

// join adds what query i found in a tile to what it found before.
func (t *attentionTask) join(s *queryScratch, i int, first bool) {
	if s.lo[i] >= s.hi[i] {
		return
	}
	dim := t.c.dim
	part, sum := s.part[i*dim:][:dim], s.sum[i*dim:][:dim]
	best, total := s.best[i], s.total[i]
	tileBest, tileTotal := s.tileBest[i], s.tileTotal[i]
	if first {
		copy(sum, part)
		s.best[i], s.total[i] = tileBest, tileTotal
		return
	}
	highest := max(best, tileBest)
	old, fresh := expOf(best-highest), expOf(tileBest-highest)
	t.o.kernels.blend(&sum[0], &part[0], old, fresh, uintptr(dim))
	s.best[i], s.total[i] = highest, float32(total*old)+float32(tileTotal*fresh)
}
