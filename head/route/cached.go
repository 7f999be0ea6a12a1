package route

import (
	"container/list"

	"manta/runtime/kv"
)

// Cached is what one head believes a replica's prefix cache to hold: the blocks of
// the prompts that it sent there, the least recently sent ones forgotten first, as
// the replica does. A wrong belief costs a hit, nothing else.
type Cached struct {
	epoch  uint64
	most   int
	order  *list.List // of kv.Hash, the most recent first
	blocks map[kv.Hash]*list.Element
}

// NewCached is of a replica's epoch: each begins with nothing cached.
func NewCached(epoch uint64, blocks int) *Cached {
	return &Cached{epoch: epoch, most: max(1, blocks), order: list.New(), blocks: map[kv.Hash]*list.Element{}}
}

// Epoch is the one that it is about.
func (c *Cached) Epoch() uint64 { return c.epoch }

// Hit gives how many tokens of a prompt are cached. A hit ends before the block
// of the prompt's last token.
func (c *Cached) Hit(chain []kv.Hash, prompt int) int {
	n := 0
	for n < len(chain) && (n+1)*kv.BlockTokens < prompt && c.blocks[chain[n]] != nil {
		n++
	}
	return n * kv.BlockTokens
}

// Sent is what one head tells the others of a prompt: the blocks that a replica did not
// have before, as far as was known.
type Sent struct {
	Replica string    `cbor:"1,keyasint"`
	Epoch   uint64    `cbor:"2,keyasint"`
	Blocks  []kv.Hash `cbor:"3,keyasint"`
}

// Sent tells of a prompt that went there. Its last blocks count as the older ones:
// a prefix is of use without what follows, not the other way round.
func (c *Cached) Sent(chain []kv.Hash) {
	for i := len(chain) - 1; i >= 0; i-- {
		if at, ok := c.blocks[chain[i]]; ok {
			c.order.MoveToFront(at)
			continue
		}
		c.blocks[chain[i]] = c.order.PushFront(chain[i])
		if c.order.Len() > c.most {
			last := c.order.Back()
			delete(c.blocks, last.Value.(kv.Hash))
			c.order.Remove(last)
		}
	}
}
