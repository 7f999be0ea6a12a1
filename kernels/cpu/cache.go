package cpu

import (
	"fmt"
	"math"

	"manta/kernels"
	"manta/kernels/ref"
)

func storeBytes(store int) int {
	if store == storeF32 {
		return 4
	}
	return 2
}

// A cache holds keys and values by block, layer, head, so that memory is taken as
// blocks come into use. In a block the keys of a head lie by dimension, the 16 tokens side by side, so that a vector holds the
// scores of 16 tokens; values lie by token. Dimensions are padded to 16; the pad
// of the keys stays zero.
type cache struct {
	spec  kernels.CacheSpec
	store int
	dim   int // padded
	k, v  []byte
}

func (c *cache) Spec() kernels.CacheSpec { return c.spec }

// headBytes is the size of one head's keys (or values) of a block.
func (c *cache) headBytes() int { return c.dim * kernels.BlockTokens * storeBytes(c.store) }

// layerBytes is the distance of two layers of a block.
func (c *cache) layerBytes() int { return c.spec.KVHeads * c.headBytes() }

// blockBytes is the distance of two blocks.
func (c *cache) blockBytes() int { return c.spec.Layers * c.layerBytes() }

// at gives where a head's part of block 0 of a layer begins.
func (c *cache) at(layer, head int) int {
	return layer*c.layerBytes() + head*c.headBytes()
}

// Cache maps the memory of all blocks; the system gives it where it is written.
func (o *Ops) Cache(spec kernels.CacheSpec) (kernels.Cache, error) {
	if spec.Layers < 0 || spec.Blocks < 0 || spec.KVHeads < 0 || spec.HeadDim < 0 {
		return nil, fmt.Errorf("%w: cache of %+v", ErrShape, spec)
	}
	c := &cache{spec: spec, dim: (spec.HeadDim + 15) / 16 * 16}
	switch spec.Type {
	case kernels.F32:
		c.store = storeF32
	case kernels.F16:
		c.store = storeF16
	case kernels.BF16:
		c.store = storeBF16
	default:
		return nil, fmt.Errorf("%w: a cache of type %s; use F32, F16 or BF16", ErrShape, spec.Type)
	}
	n := spec.Blocks * c.blockBytes()
	var err error
	if c.k, err = o.memory.take(n); err == nil {
		c.v, err = o.memory.take(n)
	}
	if err != nil {
		return nil, fmt.Errorf("cache of %+v: %w", spec, err)
	}
	return c, nil
}

// A ropeTable holds cos and sin of position · inverse[i], times a scale, for the
// positions that have been met so far.
type ropeTable struct {
	inverse   []float32
	scale     float32
	positions int
	cos, sin  []float32 // position · pairs + pair
}

func (t *ropeTable) Dim() int { return 2 * len(t.inverse) }

// Rope keeps the frequencies; angles are computed as positions come.
func (o *Ops) Rope(inverse []float32, scale float32, positions int) (kernels.RopeTable, error) {
	if positions < 0 {
		return nil, fmt.Errorf("%w: rope of %d positions", ErrShape, positions)
	}
	return &ropeTable{inverse: append([]float32(nil), inverse...), scale: scale, positions: positions}, nil
}

// reach computes the angles of positions up to last.
func (t *ropeTable) reach(last int) {
	n := len(t.inverse)
	if n == 0 || last < len(t.cos)/n {
		return
	}
	if last >= t.positions {
		panic(fmt.Sprintf("cpu: rope: position %d of %d", last, t.positions))
	}
	from := len(t.cos) / n
	upto := min(t.positions, max(last+1, 2*from, 64))
	t.cos = append(t.cos, make([]float32, (upto-from)*n)...)
	t.sin = append(t.sin, make([]float32, (upto-from)*n)...)
	for p := from; p < upto; p++ {
		ref.RopeAngles(p, t.inverse, t.scale, t.cos[p*n:(p+1)*n], t.sin[p*n:(p+1)*n])
	}
}

// put stores one head of one token: its key and its value, of c.dim numbers each.
func (c *cache) put(s *kernelSet, layer, head int, block int32, slot int, k, v []float32, narrow []uint16) {
	at := c.at(layer, head) + int(block)*c.blockBytes()
	if c.store == storeF32 {
		for d, x := range k[:c.spec.HeadDim] {
			*floatIn(c.k, at+4*(kernels.BlockTokens*d+slot)) = x
		}
		copy(c.v[at+4*c.dim*slot:], bytesOf(v[:c.dim]))
		return
	}
	s.narrow[c.store](&narrow[0], &k[0], uintptr(c.dim))
	for d, x := range narrow[:c.spec.HeadDim] {
		*halfIn(c.k, at+2*(kernels.BlockTokens*d+slot)) = x
	}
	s.narrow[c.store](halfIn(c.v, at+2*c.dim*slot), &v[0], uintptr(c.dim))
}

var negativeInfinity = float32(math.Inf(-1))
