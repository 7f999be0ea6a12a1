//go:build cuda

package cuda

import (
	"fmt"
	"math"
)

// A wideTile is a kernel of src/wide.cuh: how many rows its tiles have, how many
// blocks share them, what it is for, and how long it takes for 64 columns: at the
// clock's height, and as part of a full device at the limit of its power (H200).
type wideTile struct {
	rows, cluster  int
	use            wideUse
	alone, limited float64 // nanoseconds
}

type wideUse int

const (
	anyWeights   wideUse = iota
	oneSegment           // weights whose sum is all that registers hold
	moreSegments         // half of the sums of segments are held in shared memory
	makesHeads           // any weights; outputs are heads, turned and stored
)

// Measured are 64, 128, 192 and 256 rows.
var wideTiles = []wideTile{{16, 1, anyWeights, 202, 150}, {32, 1, anyWeights, 215, 200}, {64, 1, anyWeights, 230, 318},
	{80, 1, anyWeights, 250, 336}, {96, 1, anyWeights, 270, 354}, {112, 1, anyWeights, 289, 372}, {128, 1, anyWeights, 309, 390},
	{144, 1, anyWeights, 352, 424}, {160, 1, anyWeights, 396, 458}, {176, 1, anyWeights, 439, 491}, {192, 1, anyWeights, 482, 525},
	{208, 1, oneSegment, 526, 568}, {224, 1, oneSegment, 570, 612}, {240, 1, oneSegment, 614, 655}, {256, 1, oneSegment, 658, 698},
	{208, 1, moreSegments, 524, 568}, {224, 1, moreSegments, 565, 612}, {240, 1, moreSegments, 607, 655}, {256, 1, moreSegments, 648, 698},
	{128, 2, anyWeights, 342, 385}, {192, 2, anyWeights, 489, 603}, {256, 2, oneSegment, 639, 765}, {256, 2, moreSegments, 654, 765},
	{128, 1, makesHeads, 309, 390}, {192, 1, makesHeads, 482, 525}, {256, 1, makesHeads, 648, 698}, {128, 2, makesHeads, 342, 385}, {256, 2, makesHeads, 654, 765}}

func (t wideTile) kernel(suffix string) string {
	return fmt.Sprintf("wide%s_%d_%d%s", suffix, t.rows, t.cluster, [...]string{moreSegments: "_segments", makesHeads: "_heads"}[t.use])
}

// takes tells whether the tile is for weights of so many segments, and for heads.
func (t wideTile) takes(segments int32, heads bool) bool {
	switch t.use {
	case makesHeads:
		return heads
	case anyWeights:
		return !heads
	}
	return !heads && (t.use == oneSegment) == (segments == 1)
}

const (
	wideThreads, wideShared = 384, 226<<10 + 256 // src/wide.cuh
	// What a product, a whole tile and its rows, and a block's segment and its rows cost
	// besides, in nanoseconds, and what more power rows take that no cluster shares.
	// These and wideTiles are fitted to 892 timings of 8B's, 1B's and 0.6B's products at 64 to
	// 8192 rows, random data: the tile that they choose takes 0.8% longer than the fastest,
	// of 1,039 timings of 8B's at 160 to 1000 rows, with the tiles between, as well.
	memoryPerNanosecond                = 4460. // bytes
	wideStart, wideTileEnd, wideRowEnd = 1590., 595., 15.6
	segmentShare, segmentRowShare      = 2530., 20.
	unsharedPower, unsharedFrom        = .2, 2048.
	fewRows, staysInL2                 = 64, 32 << 20 // bytes
	partsRows                          = 128          // of tiles that take scales in parts
)

// A widePlan is how a product is laid on the device. It does not show in the result.
type widePlan struct {
	tile                   wideTile
	weightTiles, rowTiles  int // a weight tile is one of the whole cluster
	whole, tiles, clusters int
	cost                   float64
}

// planWide takes the way that should end first.
func (o *Ops) planWide(a linearArguments, rows int, heads bool) (best widePlan) {
	blocks, stages, segment := ceil(units(a), 16), int(a.chunks)/2, int(a.segment)/2
	if a.gated == 1 {
		blocks = ceil(units(a), 8)
	}
	last := widePlan{}
	for _, t := range wideTiles {
		if !t.takes(a.segments, heads) || a.parts > 0 && t.rows > partsRows || t.cluster == last.tile.cluster && ceil(rows, t.rows) == last.rowTiles {
			continue // nothing, or as many tiles of fewer rows
		}
		p := widePlan{tile: t, weightTiles: ceil(blocks, t.cluster), rowTiles: ceil(rows, t.rows), clusters: o.info.Multiprocessor / t.cluster}
		p.tiles, last = p.weightTiles*p.rowTiles, p
		least := float64(p.weightTiles*t.cluster*128*stages*128) / memoryPerNanosecond
		if rows <= fewRows && least*memoryPerNanosecond > staysInL2 {
			least *= float64(p.rowTiles) // in a step each tile of rows reads such a weight from memory
		}
		power := float64(p.tiles*t.cluster*stages) * t.limited / float64(o.info.Multiprocessor)
		if t.cluster == 1 {
			power *= 1 + unsharedPower*min(1, float64(rows)/unsharedFrom)
		}
		whole := float64(stages)*t.alone + wideTileEnd + wideRowEnd*float64(t.rows)
		p.whole = p.tiles
		p.cost = wideStart + together(least, power, float64(ceil(p.tiles, p.clusters))*whole)
		if best.cost == 0 || p.cost < best.cost {
			best = p
		}
		// Whole tiles while all blocks have one, the rest by segments. Blocks wait for
		// each other then, so all must run at once, which clusters need not.
		p.whole = p.tiles / p.clusters * p.clusters
		cut := p.tiles - p.whole
		if a.segments == 1 || o.link != nil && !o.link.early || t.cluster > 1 || cut == 0 || 2*cut > arrivals || partialBytes(cut, a, t) > 256<<20 {
			continue
		}
		each := float64(ceil(cut*int(a.segments), p.clusters))
		p.cost = wideStart + each*(segmentShare+segmentRowShare*float64(t.rows)) +
			together(least, power, float64(p.whole/p.clusters)*whole+each*float64(segment)*t.alone)
		if p.cost < best.cost {
			best = p
		}
	}
	return best
}

