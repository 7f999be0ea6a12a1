//go:build cuda

package cuda

import (
	"fmt"
	"math"
)

// A rowsKernel is a way to attend for rows that stand alone, and how long it takes, in
// microseconds on an H200. Whichever is taken, the bits are the same.
type rowsKernel struct {
	name      string
	split     bool    // decode: a block has one chunk, the last one merges
	cluster   int     // spread: blocks of a row and KV head
	stages    int     // spread: chunks that a group of warps has on their way, at most
	slots     float64 // rows and KV heads that stand on a multiprocessor
	begin     float64 // whatever there is to do
	chain     float64 // of the chunks that a row and KV head attends to at once, or of one
	start     float64 // of a row and KV head, in its slot
	work      float64 // of those chunks, in its slot
	bySize    float64 // share of chain and work that goes with the heads' size
	bandwidth float64 // TB/s
}

// Fitted to 1,092 batches of 8B's, 1B's and 0.6B's heads: 1 to 1,024 rows, contexts of 100 to
// 4,000 on average, all alike, evenly from a tenth to nearly twice of that, and exponential.
// The least of them all is 1.4% longer than the fastest, 15 µs of a layer's other kernels with it.
var rowsKernels = []rowsKernel{
	{name: "decode", slots: 4, begin: .87, chain: 1.43, start: 4.21, work: 1.32, bySize: .07, bandwidth: 4.25},
	{name: "decode", split: true, slots: 4, begin: 4, chain: .33, work: 10, bandwidth: 4.25},
	{name: "walk", slots: walkBlocks, begin: 4.78, chain: .91, start: 3.07, work: .86, bySize: 1, bandwidth: 4.29},
	{name: "walk", slots: walkBlocks * walkWarps, begin: 5.36, chain: .84, bySize: .96, bandwidth: 4.28},
	{name: "spread", cluster: 2, stages: 2, slots: .5, begin: 1.71, chain: 1.34, start: .99, work: 1.93, bySize: .9, bandwidth: 4.6},
	{name: "spread", cluster: 2, stages: 1, slots: 1, begin: .98, chain: 2.26, start: 2.57, work: 1.93, bySize: .19, bandwidth: 3.57},
	{name: "spread", cluster: 4, stages: 2, slots: .25, begin: .67, chain: 1.84, start: .93, work: 2.54, bySize: .86, bandwidth: 3.59},
	{name: "spread", cluster: 8, stages: 2, slots: .125, begin: 1.31, chain: 1.96, start: 1.39, work: 3.2, bySize: 1, bandwidth: 4.7},
}

// A rowsLoad is what rows that stand alone see, in chunks of 64 keys.
type rowsLoad struct{ pairs, longest, all int } // pairs: of a row and a KV head

func loadOf(a attentionArguments, it *items) rowsLoad {
	l := rowsLoad{pairs: it.rowCount * int(a.kvHeads)}
	for _, position := range it.contexts {
		first := int32(0)
		if a.window > 0 {
			first = max(0, position-a.window+1)
		}
		n := int(position/64 + 1 - first/64)
		l.longest, l.all = max(l.longest, n), l.all+n
	}
	l.all *= int(a.kvHeads)
	return l
}

// takes says how long.
func (k rowsKernel) takes(l rowsLoad, size, multiprocessors int) float64 {
	once := max(1, k.cluster*spreadGroups) // chunks
	pairs, slots, bySize := float64(l.pairs), k.slots*float64(multiprocessors), 1-k.bySize+k.bySize*float64(size)/128
	rounds := (float64(l.all) + pairs*float64(once-1)/2) / float64(once) // the last one of a context is half empty
	return k.begin + together(float64(l.all*4*64*size)/1e6/k.bandwidth,
		float64(ceil(l.longest, once))*k.chain*bySize,
		(pairs*k.start+rounds*k.work*bySize)/slots)
}

