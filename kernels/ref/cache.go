package ref

import (
	"fmt"

	"manta/kernels"
)

// A cache holds keys and values by layer, block, slot in the block, head. They
// are rounded to the cache's type when stored and read as stored.
type cache struct {
	spec kernels.CacheSpec
	k, v store
}

func (c *cache) Spec() kernels.CacheSpec { return c.spec }

// Cache makes the memory of all blocks.
func (o *Ops) Cache(spec kernels.CacheSpec) (kernels.Cache, error) {
	if spec.Layers < 0 || spec.Blocks < 0 || spec.KVHeads < 0 || spec.HeadDim < 0 {
		return nil, fmt.Errorf("%w: cache of %+v", ErrShape, spec)
	}
	n := spec.Layers * spec.Blocks * kernels.BlockTokens * spec.KVHeads * spec.HeadDim
	c := &cache{spec: spec}
	var err error
	if c.k, err = newStore(spec.Type, n); err != nil {
		return nil, err
	}
	c.v, err = newStore(spec.Type, n)
	return c, err
}

// offset gives where the head of a position begins, its block given.
func (c *cache) offset(layer int, block int32, position, head int) int {
	s := c.spec
	slot := (layer*s.Blocks+int(block))*kernels.BlockTokens + position%kernels.BlockTokens
	return (slot*s.KVHeads + head) * s.HeadDim
}

// A store is numbers of one type.
type store struct {
	wide    []float32
	narrow  []uint16
	widen   func(uint16) float32
	narrows func(float32) uint16
}

// newStore gives n zeros.
func newStore(t kernels.DType, n int) (store, error) {
	switch t {
	case kernels.F32:
		return store{wide: make([]float32, n)}, nil
	case kernels.F16:
		return store{narrow: make([]uint16, n), widen: Half, narrows: ToHalf}, nil
	case kernels.BF16:
		return store{narrow: make([]uint16, n), widen: Brain, narrows: ToBrain}, nil
	}
	return store{}, fmt.Errorf("%w: a cache of type %s; use F32, F16 or BF16", ErrShape, t)
}

func (s store) put(at int, x []float32) {
	if s.wide != nil {
		copy(s.wide[at:at+len(x)], x)
		return
	}
	for i, v := range x {
		s.narrow[at+i] = s.narrows(v)
	}
}

func (s store) get(dst []float32, at int) {
	if s.wide != nil {
		copy(dst, s.wide[at:at+len(dst)])
		return
	}
	for i := range dst {
		dst[i] = s.widen(s.narrow[at+i])
	}
}
