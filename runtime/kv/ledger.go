package kv

import (
	"encoding/binary"
	"fmt"
)

// SequenceID names a sequence within one epoch of a replica.
type SequenceID uint64

// A Ledger is the block tables of all sequences over all block groups.
//
// A group is the layers of one attention kind: window 0 sees every token, window
// w the last w. All groups are accounted on every rank alike.
type Ledger struct {
	pools   []*Pool
	windows []int
	tables  map[SequenceID]*table
	digest  uint64
}

// table is what one sequence holds.
type table struct {
	slots  int         // positions [0, slots) have a block, unless a window has passed it
	blocks [][]BlockID // per group
	passed []int       // per group: leading blocks that are None
}

// NewLedger makes an empty ledger; blocks and windows have an entry a group.
func NewLedger(blocks, windows []int) (*Ledger, error) {
	if len(blocks) != len(windows) || len(blocks) == 0 {
		return nil, fmt.Errorf("kv: %d block counts for %d groups", len(blocks), len(windows))
	}
	l := &Ledger{windows: windows, tables: make(map[SequenceID]*table)}
	for _, n := range blocks {
		l.pools = append(l.pools, NewPool(n))
	}
	return l, nil
}

// Pool gives a group's pool, to read its counts.
func (l *Ledger) Pool(group int) *Pool { return l.pools[group] }

// Groups is the number of groups.
func (l *Ledger) Groups() int { return len(l.pools) }

// Sequences is the number of open sequences.
func (l *Ledger) Sequences() int { return len(l.tables) }

// firstSeen is the first block that a token at position sees.
func firstSeen(position, window int) int {
	if window == 0 {
		return 0
	}
	return max(0, position-window+1) / BlockTokens
}

// Hits gives the number of leading blocks of chain that a new sequence can
// share: the most for which every group holds what the next token would see.
func (l *Ledger) Hits(chain []Hash) int {
	n := len(chain)
	for g, p := range l.pools {
		if l.windows[g] == 0 {
			held := 0
			for held < n && p.Holds(chain[held]) {
				held++
			}
			n = held
		}
	}
	for n > 0 && !l.holds(chain[:n]) {
		n--
	}
	return n
}

func (l *Ledger) holds(chain []Hash) bool {
	for g, p := range l.pools {
		for i := firstSeen(len(chain)*BlockTokens, l.windows[g]); i < len(chain); i++ {
			if !p.Holds(chain[i]) {
				return false
			}
		}
	}
	return true
}

// Open starts a sequence whose leading blocks are those of hits.
func (l *Ledger) Open(id SequenceID, hits []Hash) error {
	if _, ok := l.tables[id]; ok {
		return fmt.Errorf("kv: sequence %d is open already", id)
	}
	if !l.holds(hits) {
		return fmt.Errorf("kv: sequence %d: a block of its prefix of %d is not held", id, len(hits))
	}
	t := &table{slots: len(hits) * BlockTokens, blocks: make([][]BlockID, len(l.pools)), passed: make([]int, len(l.pools))}
	for g, p := range l.pools {
		t.passed[g] = firstSeen(t.slots, l.windows[g])
		for i, h := range hits {
			b := None
			if i >= t.passed[g] {
				b, _ = p.Share(h)
			}
			t.blocks[g] = append(t.blocks[g], b)
		}
	}
	l.tables[id] = t
	l.digest ^= t.digest(id)
	return nil
}

// Lacks gives, per group, how many free blocks are missing for a sequence to
// have slots up to end.
func (l *Ledger) Lacks(id SequenceID, end int) (group, missing int) {
	t := l.tables[id]
	for g, p := range l.pools {
		if m := blocksFor(end) - len(t.blocks[g]) - p.Free(); m > 0 {
			return g, m
		}
	}
	return 0, 0
}

// Grow gives a sequence slots for the positions below end, in every group or,
// with ErrNoBlocks, in none. Blocks that no position from start on sees are
// given back first.
func (l *Ledger) Grow(id SequenceID, start, end int) error {
	t, ok := l.tables[id]
	if !ok {
		return fmt.Errorf("kv: sequence %d is not open", id)
	}
	l.digest ^= t.digest(id)
	defer func() { l.digest ^= t.digest(id) }()
	l.slide(t, start)
	if _, missing := l.Lacks(id, end); missing > 0 {
		return fmt.Errorf("%w: sequence %d lacks %d for %d tokens", ErrNoBlocks, id, missing, end)
	}
	for g, p := range l.pools {
		taken, err := p.Take(max(0, blocksFor(end)-len(t.blocks[g])))
		if err != nil {
			return err
		}
		t.blocks[g] = append(t.blocks[g], taken...)
	}
	t.slots = max(t.slots, end)
	return nil
}

