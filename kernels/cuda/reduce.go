//go:build cuda

package cuda

import (
	"fmt"
	"slices"
	"sync"
	"unsafe"

	"gorgonia.org/cu"

	"manta/kernels"
)

const (
	reduceRanks, reduceBlocks, reduceThreads = 8, 128, 512 // src/reduce.cuh
	signalBytes                              = 4 * (2*reduceRanks*reduceBlocks + 1)
	// pushedBytes bounds what a rank pushes to all others of one sum; larger ones
	// go in two shots. The words that carry them are twice as long.
	pushedBytes = 1 << 20
	boxWords    = pushedBytes / 8
)

// A part is what a rank brings to a collective.
type part struct {
	at      pointer
	columns int32
}

// link joins the tensor ranks of a stage whose devices address each other's memory.
//
// Kernels of several ranks wait for each other, and the driver may wait for running
// kernels when it allocates or makes a graph. So a step with collectives is launched
// only once all ranks have theirs ready to launch, which is where they meet.
type link struct {
	ranks   []*Ops
	signals []pointer
	boxes   []pointer
	early   bool
	blocks  int // of a collective, at most
	way     int // of all sums

	launches, tables meeting

	mu    sync.Mutex // guards what follows, and the meetings
	over  chan struct{}
	ended bool
	table [][]part // of each tensor that was brought, by rank
}

// A meeting is where all ranks come before any goes on.
type meeting struct {
	arrived int
	all     chan struct{}
}

var _ kernels.Linker = (*Ops)(nil)

// Link joins the ranks of a stage; nil where their devices don't reach each other.
func (o *Ops) Link(ranks []kernels.Ops) (kernels.Link, error) {
	l := &link{early: true, blocks: reduceBlocks, over: make(chan struct{}), ended: true}
	if len(ranks) > reduceRanks {
		return nil, nil
	}
	for _, r := range ranks {
		other, ok := r.(*Ops)
		if !ok || other.options.Compute != o.options.Compute {
			return nil, nil
		}
		l.ranks = append(l.ranks, other)
	}
	for i, r := range l.ranks {
		for _, other := range l.ranks[i+1:] {
			if r.info.Index == other.info.Index {
				l.early, l.blocks = false, reduceBlocks/4
			}
		}
	}
	for _, r := range l.ranks {
		for _, other := range l.ranks {
			if reached, err := r.reach(other); err != nil || !reached {
				return nil, err
			}
		}
	}
	for i, r := range l.ranks {
		signals, err := r.allocate(signalBytes)
		if err != nil {
			return nil, err
		}
		box, err := r.allocate(2 * len(ranks) * boxWords * 16)
		if err != nil {
			return nil, err
		}
		l.signals, l.boxes = append(l.signals, signals), append(l.boxes, box)
		if err := r.do(func() (err error) {
			r.fault, err = r.pin(64)
			clear(r.fault)
			return err
		}); err != nil {
			return nil, err
		}
		if err := r.do(r.synchronize); err != nil { // zeroed before anyone writes there
			return nil, err
		}
		r.link, r.rank = l, i
	}
	return l, nil
}

// reach lets a device address what another has.
func (o *Ops) reach(other *Ops) (reached bool, err error) {
	if o.info.Index == other.info.Index {
		return true, nil
	}
	here, err := cu.GetDevice(o.info.Index)
	if err != nil {
		return false, wrapDevice(err, "device")
	}
	there, err := cu.GetDevice(other.info.Index)
	if err != nil {
		return false, wrapDevice(err, "device")
	}
	if can, err := here.CanAccessPeer(there); err != nil || can == 0 {
		return false, wrapDevice(err, "peer access")
	}
	return true, o.do(func() error {
		if err := other.context.EnablePeerAccess(0); err != nil && err != cu.PeerAccessAlreadyEnabled {
			return wrapDevice(err, "peer access")
		}
		return nil
	})
}

// Open begins an epoch: all devices are idle, and count their collectives alike.
func (l *link) Open() {
	l.mu.Lock()
	defer l.mu.Unlock()
	next := uint32(1)
	for _, r := range l.ranks {
		next = max(next, r.number)
	}
	for _, r := range l.ranks {
		r.number = next
	}
	l.launches, l.tables = meeting{all: make(chan struct{})}, meeting{all: make(chan struct{})}
	l.over, l.ended = make(chan struct{}), false
}

// Close ends the epoch: who waits for another rank does so no longer.
func (l *link) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.ended {
		l.ended = true
		close(l.over)
	}
}

// meet returns once all ranks have called it, or none of them, when the epoch ends.
func (l *link) meet(m *meeting) error {
	l.mu.Lock()
	if l.ended {
		l.mu.Unlock()
		return kernels.ErrUnlinked
	}
	all, over := m.all, l.over
	if m.arrived++; m.arrived == len(l.ranks) {
		m.arrived, m.all = 0, make(chan struct{})
		close(all)
	}
	l.mu.Unlock()
	select {
	case <-all:
		return nil
	case <-over:
	}
	select { // it ended after all had come
	case <-all:
		return nil
	default:
		return kernels.ErrUnlinked
	}
}

