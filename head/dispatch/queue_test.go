package dispatch

import (
	"fmt"
	"testing"
	"time"
)

// What it takes to find that none of many keys may have more: each waits, all places
// are taken, and each has more than its share.
func BenchmarkFullFlows(b *testing.B) {
	for _, keys := range []int{10, 100, 1000, 3000} {
		b.Run(fmt.Sprint(keys), func(b *testing.B) {
			q, now := newQueue(), time.Now()
			q.runs = float64(keys)
			for i := range 3 * keys {
				s := &Stream{arrival: uint64(i)}
				s.request.Key = fmt.Sprint(i % keys)
				q.add(s, now)
			}
			for _, f := range q.flows {
				f.running = 1
			}
			now = now.Add(2 * settled)
			for b.Loop() {
				all := q.stand(now)
				for _, f := range q.turns() {
					if q.leaves(f, all, now) == 0 {
						b.Fatal("a key has less than its share")
					}
				}
			}
		})
	}
}