// slide gives back the blocks that no position from start on sees.
func (l *Ledger) slide(t *table, start int) {
	for g, p := range l.pools {
		end := min(firstSeen(start, l.windows[g]), len(t.blocks[g]))
		for i := t.passed[g]; i < end; i++ {
			p.Release(t.blocks[g][i])
			t.blocks[g][i] = None
		}
		t.passed[g] = max(t.passed[g], end)
	}
}

// Slide gives back the blocks of a sequence that no position from start on sees.
func (l *Ledger) Slide(id SequenceID, start int) {
	if t, ok := l.tables[id]; ok {
		l.digest ^= t.digest(id)
		l.slide(t, start)
		l.digest ^= t.digest(id)
	}
}

// Keep indexes a full block of a sequence in every group that still has it.
func (l *Ledger) Keep(id SequenceID, block int, h Hash) error {
	t, ok := l.tables[id]
	if !ok || (block+1)*BlockTokens > t.slots {
		return fmt.Errorf("kv: keep block %d of sequence %d: it has no such block", block, id)
	}
	for g, p := range l.pools {
		if b := t.blocks[g][block]; b != None && p.Keep(b, h) {
			l.digest ^= held(g, h)
		}
	}
	return nil
}

// Evict drops an idle block from a group's index.
func (l *Ledger) Evict(group int, h Hash) error {
	if group < 0 || group >= len(l.pools) {
		return fmt.Errorf("kv: evict %x: no group %d", h, group)
	}
	if err := l.pools[group].Evict(h); err != nil {
		return err
	}
	l.digest ^= held(group, h)
	return nil
}

// Drop closes a sequence and gives its blocks back, the last first, so that
// among idle blocks the ends of prefixes are evicted before their beginnings.
func (l *Ledger) Drop(id SequenceID) error {
	t, ok := l.tables[id]
	if !ok {
		return fmt.Errorf("kv: drop sequence %d: it is not open", id)
	}
	l.digest ^= t.digest(id)
	for g, p := range l.pools {
		for i := len(t.blocks[g]) - 1; i >= t.passed[g]; i-- {
			p.Release(t.blocks[g][i])
		}
	}
	delete(l.tables, id)
	return nil
}

// Blocks gives a sequence's block table per group. It is the ledger's own and
// changes with the next call; positions below Slots are valid.
func (l *Ledger) Blocks(id SequenceID) [][]BlockID { return l.tables[id].blocks }

// Slots is the number of positions that a sequence has slots for.
func (l *Ledger) Slots(id SequenceID) int { return l.tables[id].slots }

// Digest sums up (sequence, slots, blocks per group) of every sequence and the
// hashes held, never block numbers: equal on ranks that have obeyed the same steps.
func (l *Ledger) Digest() uint64 { return l.digest }

func (t *table) digest(id SequenceID) uint64 {
	d := mix(uint64(id)) ^ uint64(t.slots)
	for g, b := range t.blocks {
		d = mix(d) ^ uint64(len(b)-t.passed[g])
	}
	return mix(d)
}

func held(group int, h Hash) uint64 {
	return mix(mix(binary.LittleEndian.Uint64(h[:8])^uint64(group)) ^ binary.LittleEndian.Uint64(h[8:]))
}

// mix is SplitMix64's finaliser.
func mix(z uint64) uint64 {
	z += 0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// blocksFor is the number of blocks that so many tokens fill, the last perhaps in part.
func blocksFor(tokens int) int { return (tokens + BlockTokens - 1) / BlockTokens }

// MostBlocks is the most blocks of a group that a sequence of so many tokens holds
// at once, with steps of at most rows tokens: a windowed group keeps the window
// and the rows of one step.
func MostBlocks(tokens, window, rows int) int {
	if window > 0 {
		tokens = min(tokens, window+rows+BlockTokens)
	}
	return blocksFor(tokens)
}