// decode attends for the rows that stand alone, by the kernel that should end first.
func (o *Ops) decode(a attentionArguments, it *items) {
	l := loadOf(a, it)
	a.items, a.chunksMax = it.rows, 1
	for int(a.chunksMax) < l.longest { // steps of like length share a graph
		a.chunksMax = max(a.chunksMax+1, a.chunksMax*5/4)
	}
	best, least := rowsKernels[0], math.Inf(1)
	for _, k := range rowsKernels {
		if takes := k.takes(l, int(a.size), o.info.Multiprocessor); takes < least && o.attends(k, a, l) {
			best, least = k, takes
		}
	}
	switch name := fmt.Sprintf("%s%s_%d", best.name, o.suffix, a.size); best.name {
	case "spread":
		var shared int
		a.stages, shared = best.spreadShared(a)
		o.launchClusters(name, int(a.kvHeads), it.rowCount, best.cluster, 256, shared, best.cluster, bytesOf(&a))
	case "walk":
		together := l.pairs
		if best.slots > walkBlocks {
			together = o.longest(a, it) * int(a.kvHeads)
		}
		a.walks, a.together = int32(l.pairs), int32(together)
		shared := walkWarps*16<<10 + (int(a.size)/16+1)*512 // rings, and what is handed on
		o.launch(name, together+ceil(l.pairs-together, walkWarps), 1, 1, 32*walkWarps, shared, bytesOf(&a))
	default:
		if a.group > 8 {
			name = "decode_wide" + name[len("decode"):]
		}
		splits, tile := 1, stageBytesOf(a)/2
		a.stages = o.decodeTiles(o.kernels[name], l.pairs, tile)
		tiles := int(a.stages)
		if best.split {
			splits, a.partial, a.stages, tiles = int(a.chunksMax), o.need("partial", splitBytes(a, l)).at, 3, 2 // a chunk's own
		}
		o.launch(name, int(a.kvHeads), it.rowCount, splits, 128, tiles*tile, bytesOf(&a))
	}
}

// splitBytes is the memory for what chunks leave behind.
func splitBytes(a attentionArguments, l rowsLoad) int {
	return l.pairs * int(a.chunksMax) * int(a.group) * int(a.size+4) * 4
}

// attends tells whether a kernel can, and may. In steps, which are at the limit of power,
// decode's blocks take some 5 to 15% longer with many rows of uneven contexts than the model
// says, walk's warps do not.
func (o *Ops) attends(k rowsKernel, a attentionArguments, l rowsLoad) bool {
	warps := walkBlocks * walkWarps * o.info.Multiprocessor
	switch {
	case k.split:
		return l.longest > 1 && 2*l.pairs < o.info.Multiprocessor && splitBytes(a, l) <= 256<<20
	case k.name == "decode":
		return a.group > 8 || 4*l.pairs < warps || 2*l.longest*l.pairs < 3*l.all
	case k.name == "walk": // all rows have four warps, or where one each fills the device the longest
		return a.group <= 8 && (k.slots > walkBlocks) == (l.pairs >= warps)
	}
	_, shared := k.spreadShared(a)
	return o.overlap && a.group <= 8 && k.cluster <= l.longest && shared <= o.shared-staticShared
}

// decodeTiles chooses how many tiles a block of a decode kernel has in its ring: three
// to six, as many as leave room for so many blocks on a multiprocessor that the rounds
// are shortest.
func (o *Ops) decodeTiles(k *kernel, pairs, tileBytes int) int32 {
	tiles, least := 3, math.MaxInt
	for blocks := 4; blocks > 0; blocks-- { // at most: src/decode.cuh's launch bounds
		each := (o.shared+1<<10)/blocks - 1<<10 // a block takes 1 KB more than it asks for
		fit := (each - (o.shared - k.shared)) / tileBytes
		// A round lasts as long as its blocks are many.
		if rounds := ceil(pairs, blocks*o.info.Multiprocessor) * blocks; fit >= 3 && rounds < least {
			tiles, least = min(fit, 6), rounds
		}
	}
	return int32(tiles)
}

const (
	walkWarps, walkBlocks     = 4, 3 // of a block, of a multiprocessor: src/walk.cuh
	spreadGroups, spreadWarps = 2, 8 // of a block: src/spread.cuh
)

// longest counts the rows whose contexts are so long that one warp would end with one of
// them last of all: they have the four warps of a block.
func (o *Ops) longest(a attentionArguments, it *items) int {
	seen := func(position int32) int {
		if a.window > 0 {
			position = min(position, a.window)
		}
		return int(position)
	}
	all, n := 0, 0
	for _, position := range it.contexts {
		all += seen(position)
	}
	for n < it.rowCount && 4*seen(it.contexts[n])*walkBlocks*walkWarps*o.info.Multiprocessor > 5*all*int(a.kvHeads) {
		n++
	}
	return n
}

// spreadShared is how many chunks a group of warps has on their way, and the shared memory of
// a block: those, what chunks leave behind of the dimensions that it merges, and their factors.
func (k rowsKernel) spreadShared(a attentionArguments) (stages int32, bytes int) {
	chunks, group := int(a.chunksMax), int(a.group)
	n := min(k.stages, ceil(ceil(chunks, k.cluster), spreadGroups))
	results, own := chunks*group, int(a.size)/k.cluster
	merging := min(spreadWarps, ceil(group*own, 32)) * max(1, 32/own)
	return int32(n), spreadGroups*n*stageBytesOf(a) + results*own*4 + ceil(results, 2)*16 + merging*chunks*16
}

// stageBytesOf is the shared memory of one chunk's keys and values.
func stageBytesOf(a attentionArguments) int { return 2 * 64 * int(a.size) * 2 }
