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

// A pool runs tasks on the caller and on workers-1 threads of its own. Between
// tasks they spin for some tens of microseconds, then park: an idle pool takes
// no processor time. One goroutine at a time calls run and close.
type pool struct {
	workers int
	spin    spinner
	threads []*thread
	ended   sync.WaitGroup

	task  task
	units int
	_     [64]byte
	next  atomic.Int32 // unit to be taken
	_     [64]byte
	turn  atomic.Uint32 // number of the task; changes when one begins
	stop  bool
	_     [64]byte
	busy  atomic.Uint32 // threads that have not finished the task
	_     [64]byte
}

type thread struct {
	parked atomic.Bool
	wake   chan struct{}
	_      [64]byte
}

func newPool(workers int, spin spinner) *pool {
	p := &pool{workers: workers, spin: spin}
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
	p.task, p.units = t, units
	p.begin()
	p.work(0)
	for round := 0; ; round++ {
		left := p.busy.Load()
		if left == 0 {
			break
		}
		if !p.spin.wait(&p.busy, left) && round >= spinRounds {
			runtime.Gosched()
		}
	}
	p.task = nil
}

func (p *pool) begin() {
	p.next.Store(0)
	p.busy.Store(uint32(len(p.threads)))
	p.turn.Add(1)
	for _, t := range p.threads {
		if t.parked.Load() && t.parked.CompareAndSwap(true, false) {
			t.wake <- struct{}{}
		}
	}
}

func (p *pool) work(worker int) {
	for {
		u := int(p.next.Add(1)) - 1
		if u >= p.units {
			return
		}
		p.task.do(worker, u)
	}
}

func (p *pool) serve(t *thread, worker int) {
	defer p.ended.Done()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	seen := uint32(0)
	for {
		p.await(t, seen)
		seen++
		if p.stop {
			return
		}
		p.work(worker)
		p.busy.Add(^uint32(0))
	}
}

// await returns when a task after the one seen has begun.
func (p *pool) await(t *thread, seen uint32) {
	for range spinRounds {
		if p.spin.wait(&p.turn, seen) {
			return
		}
	}
	t.parked.Store(true)
	if p.turn.Load() != seen && t.parked.CompareAndSwap(true, false) {
		return
	}
	<-t.wake
}

// close ends the threads and waits for them.
func (p *pool) close() {
	p.stop = true
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
