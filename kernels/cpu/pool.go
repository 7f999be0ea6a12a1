package cpu

import (
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"
)

// A task is work in units that may run in any order, on any worker.
type task interface {
	do(worker, unit int)
}

// spinPauses bounds one wait in assembly, which cannot be preempted (about 10 µs
// on AVX-512 machines); spinRounds of them pass before a worker parks.
const (
	spinPauses = 256
	spinRounds = 8
)

// A pool runs tasks on the caller and on workers-1 goroutines of its own. Between
// tasks they spin for some tens of microseconds, then park: an idle pool takes
// no processor time. A worker that comes when all units are taken is not waited
// for, so that a processor that others use delays nothing. After rest the first
// worker parks at once: what waits for a processor, as all that becomes of a step's
// tokens, has its, and it comes back when that is done. One goroutine at a time
// calls run, rest and close.
type pool struct {
	workers int
	spin    spinner
	threads []*thread
	ended   sync.WaitGroup
	stop    atomic.Bool

	task   task
	ranges []unitRange // one a worker
	_      [64]byte
	// gate holds the task's number, whether it is closed to those who come late,
	// whether the first worker rests, and how many work at it.
	gate atomic.Uint32
	_    [64]byte
}

// Parts of the gate.
const (
	working uint32 = 1<<10 - 1
	closed  uint32 = 1 << 10
	resting uint32 = 1 << 11
	turn    uint32 = 1 << 12
)

// A unitRange is the consecutive units that one worker does first, so that the
// memory they read lies together; who has done its own takes from the others.
type unitRange struct {
	next atomic.Int32
	end  int32
	_    [120]byte // lines come in pairs
}

type thread struct {
	parked atomic.Bool
	wake   chan struct{}
	_      [64]byte
}

func newPool(workers int, spin spinner) *pool {
	p := &pool{workers: workers, spin: spin, ranges: make([]unitRange, workers)}
	p.gate.Store(closed)
	for i := 1; i < workers; i++ {
		t := &thread{wake: make(chan struct{}, 1)}
		p.threads = append(p.threads, t)
		p.ended.Add(1)
		go p.serve(t, i)
	}
	return p
}

// run does all units and returns when they are done.
func (p *pool) run(t task, units int) {
	if len(p.threads) == 0 || units <= 1 {
		for u := range units {
			t.do(0, u)
		}
		return
	}
	p.task = t
	for w := range p.ranges {
		p.ranges[w].end = int32((w + 1) * units / p.workers)
		p.ranges[w].next.Store(int32(w * units / p.workers))
	}
	p.begin()
	p.work(0)
	p.gate.Or(closed)
	for round := 0; ; round++ {
		g := p.gate.Load()
		if g&working == 0 {
			break
		}
		if !p.spin.wait(&p.gate, g) && round >= spinRounds {
			runtime.Gosched()
		}
	}
	p.task = nil
}

// rest lets the first worker park until the next task.
func (p *pool) rest() {
	if len(p.threads) > 0 {
		p.gate.Or(resting)
	}
}

// begin opens the gate for the next task and wakes who has parked.
func (p *pool) begin() {
	p.gate.Store(p.gate.Load()&^(closed|resting) + turn)
	for _, t := range p.threads {
		if t.parked.Load() && t.parked.CompareAndSwap(true, false) {
			t.wake <- struct{}{}
		}
	}
}

func (p *pool) work(worker int) {
	for i := range p.ranges {
		r := &p.ranges[(worker+i)%p.workers]
		for {
			u := r.next.Add(1) - 1
			if u >= r.end {
				break
			}
			p.task.do(worker, int(u))
		}
	}
}

func (p *pool) serve(t *thread, worker int) {
	defer p.ended.Done()
	done := uint32(0)
	for p.join(t, done) {
		p.work(worker)
		done = p.gate.Add(^uint32(0)) / turn
	}
}

// join waits for a task other than the one done and joins those who work at it;
// false means to end.
func (p *pool) join(t *thread, done uint32) bool {
	for round := 0; ; {
		g := p.gate.Load()
		switch {
		case g&closed == 0 && g/turn != done:
			if p.stop.Load() {
				return false
			}
			if p.gate.CompareAndSwap(g, g+1) {
				return true
			}
		case round < spinRounds && (g&resting == 0 || t != p.threads[0]):
			if !p.spin.wait(&p.gate, g) {
				round++
			}
		default:
			p.park(t, done)
			round = 0
		}
	}
}

// park sleeps until a task begins.
func (p *pool) park(t *thread, done uint32) {
	t.parked.Store(true)
	if g := p.gate.Load(); g&closed == 0 && g/turn != done && t.parked.CompareAndSwap(true, false) {
		return
	}
	<-t.wake
}

// close ends the threads and waits for them.
func (p *pool) close() {
	p.stop.Store(true)
	p.begin()
	p.ended.Wait()
	p.threads = nil
}

// A spinner waits for a word to change.
type spinner func(word *uint32, value uint32, pauses uintptr) bool

// wait tells whether the word differs from value after at most spinPauses.
func (s spinner) wait(word *atomic.Uint32, value uint32) bool {
	return s(wordOf(word), value, spinPauses)
}

func wordOf(w *atomic.Uint32) *uint32 { return (*uint32)(unsafe.Pointer(w)) }
