//go:build cuda

package cuda

import (
	"cmp"
	"fmt"
	"slices"

	"manta/kernels"
)

// items are what the attention kernels of one step work on, for KV heads of so
// many query heads: rows that stand alone, and tiles of rows that do not.
type items struct {
	rows, tiles pointer // DecodeItems, PromptItems
	rowCount    int
	tileCount   int
	contexts    []int32 // of the rows that stand alone, the longest first
}

const promptRows = 128 // src/prompt.cuh

// promptItem mirrors PromptItem of src/attention.cuh.
type promptItem struct {
	span, first, row, count, start int32
	_                              [3]int32
}

// decodeItem mirrors DecodeItem of src/attention.cuh.
type decodeItem struct{ row, position, span, _ int32 }

// itemsOf divides the batch, once for each group size.
func (s *slot) itemsOf(group int) *items {
	if it := s.items[group]; it != nil {
		return it
	}
	it := &items{}
	var rows []decodeItem
	var tiles []promptItem
	for i, span := range s.batch.Spans {
		if span.Count == 1 {
			rows = append(rows, decodeItem{row: int32(span.Row), position: s.batch.Positions[span.Row], span: int32(i)})
			continue
		}
		for first := 0; first < span.Count*group; first += promptRows {
			tiles = append(tiles, promptItem{span: int32(i), first: int32(first), row: int32(span.Row), count: int32(span.Count), start: int32(span.Start)})
		}
	}
	// The longest contexts begin first: the last to begin would end alone.
	slices.SortFunc(rows, func(i, j decodeItem) int {
		return cmp.Or(cmp.Compare(j.position, i.position), cmp.Compare(i.span, j.span))
	})
	slices.SortStableFunc(tiles, func(i, j promptItem) int {
		return cmp.Compare(int(j.start)*group+int(j.first), int(i.start)*group+int(i.first))
	})
	for _, r := range rows {
		it.contexts = append(it.contexts, r.position)
	}
	it.rowCount, it.tileCount = len(rows), len(tiles)
	it.rows, it.tiles = s.put(listBytes(rows)), s.put(listBytes(tiles))
	s.items[group] = it
	return it
}

// groupsOf lists the query heads of each KV head in the device's memory.
func (o *Ops) groupsOf(a kernels.Attention) (at pointer, group int) {
	heads := make([][]int32, a.KVHeads)
	for h := range a.Heads {
		kv := a.HeadMap[h]
		heads[kv] = append(heads[kv], int32(h))
		group = max(group, len(heads[kv]))
	}
	key := fmt.Sprint("heads", a.KVHeads, a.HeadMap)
	if at, ok := o.lists[key]; ok {
		return at, group
	}
	list := make([]int32, a.KVHeads*group)
	for i := range list {
		list[i] = -1
		if h := heads[i/group]; i%group < len(h) {
			list[i] = h[i%group]
		}
	}
	at, err := o.upload(listBytes(list))
	o.fail(err) //nolint:errcheck // sticks
	o.lists[key] = at
	return at, group
}

var typeSuffix = map[kernels.DType]string{kernels.F32: "_float", kernels.F16: "_f16", kernels.BF16: "_bf16"}

