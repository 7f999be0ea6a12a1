package token

import "math/bits"

// The merges of byte-pair encoding: Sennrich et al. 2016, "Neural Machine
// Translation of Rare Words with Subword Units", §3.2. The pair of neighbours
// with the lowest rank is merged first, the leftmost of equals, until no pair
// has a rank.

// noRank stands where a pair does not merge.
const noRank = 1<<31 - 1

// merged is what a pair becomes.
type merged struct {
	rank, id int32
}

// mergeTable finds the merge of a pair of ids: a hash table with open
// addressing, twice as fast as a map and a third of its size.
type mergeTable struct {
	slots []mergeSlot
	shift uint
}

// mergeSlot is empty when rank is 0: ranks are stored plus one.
type mergeSlot struct {
	left, right int32
	rank, id    int32
}

func newMergeTable(n int) mergeTable {
	size := uint(bits.Len(uint(n*3/2 | 15)))
	return mergeTable{slots: make([]mergeSlot, 1<<size), shift: 64 - size}
}

func (m *mergeTable) home(left, right int32) int {
	return int((uint64(uint32(left))<<32 | uint64(uint32(right))) * 0x9e3779b97f4a7c15 >> m.shift)
}

// set records a merge; of two for one pair the later stays, as in the reference.
func (m *mergeTable) set(left, right, rank, id int32) {
	for at := m.home(left, right); ; at = (at + 1) & (len(m.slots) - 1) {
		if s := &m.slots[at]; s.rank == 0 || s.left == left && s.right == right {
			*s = mergeSlot{left, right, rank + 1, id}
			return
		}
	}
}

func (m *mergeTable) find(left, right int32) merged {
	for at := m.home(left, right); ; at = (at + 1) & (len(m.slots) - 1) {
		s := &m.slots[at]
		if s.rank == 0 {
			return merged{noRank, 0}
		}
		if s.left == left && s.right == right {
			return merged{s.rank - 1, s.id}
		}
	}
}

// shortWord is the longest word merged by looking through all pairs for the
// lowest rank; longer ones take a queue, so that time stays near linear.
const shortWord = 48

// merge merges the symbols in place and gives what is left of them.
func (m *mergeTable) merge(s *scratch, ids []int32) []int32 {
	if len(ids) > shortWord {
		return m.mergeLong(s, ids)
	}
	var pairs [shortWord]merged
	n := len(ids)
	for i := 0; i+1 < n; i++ {
		pairs[i] = m.find(ids[i], ids[i+1])
	}
	for n > 1 {
		lowest, at := int32(noRank), -1
		for i := 0; i < n-1; i++ {
			if pairs[i].rank < lowest {
				lowest, at = pairs[i].rank, i
			}
		}
		if at < 0 {
			break
		}
		ids[at] = pairs[at].id
		copy(ids[at+1:], ids[at+2:n])
		if at+2 < n {
			copy(pairs[at+1:], pairs[at+2:n-1])
		}
		n--
		if at > 0 {
			pairs[at-1] = m.find(ids[at-1], ids[at])
		}
		if at < n-1 {
			pairs[at] = m.find(ids[at], ids[at+1])
		}
	}
	return ids[:n]
}

// link is one symbol of a long word: its neighbours, and the merge with the
// right one. A symbol that was merged into its left neighbour has rank noRank
// and id -1.
type link struct {
	previous, next int32
	merged
}

// mergeLong merges with a queue of (rank, position). An entry is stale when the
// rank at its position has changed since; ranks are unique to a pair.
func (m *mergeTable) mergeLong(s *scratch, ids []int32) []int32 {
	links := s.links[:0]
	queue := s.queue[:0]
	for i := range ids {
		l := link{int32(i - 1), int32(i + 1), merged{noRank, 0}}
		if i+1 < len(ids) {
			if l.merged = m.find(ids[i], ids[i+1]); l.rank != noRank {
				queue = append(queue, uint64(l.rank)<<32|uint64(i))
			}
		}
		links = append(links, l)
	}
	queue.heapify()
	refresh := func(at int32) {
		l := &links[at]
		if int(l.next) >= len(ids) {
			l.merged = merged{noRank, 0}
			return
		}
		if l.merged = m.find(ids[at], ids[l.next]); l.rank != noRank {
			queue.push(uint64(l.rank)<<32 | uint64(at))
		}
	}
	for len(queue) > 0 {
		top := queue.pop()
		at := int32(uint32(top))
		l := &links[at]
		if l.rank != int32(top>>32) {
			continue
		}
		ids[at] = l.id
		gone := l.next
		l.next = links[gone].next
		if int(l.next) < len(ids) {
			links[l.next].previous = at
		}
		ids[gone] = -1
		links[gone].merged = merged{noRank, 0}
		refresh(at)
		if l.previous >= 0 {
			refresh(l.previous)
		}
	}
	s.links, s.queue = links, queue
	kept := ids[:0]
	for _, id := range ids {
		if id >= 0 {
			kept = append(kept, id)
		}
	}
	return kept
}

// rankQueue is a binary min-heap.
type rankQueue []uint64

func (q rankQueue) heapify() {
	for i := len(q)/2 - 1; i >= 0; i-- {
		q.down(i)
	}
}

func (q rankQueue) down(i int) {
	v := q[i]
	for {
		child := 2*i + 1
		if child >= len(q) {
			break
		}
		if child+1 < len(q) && q[child+1] < q[child] {
			child++
		}
		if q[child] >= v {
			break
		}
		q[i] = q[child]
		i = child
	}
	q[i] = v
}

func (q *rankQueue) push(v uint64) {
	*q = append(*q, v)
	h := *q
	i := len(h) - 1
	for i > 0 {
		parent := (i - 1) / 2
		if h[parent] <= v {
			break
		}
		h[i] = h[parent]
		i = parent
	}
	h[i] = v
}

func (q *rankQueue) pop() uint64 {
	h := *q
	top, last := h[0], len(h)-1
	h[0] = h[last]
	*q = h[:last]
	if last > 0 {
		(*q).down(0)
	}
	return top
}