// exchange gives what all ranks bring as their index-th tensor.
func (l *link) exchange(rank, index int, own part) ([]part, error) {
	l.mu.Lock()
	for len(l.table) <= index {
		l.table = append(l.table, make([]part, len(l.ranks)))
	}
	l.table[index][rank] = own
	l.mu.Unlock()
	if err := l.meet(&l.tables); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.table[index]), nil
}

// Reducer gives a rank its way to the others.
func (l *link) Reducer(rank int) kernels.Reducer {
	return &linked{link: l, rank: rank, known: map[*buffer][]part{}}
}

// linked is a rank's reducer. Its collectives are kernels of the step.
type linked struct {
	link  *link
	rank  int
	known map[*buffer][]part // where all ranks have what stands in this tensor here
}

func (r *linked) Rank() int { return r.rank }
func (r *linked) Size() int { return len(r.link.ranks) }

// begin gives the arguments of the next collective, of a tensor.
func (r *linked) begin(t kernels.Tensor) (reduceArguments, error) {
	o, b := r.link.ranks[r.rank], bufferOf(t)
	if b.narrow {
		panic("cuda: a collective of a narrow tensor: parts of sums are float32")
	}
	parts, ok := r.known[b]
	if !ok {
		var err error
		if parts, err = r.link.exchange(r.rank, len(r.known), part{b.at, int32(t.Cols)}); err != nil {
			return reduceArguments{}, err
		}
		r.known[b] = parts
	}
	a := reduceArguments{fault: pointer(uintptr(unsafe.Pointer(&o.fault[0]))), base: o.step.base, count: pointer(t.Rows * t.Cols), boxWords: boxWords,
		patience: uint64(o.options.Patience), rank: int32(r.rank), ranks: int32(len(parts)), index: int32(o.step.collectives), early: bit(r.link.early), vectors: 1}
	for i, p := range parts {
		a.part[i], a.box[i], a.signals[i], a.columns[i] = p.at, r.link.boxes[i], r.link.signals[i], p.columns
	}
	o.step.collectives++
	o.number++
	return a, nil
}

// AllReduce adds t over all ranks, in place.
func (r *linked) AllReduce(_ kernels.Ops, t kernels.Tensor) error {
	if t.Rows*t.Cols == 0 {
		return nil
	}
	a, err := r.begin(t)
	if err != nil {
		return err
	}
	o, count := r.link.ranks[r.rank], t.Rows*t.Cols
	if way := r.link.way; way == pushed || way == anyWay && 4*count*(len(r.link.ranks)-1) <= pushedBytes {
		o.launch("sumPushed", min(r.link.blocks, ceil(count, 2*reduceThreads)), 1, 1, reduceThreads, 0, bytesOf(&a))
		return nil
	}
	o.launch("sumShared", min(r.link.blocks, ceil(count, 4*reduceThreads*len(r.link.ranks))), 1, 1, reduceThreads, 0, bytesOf(&a))
	return nil
}

// Ways of a sum; tests make all go one. Which is taken does not show in the result.
const (
	anyWay = iota
	pushed
	shared
)

// Gather puts the columns of every rank's part side by side into out, on rank 0.
func (r *linked) Gather(_ kernels.Ops, out, t kernels.Tensor) error {
	if t.Rows*t.Cols == 0 {
		return nil
	}
	a, err := r.begin(t)
	if err != nil {
		return err
	}
	o, width := r.link.ranks[r.rank], 0
	for _, c := range a.columns[:a.ranks] {
		width += int(c)
		if c%4 != 0 {
			a.vectors = 0
		}
	}
	if r.rank == 0 {
		check(width == out.Cols && out.Rows >= t.Rows, "gather over ranks", out, t)
		bufferOf(out).narrow = false
		a.out, a.outStride = bufferOf(out).at, int32(width)
	}
	o.launch("gatherParts", min(r.link.blocks, ceil(t.Rows*width, 4*reduceThreads)), 1, 1, reduceThreads, 0, bytesOf(&a))
	return nil
}

// addsSum makes the sum of y that was written down last add y to x by itself.
func (o *Ops) addsSum(x, y kernels.Tensor) bool {
	s := o.step
	last := len(s.list) - 1
	if last < 0 || s.names[last] != "sumPushed" && s.names[last] != "sumShared" {
		return false
	}
	a := (*reduceArguments)(unsafe.Pointer(&s.arguments[s.list[last].argument]))
	if a.x != 0 || a.part[a.rank] != bufferOf(y).at || a.count != pointer(y.Rows*y.Cols) || bufferOf(x) == bufferOf(y) {
		return false
	}
	a.x = bufferOf(x).at
	return true
}

// absent is the error of a rank for which a kernel waited in vain.
func (o *Ops) absent() error {
	if o.link == nil {
		return nil
	}
	f := (*reduceFault)(unsafe.Pointer(&o.fault[0]))
	if f.seen == 0 {
		return nil
	}
	return fmt.Errorf("%w: tensor rank %d waited %v in vain for rank %d at collective %d", ErrDevice, o.rank, o.options.Patience, f.rank, f.number)
}