// together is how long work takes that has several limits, each alone so long: a
// little more than the largest of them.
func together(a, b, c float64) float64 {
	return math.Sqrt(math.Sqrt(a*a*a*a + b*b*b*b + c*c*c*c))
}

// partialBytes is the memory for the segments' sums of so many tiles.
func partialBytes(tiles int, a linearArguments, t wideTile) int {
	return tiles * int(a.segments) * 128 * t.rows * 4
}

// rowsTiling is how the copy engine takes x in tiles of so many rows, of which it brings
// some at once. It takes longer for a box that ends outside: whole tiles are read, as far as
// there is memory (a buffer has room for float32). What lies there reaches no output.
func rowsTiling(a linearArguments, rows, tile, atOnce int) tiling {
	read := min(ceil(rows, tile)*tile, 2*rows)
	return tiling{at: a.x, dimensions: [5]uint64{uint64(a.chunks) * 32, uint64(read)}, strides: [4]uint64{2 * uint64(a.xStride)},
		box: [5]uint32{64, uint32(atOnce)}, swizzled: true}
}

// wide launches the product of many rows on a Hopper device.
func (o *Ops) wide(a linearArguments, rows int, heads *headArguments) {
	p := o.planWide(a, rows, heads != nil)
	x := rowsTiling(a, rows, p.tile.rows, p.tile.rows/p.tile.cluster)
	grid := min(p.clusters, p.tiles)
	if cut := p.tiles - p.whole; cut > 0 {
		a.partial = o.need("partial", partialBytes(cut, a, p.tile)).at
		grid = min(p.clusters, p.whole+cut*int(a.segments))
	}
	w := wideArguments{linearArguments: a, whole: int32(p.whole), tiles: int32(p.tiles), weightTiles: int32(p.weightTiles), rowTiles: int32(p.rowTiles),
		once: bit(p.rowTiles == 1), x: o.tensorMap(x)}
	if heads != nil {
		w.headArguments, w.weight = *heads, o.tensorMap(headTiling(a, int(heads.size)))
	} else {
		w.layOut(o, p.tile)
	}
	o.launch(p.tile.kernel(o.suffix), grid*p.tile.cluster, 1, 1, wideThreads, wideShared, bytesOf(&w))
}

// headTiling is how a weight of heads comes, so that blocks of the two halves of a head,
// which turn together, take turns (src/pack.cuh has blocks as rows follow each other).
func headTiling(a linearArguments, size int) tiling {
	const line, group = 1024, 8192 // bytes: of a block and of eight, 64 columns
	half, all := uint64(size/16), uint64(a.chunks/2)*group
	t := tiling{at: a.weight, words: true, dimensions: [5]uint64{line / 4, 2, half, uint64(a.chunks / 2), uint64(ceil(units(a), 2*int(half)))},
		strides: [4]uint64{half * line, line, group, 2 * half / 8 * all}, box: [5]uint32{line / 4, 2, uint32(half), 1, 1}}
	if half == 8 {
		t.strides[0] = all
	}
	return t
}

// layOut says how the outputs leave.
func (w *wideArguments) layOut(o *Ops, tile wideTile) {
	to, fits := outputTiling(w.linearArguments, int(w.rows), tile)
	if w.engine = bit(fits); fits {
		w.out = o.tensorMap(to)
	}
}

// outputTiling is how the outputs leave, piece by piece, where the copy engine can
// take them: it wants rows at multiples of 16 bytes, and adds float32 alone.
func outputTiling(a linearArguments, rows int, tile wideTile) (tiling, bool) {
	piece := uint32(8) // rows at a time: Wide::PIECE eights
	switch {
	case tile.rows < 64:
	case tile.rows%48 == 0:
		piece = 24
	case tile.rows%32 == 0:
		piece = 32
	default:
		piece = 16
	}
	to := tiling{at: a.out, dimensions: [5]uint64{uint64(outputs(a)), uint64(rows)}}
	if a.outNarrow == 0 {
		to.float, to.swizzled, to.strides, to.box = true, true, [4]uint64{4 * uint64(a.outStride)}, [5]uint32{32, piece}
		return to, a.gated == 0 && a.outStride%4 == 0
	}
	to.strides, to.box = [4]uint64{2 * uint64(a.outStride)}, [5]uint32{64, piece}
	if to.short = a.gated == 1; to.short {
		to.box[0] = 32
	}
	to.swizzled = !to.short
	return to, a.accumulate == 0 && a.outStride%8 == 0
}

const tensorMaps = 4096 // that are kept

// tensorMap encodes a tiling, once.
func (o *Ops) tensorMap(t tiling) tensorMap {
	if m, ok := o.maps[t]; ok {
		return m
	}
	if len(o.maps) >= tensorMaps {
		clear(o.maps)
	}
	var m tensorMap
	err := o.do(func() (err error) { // where the context is
		m, err = t.encode()
		return err
	})
	o.fail(err) //nolint:errcheck // sticks; the step's Pending tells
	o.maps[t] = m
	return m
}
