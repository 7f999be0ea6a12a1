package cpu

// An attentionPiece is one tile of a unit of one row: what threads share when
// there are fewer units than keep them busy.
type attentionPiece struct {
	unit, tile int
	at         int // in partial: for each query head dim sums, then best and total
}

// piecesPerWorker: with fewer units a worker than this, long contexts are split.
const piecesPerWorker = 4

// partialTail is the room behind a query's sums, for its best and total.
const partialTail = 16

// split cuts the units of single rows into tiles, where that is of use. Joining
// them in order gives the same bits as one worker doing all.
func (t *attentionTask) split() bool {
	workers := len(t.o.workers)
	if workers == 1 || len(t.stores) > 0 || len(t.units) >= piecesPerWorker*workers {
		return false
	}
	t.pieces = t.pieces[:0]
	at := 0
	for i, u := range t.units {
		position := t.o.batch.Spans[u.span].Start
		for tile := t.firstTile(position); tile <= position/attentionTile; tile++ {
			t.pieces = append(t.pieces, attentionPiece{i, tile, at})
			at += len(t.groups[u.head]) * (t.c.dim + partialTail)
		}
	}
	if len(t.pieces) == len(t.units) {
		return false // short contexts
	}
	t.o.grow(&t.partial, at)
	return true
}

// queries calls f with the query heads of a unit of one row, some at a time.
func (t *attentionTask) queries(u attentionUnit, f func(heads []int32, done int)) {
	for heads, done := t.groups[u.head], 0; done < len(heads); done += maxQueries {
		f(heads[done:min(done+maxQueries, len(heads))], done)
	}
}

func (t *attentionTask) attendPiece(s *queryScratch, p attentionPiece) {
	u := t.units[p.unit]
	if p.tile == t.o.batch.Spans[u.span].Start/attentionTile {
		t.store(s, u, u.head) // no other piece reads this slot
	}
	dim := t.c.dim
	t.queries(u, func(heads []int32, done int) {
		for i, h := range heads {
			t.loadQuery(s, i, u, u.lo, int(h))
		}
		t.oneTile(s, u, len(heads), p.tile)
		for i := range heads {
			dst := t.partial[p.at+(done+i)*(dim+partialTail):]
			copy(dst, s.part[i*dim:][:dim])
			dst[dim], dst[dim+1] = s.tileBest[i], s.tileTotal[i]
		}
	})
}

func (t *attentionTask) joinPieces(s *queryScratch, unit int) {
	u, dim := t.units[unit], t.c.dim
	position := t.o.batch.Spans[u.span].Start
	t.queries(u, func(heads []int32, done int) {
		for _, p := range t.pieces {
			if p.unit != unit {
				continue
			}
			for i, h := range heads {
				src := t.partial[p.at+(done+i)*(dim+partialTail):]
				copy(s.part[i*dim:][:dim], src)
				s.tileBest[i], s.tileTotal[i] = src[dim], src[dim+1]
				s.position[i], s.head[i], s.lo[i], s.hi[i] = position, int(h), 0, 1
				t.join(s, i, p.tile == t.firstTile(position))
			}
		}
		t.write(s, u, len(heads))
	})
}