// Attention stores the batch's keys and values, then attends over what is stored.
func (o *Ops) Attention(out, qkv kernels.Tensor, a kernels.Attention) {
	s, c := o.step, a.Cache.(*cache)
	check(out.Rows == qkv.Rows && qkv.Rows == len(s.batch.Tokens) && !bufferOf(qkv).narrow &&
		out.Cols == a.Heads*a.HeadDim && qkv.Cols == (a.Heads+2*a.KVHeads)*a.HeadDim, "attention", out, qkv)
	if qkv.Rows == 0 {
		return
	}
	b := bufferOf(out)
	b.narrow = o.half
	layer := pointer(a.Layer * c.layerBytes())
	stored := bufferOf(qkv).turned
	groups, group := o.groupsOf(a)
	args := attentionArguments{
		qkv: bufferOf(qkv).at, q: o.queries(&a, qkv.Rows), out: b.at, k: c.k + layer, v: c.v + layer,
		position: s.positions, rowSpan: s.rowSpan, tables: s.tables[a.Group], groups: groups, arrived: o.arrived,
		blockStride: int64(c.spec.KVHeads * kernels.BlockTokens * a.HeadDim),
		rows:        int32(qkv.Rows), heads: int32(a.Heads), kvHeads: int32(a.KVHeads), size: int32(a.HeadDim), stride: int32(s.stride),
		group: int32(group), qNorm: -1, kNorm: -1, normAcross: bit(a.NormAcross), interleaved: bit(a.Interleaved),
		window: int32(a.Window), scale: a.Scale, softcap: a.Softcap,
	}
	if n := a.QNorm; n != nil {
		args.qNorm, args.qGain, args.qBias, args.qEps = int32(n.Kind), vectorAt(n.Weight), vectorAt(n.Bias), n.Eps
	}
	if n := a.KNorm; n != nil {
		args.kNorm, args.kGain, args.kBias, args.kEps = int32(n.Kind), vectorAt(n.Weight), vectorAt(n.Bias), n.Eps
	}
	if a.Rope != nil {
		t := a.Rope.(*ropeTable)
		args.rope, args.pairs = t.at, int32(t.pairs)
	}
	types := o.suffix + typeSuffix[c.spec.Type]
	store := func() {
		if !stored {
			o.launch("store"+types, qkv.Rows, 1, 1, 256, 8*a.HeadDim*4, bytesOf(&args))
		}
	}
	if !o.half || c.spec.Type != o.options.Compute || (a.HeadDim != 64 && a.HeadDim != 128) || group > 16 {
		store()
		o.launch("attend"+types, qkv.Rows, ceil(a.Heads, 4), 1, 128, 4*(2*a.HeadDim+64)*4, bytesOf(&args))
		return
	}
	it := s.itemsOf(group)
	switch {
	case stored, a.NormAcross:
		args.stored = 1
		store()
	case it.tileCount > 0:
		args.stored = 1
		o.launch(fmt.Sprintf("turn%s_%d", o.suffix, a.HeadDim), qkv.Rows, 1, 1, 256, 8*a.HeadDim*4, bytesOf(&args))
	}
	if it.rowCount > 0 {
		o.decode(args, it)
	}
	if it.tileCount == 0 {
		return
	}
	args.items = it.tiles
	if o.wideKernels {
		works := a.KVHeads * it.tileCount
		w := widePromptArguments{attentionArguments: args, works: int32(works), keys: o.pages(c, args.k), values: o.pages(c, args.v)}
		name := "wide_prompt"
		if a.Softcap > 0 {
			name += "_capped"
		}
		o.launch(fmt.Sprintf("%s%s_%d", name, o.suffix, a.HeadDim), min(o.info.Multiprocessor, works), 1, 1, 384, (2*64+6*128)*a.HeadDim*2+1024, bytesOf(&w))
	} else {
		o.launch(fmt.Sprintf("prompt%s_%d", o.suffix, a.HeadDim), a.KVHeads, it.tileCount, 1, 256, 4*64*a.HeadDim*2, bytesOf(&args))
	}
}

// headRows is from how many rows on the product that makes heads turns and stores them.
const headRows = 96

// turns tells whether the product of so many rows turns the heads that it makes and stores
// them. The kernels of rows that stand alone do so by themselves, beside other work.
func (o *Ops) turns(l kernels.Linear, rows int) bool {
	a := l.Attention
	c := a.Cache.(*cache)
	return o.wideKernels && rows >= headRows && c.spec.Type == o.options.Compute && (a.HeadDim == 64 || a.HeadDim == 128) &&
		!l.Gated && !l.Accumulate && l.Softcap == 0 && l.Activation == kernels.Identity && a.Rope != nil && 2*a.Rope.(*ropeTable).pairs == a.HeadDim && !a.Interleaved &&
		a.QNorm == nil && a.KNorm == nil && !a.NormAcross && len(o.step.batch.Spans) < rows
}

// headsOf is where the heads of so many rows go.
func (o *Ops) headsOf(a *kernels.Attention, rows int) headArguments {
	s, c := o.step, a.Cache.(*cache)
	layer := pointer(a.Layer * c.layerBytes())
	return headArguments{rope: a.Rope.(*ropeTable).at, position: s.positions, place: s.places[a.Group], q: o.queries(a, rows), k: c.k + layer, v: c.v + layer,
		heads: int32(a.Heads), kvHeads: int32(a.KVHeads), size: int32(a.HeadDim)}
}

// queries is where the turned queries of so many rows lie.
func (o *Ops) queries(a *kernels.Attention, rows int) pointer {
	return o.need("q", rows*a.Heads*a.HeadDim*4).at
}

// pages lets the copy engine take pages of keys or values: 16 slots of 64 dimensions.
func (o *Ops) pages(c *cache, at pointer) tensorMap {
	slots, size := uint64(c.spec.Blocks*c.spec.KVHeads*kernels.BlockTokens), uint64(c.spec.HeadDim)
	return o.tensorMap(tiling{at: at, dimensions: [5]uint64{size, slots}, strides: [4]uint64{2 * size}, box: [5]uint32{64, kernels.BlockTokens}, swizzled: true})
}
