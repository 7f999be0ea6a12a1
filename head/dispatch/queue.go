package dispatch

import "container/heap"

// queue holds the requests of one deployment that wait for credit: priority
// first (lower runs first), then the order of arrival. A request that lost its
// replica keeps its place of arrival, so it comes before all that came later.
type queue struct {
	items []*Stream
}

func (q *queue) Len() int { return len(q.items) }

func (q *queue) Less(i, j int) bool {
	a, b := q.items[i], q.items[j]
	if a.request.Priority != b.request.Priority {
		return a.request.Priority < b.request.Priority
	}
	return a.arrival < b.arrival
}

func (q *queue) Swap(i, j int) {
	q.items[i], q.items[j] = q.items[j], q.items[i]
	q.items[i].place, q.items[j].place = i, j
}

// Push and Pop are container/heap's; callers use add, take and remove.
func (q *queue) Push(x any) {
	s := x.(*Stream)
	s.place = len(q.items)
	q.items = append(q.items, s)
}

func (q *queue) Pop() any {
	last := len(q.items) - 1
	s := q.items[last]
	q.items[last] = nil
	q.items = q.items[:last]
	s.place = notQueued
	return s
}

const notQueued = -1

func (q *queue) add(s *Stream) { heap.Push(q, s) }

func (q *queue) first() *Stream { return q.items[0] }

func (q *queue) remove(s *Stream) { heap.Remove(q, s.place) }
