// Package kv counts the fixed-size blocks that hold attention keys and values.
// It never touches device memory.
//
// The paging scheme is that of Kwon et al., SOSP 2023, §4.2 (PagedAttention);
// sharing by a chain of block hashes is vLLM's automatic prefix caching.
//
// A Ledger belongs to one goroutine (the driver's step loop, or a rank), so
// nothing here has a lock. The driver's ledger and those of its ranks see the
// same calls in the same order, hence hold the same counts and hashes; which
// block number a rank picks is its own affair.
package kv

import (
	"errors"
	"fmt"
)

// BlockID names a block of one pool; None stands for a block that a window has passed.
type BlockID = int32

// None is no block.
const None BlockID = -1

// ErrNoBlocks means that a pool has fewer free blocks than were asked for.
var ErrNoBlocks = errors.New("kv: no free blocks")

// Pool records who holds each block of one group.
//
// Invariants: b is in free, exactly once, if and only if refs[b] == 0; b is in
// the idle list if and only if the index alone holds it.
type Pool struct {
	refs  []int32          // refs[b] counts the sequences holding b, plus one while the index does.
	free  []BlockID        // A stack: what was used last is used next, so untouched memory stays untouched.
	index map[Hash]BlockID // Full blocks by the hash of all tokens up to their end.
	hash  []Hash           // hash[b] is valid while b is in index.
	idle  idleList
}

// NewPool makes a pool of free blocks.
func NewPool(blocks int) *Pool {
	p := &Pool{
		refs:  make([]int32, blocks),
		free:  make([]BlockID, blocks),
		index: make(map[Hash]BlockID),
		hash:  make([]Hash, blocks),
		idle:  newIdleList(blocks),
	}
	for i := range p.free {
		p.free[i] = BlockID(blocks - 1 - i)
	}
	return p
}

// Size is the number of blocks.
func (p *Pool) Size() int { return len(p.refs) }

// Free is the number of blocks that nothing holds.
func (p *Pool) Free() int { return len(p.free) }

// Idle is the number of blocks that only the index holds.
func (p *Pool) Idle() int { return p.idle.len }

// Take gives n blocks with one reference each, or ErrNoBlocks and no block.
// The caller owns the slice.
func (p *Pool) Take(n int) ([]BlockID, error) {
	if n > len(p.free) {
		return nil, fmt.Errorf("%w: want %d, free %d of %d", ErrNoBlocks, n, len(p.free), len(p.refs))
	}
	taken := make([]BlockID, n)
	for i := range taken {
		b := p.free[len(p.free)-1]
		p.free = p.free[:len(p.free)-1]
		p.refs[b] = 1
		taken[i] = b
	}
	return taken, nil
}

// Holds reports whether the index has a block of this hash.
func (p *Pool) Holds(h Hash) bool {
	_, ok := p.index[h]
	return ok
}

// Share adds a reference to the block of this hash.
func (p *Pool) Share(h Hash) (BlockID, bool) {
	b, ok := p.index[h]
	if !ok {
		return None, false
	}
	if p.refs[b] == 1 {
		p.idle.remove(b)
	}
	p.refs[b]++
	return b, true
}

// Keep puts a held block into the index. It does nothing, and says so, if the
// index has that hash already.
func (p *Pool) Keep(b BlockID, h Hash) bool {
	if _, ok := p.index[h]; ok {
		return false
	}
	p.index[h] = b
	p.hash[b] = h
	p.refs[b]++
	return true
}

// Release gives back one reference.
func (p *Pool) Release(b BlockID) {
	p.refs[b]--
	switch {
	case p.refs[b] < 0:
		panic(fmt.Sprintf("kv: block %d released more often than taken", b))
	case p.refs[b] == 0:
		p.free = append(p.free, b)
	case p.refs[b] == 1 && p.index[p.hash[b]] == b && p.Holds(p.hash[b]):
		p.idle.push(b)
	}
}

// Evict frees the block of this hash. Only an idle block can be evicted.
func (p *Pool) Evict(h Hash) error {
	b, ok := p.index[h]
	if !ok {
		return fmt.Errorf("kv: evict %x: not held", h)
	}
	if p.refs[b] != 1 {
		return fmt.Errorf("kv: evict %x: %d sequences use it", h, p.refs[b]-1)
	}
	p.idle.remove(b)
	delete(p.index, h)
	p.refs[b] = 0
	p.free = append(p.free, b)
	return nil
}

// Oldest gives the hash of the block that has been idle longest.
func (p *Pool) Oldest() (Hash, bool) {
	if p.idle.len == 0 {
		return Hash{}, false
	}
	return p.hash[p.idle.first()], true
}

// idleList is a queue of blocks that allows removal from the middle. Links are
// by block number; entry n, one past the last block, is both ends.
type idleList struct {
	next, prev []BlockID
	len        int
}

func newIdleList(blocks int) idleList {
	l := idleList{next: make([]BlockID, blocks+1), prev: make([]BlockID, blocks+1)}
	end := BlockID(blocks)
	l.next[end], l.prev[end] = end, end
	return l
}

func (l *idleList) first() BlockID { return l.next[len(l.next)-1] }

func (l *idleList) push(b BlockID) {
	end := BlockID(len(l.next) - 1)
	last := l.prev[end]
	l.next[last], l.prev[b] = b, last
	l.next[b], l.prev[end] = end, b
	l.len++
}

func (l *idleList) remove(b BlockID) {
	l.next[l.prev[b]], l.prev[l.next[b]] = l.next[b], l.prev[b]
	l.len--
}
