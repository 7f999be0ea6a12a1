//go:build cuda

package cuda

import "fmt"

// A wideTile is a kernel of src/wide.cuh: how many rows its tiles have, how many
// blocks share them, and how long it takes for 64 columns where nothing limits it
// but itself (H200).
type wideTile struct {
	rows, cluster int
	nanoseconds   float64
}

var wideTiles = []wideTile{{16, 1, 202}, {32, 1, 233}, {64, 1, 226}, {128, 1, 400}, {128, 2, 428}, {192, 1, 637}, {192, 2, 618}, {256, 1, 904}, {256, 2, 796}}

func (t wideTile) kernel(suffix string) string {
	return fmt.Sprintf("wide%s_%d_%d", suffix, t.rows, t.cluster)
}

const (
	wideThreads, wideShared = 384, 226<<10 + 256 // src/wide.cuh
	// What limits the device as a whole, and what a product, a whole tile, segments cost besides.
	// All of these are fitted to 2,576 timings of 8B's, 1B's and 0.6B's products at 16 to 8192 rows.
	l2PerNanosecond, memoryPerNanosecond                = 9600., 4030.
	wideStart, wideTileEnd, segmentsStart, segmentShare = 4030., 4200., 1540., 6000.
)

// A widePlan is how a product is laid on the device. It does not show in the result.
type widePlan struct {
	tile                   wideTile
	weightTiles, rowTiles  int // a weight tile is one of the whole cluster
	whole, tiles, clusters int
	cost                   float64
}

// planWide takes the way that should end first.
func (o *Ops) planWide(a linearArguments, rows int) (best widePlan) {
	blocks, stages, segment := ceil(units(a), 16), int(a.chunks)/2, int(a.segment)/2
	if a.gated == 1 {
		blocks = ceil(units(a), 8)
	}
	for _, t := range wideTiles {
		p := widePlan{tile: t, weightTiles: ceil(blocks, t.cluster), rowTiles: ceil(rows, t.rows), clusters: o.info.Multiprocessor / t.cluster}
		p.tiles = p.weightTiles * p.rowTiles
		bytes := float64(128*128 + t.rows*128/t.cluster)
		stage := max(t.nanoseconds, bytes*float64(t.cluster*min(p.tiles, p.clusters))/l2PerNanosecond)
		least := float64(p.weightTiles*t.cluster*128*stages*128) / memoryPerNanosecond
		if t.rows <= 192 || a.segments == 1 {
			p.whole = p.tiles
			p.cost = wideStart + max(least, float64(ceil(p.tiles, p.clusters))*(float64(stages)*stage+wideTileEnd))
			if best.cost == 0 || p.cost < best.cost {
				best = p
			}
		}
		// Whole tiles while all blocks have one, the rest by segments. Blocks wait for
		// each other then, so all must run at once, which clusters need not.
		p.whole = p.tiles / p.clusters * p.clusters
		cut := p.tiles - p.whole
		if a.segments == 1 || o.link != nil && !o.link.early || t.cluster > 1 || cut == 0 || p.whole > 0 && t.rows > 192 || 2*cut > arrivals || partialBytes(cut, a, t) > 256<<20 {
			continue
		}
		each := ceil(cut*int(a.segments), p.clusters)
		p.cost = wideStart + segmentsStart + float64(each)*segmentShare + max(least, float64(p.whole/p.clusters)*(float64(stages)*stage+wideTileEnd)+float64(each*segment)*stage)
		if best.cost == 0 || p.cost < best.cost {
			best = p
		}
	}
	return best
}

// partialBytes is the memory for the segments' sums of so many tiles.
func partialBytes(tiles int, a linearArguments, t wideTile) int {
	return tiles * int(a.segments) * 128 * t.rows * 4
}

// wide launches the product of many rows on a Hopper device.
func (o *Ops) wide(a linearArguments, rows int) {
	p := o.planWide(a, rows)
	u, line := uint64(units(a)), uint64(a.chunks)*128 // words of a block of 8 weight rows
	weight := tiling{at: a.weight, words: true, dimensions: [3]uint64{line, u, 1}, strides: [2]uint64{4 * line, 4 * line * u}, box: [3]uint32{256, 16, 1}}
	if a.gated == 1 {
		weight.dimensions, weight.strides, weight.box = [3]uint64{line, 2, u}, [2]uint64{4 * line * u, 4 * line}, [3]uint32{256, 2, 8}
	}
	// The copy engine takes longer for a box that ends outside: whole tiles are read, as
	// far as there is memory (a buffer has room for float32). What lies there reaches no output.
	read := min(p.rowTiles*p.tile.rows, 2*rows)
	x := tiling{at: a.x, dimensions: [3]uint64{uint64(a.chunks) * 32, uint64(read)}, strides: [2]uint64{2 * uint64(a.xStride)},
		box: [3]uint32{64, uint32(p.tile.rows / p.tile.cluster)}, swizzled: true}
	grid := min(p.clusters, p.tiles)
	if cut := p.tiles - p.whole; cut > 0 {
		a.partial = o.need("partial", partialBytes(cut, a, p.tile)).at
		grid = min(p.clusters, p.whole+cut*int(a.segments))
	}
	w := wideArguments{linearArguments: a, whole: int32(p.whole), tiles: int32(p.tiles), weightTiles: int32(p.weightTiles), rowTiles: int32(p.rowTiles),
		once: bit(p.rowTiles == 1), weight: o.tensorMap(weight), x: o.tensorMap(x)}
	if to, fits := outputTiling(a, rows, p.tile); fits {
		w.engine, w.out = 1, o.tensorMap(to)
	}
	o.launch(p.tile.kernel(o.suffix), grid*p.tile.cluster, 1, 1, wideThreads, wideShared, bytesOf(&w))
}

// outputTiling is how the outputs leave, piece by piece, where the copy engine can
// take them: it wants rows at multiples of 16 bytes, and adds float32 alone.
func outputTiling(a linearArguments, rows int, tile wideTile) (tiling, bool) {
	piece := uint32(8) // rows at a time: Wide::PIECE eights
	switch {
	case tile.rows == 192:
		piece = 24
	case tile.rows >= 64:
		piece = 32
	}
	to := tiling{at: a.out, dimensions: [3]uint64{uint64(outputs(a)), uint64(rows)}}
	if a.outNarrow == 0 {
		to.float, to.swizzled, to.strides, to.box = true, true, [2]uint64{4 * uint64(a.outStride)}, [3]uint32{32, piece}
		return to, a.gated == 0 && a.outStride%4 == 0
	}
	to.strides, to.box = [2]uint64{2 * uint64(a.outStride)}, [3]uint32{64, piece}
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
