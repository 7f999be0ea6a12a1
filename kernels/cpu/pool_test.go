package cpu

import (
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"manta/kernels"
)

// Whoever starts threads stops them.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// countTask counts how often each unit is done.
type countTask struct{ done []atomic.Int32 }

func (t *countTask) do(_, unit int) { t.done[unit].Add(1) }

// Each unit of each task is done once, by any number of threads, spinning, parked or
// resting.
func TestPoolDoesEachUnitOnce(t *testing.T) {
	for _, set := range sets() {
		for threads := 1; threads <= 4; threads++ {
			o := device(t, threads, set)
			for round := range 300 {
				units := 1 + round%7
				task := &countTask{make([]atomic.Int32, units)}
				o.pool.run(task, units)
				for u := range task.done {
					if n := task.done[u].Load(); n != 1 {
						t.Fatalf("%s, %d threads, round %d: unit %d done %d times", set.name, threads, round, u, n)
					}
				}
				if round%3 == 0 {
					o.pool.rest()
				}
				if round%100 == 50 { // until all have parked
					for _, other := range o.pool.threads {
						for !other.parked.Load() {
							set.spin(wordOf(&o.pool.gate), o.pool.gate.Load(), 100)
						}
					}
				}
			}
		}
	}
}

// Operations allocate nothing once their memory has grown.
func TestSteadyStateAllocatesNothing(t *testing.T) {
	small := shape{layers: 2, hidden: 128, heads: 4, kv: 2, dim: 32, ffn: 192, vocabulary: 500, layer: kernels.Q4_1, head: kernels.Q8_0}
	for _, precision := range []Precision{Float32, Int16} {
		o := deviceOf(t, Options{Threads: 2, Precision: precision}, fastest())
		m := newStack(t, o, small, 64, 200)
		for _, c := range []struct{ sequences, start, count int }{{1, 600, 1}, {3, 20, 1}, {2, 0, 30}} {
			batch, _ := batchOf(c.sequences, c.start, c.count)
			if n := testing.AllocsPerRun(20, func() { m.step(t, batch, nil) }); n > 1 {
				t.Errorf("precision %d, %v: %v allocations a step, want the answer alone", precision, c, n)
			}
		}
	}
}

// BenchmarkBarrier is the time of a task that does nothing, on all threads.
func BenchmarkBarrier(b *testing.B) {
	o := device(b, 0, fastest())
	t := &countTask{make([]atomic.Int32, len(o.workers))}
	for b.Loop() {
		o.pool.run(t, len(o.workers))
	}
	b.Logf("shortest %v", fastestOf(10000, func() { o.pool.run(t, len(o.workers)) }))
}
