//go:build cuda

package cuda

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"unsafe"

	"gorgonia.org/cu"

	"manta/kernels"
)

const (
	reduceRanks, reduceBlocks, reduceThreads = 8, 128, 512 // src/reduce.cuh
	signalBytes                              = 4 * (2*reduceRanks*reduceBlocks + 1)
	// A rank pushes at most onceBytes to the others in one shot, parts of at most
	// twiceBytes in two.
	onceBytes, twiceBytes = 2 << 20, 16 << 20
	halfBytes             = 2 * twiceBytes // of a rank's box: all parts' shares, and the shares of the sum
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
// only once all ranks have theirs ready to launch, which is where they meet. Ranks of
// another stage do not meet these: on a device that both use, one may still wait so.
type link struct {
	ranks   []*Ops
	signals []pointer
	boxes   []pointer
	early   bool // the next kernel is let in while a collective waits: no two ranks share a device
	blocks  int  // of a collective, at most
	way     int  // of all sums

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
		box, err := r.allocate(2 * halfBytes)
		if err != nil {
			return nil, err
		}
		l.signals, l.boxes = append(l.signals, signals), append(l.boxes, box)
		if err := r.do(func() (err error) {
			r.fault, err = r.pin(64)
			clear(r.fault)
			return errors.Join(err, wrapDevice(cu.MemsetD8Async(cu.DevicePtr(box), 0xff, 2*halfBytes, r.stream), "boxes"))
		}); err != nil {
			return nil, err
		}
		if err := r.do(r.synchronize); err != nil { // as it must be before anyone writes there
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
	return &linked{link: l, rank: rank, known: map[*buffer][]part{}, gathered: map[*buffer]pointer{}}
}

var _ kernels.Follower = (*linked)(nil)

// linked is a rank's reducer. Its collectives are kernels of the step.
type linked struct {
	link      *link
	rank      int
	known     map[*buffer][]part  // where all ranks have what stands in this tensor here
	gathered  map[*buffer]pointer // where rank 0 has the columns of all
	exchanges int
}

// exchange brings a tensor, and gives what all ranks bring with their call of that number.
func (r *linked) exchange(own part) ([]part, error) {
	r.exchanges++
	return r.link.exchange(r.rank, r.exchanges-1, own)
}

func (r *linked) Rank() int { return r.rank }
func (r *linked) Size() int { return len(r.link.ranks) }

// begin gives the arguments of the next collective, of a tensor.
func (r *linked) begin(t kernels.Tensor) (reduceArguments, error) {
	b := bufferOf(t)
	if b.narrow {
		panic("cuda: a collective of a narrow tensor: parts of sums are float32")
	}
	parts, ok := r.known[b]
	if !ok {
		var err error
		if parts, err = r.exchange(part{b.at, int32(t.Cols)}); err != nil {
			return reduceArguments{}, err
		}
		r.known[b] = parts
	}
	a := r.collective(t.Rows * t.Cols)
	for i, p := range parts {
		a.part[i], a.columns[i] = p.at, p.columns
	}
	return a, nil
}

// collective gives the arguments of the next one that need no tensor.
func (r *linked) collective(count int) reduceArguments {
	o := r.link.ranks[r.rank]
	a := reduceArguments{fault: pointer(uintptr(unsafe.Pointer(&o.fault[0]))), base: o.step.base, count: pointer(count), half: halfBytes / 4,
		patience: uint64(o.options.Patience), rank: int32(r.rank), ranks: int32(len(r.link.ranks)), index: int32(o.step.collectives), early: bit(r.link.early), vectors: 1}
	copy(a.box[:], r.link.boxes)
	copy(a.signals[:], r.link.signals)
	o.step.collectives++
	o.number++
	return a
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
	o, n, way := r.link.ranks[r.rank], len(r.link.ranks), r.link.way
	quads := ceil(t.Rows*t.Cols, 4)
	if way == anyWay {
		way = wayOf(quads, n)
	}
	kernel, share := "sumOnce", quads
	switch way {
	case pushedOnce:
		a.slot = uint64(4 * quads)
	case pushedTwice:
		kernel, share = "sumTwice", ceil(quads, n)
		a.slot = uint64(4 * share)
	case readThere:
		kernel, share = "sumRead", ceil(quads, n)
	}
	o.launch(kernel, min(r.link.blocks, ceil(share, reduceThreads)), 1, 1, reduceThreads, 0, bytesOf(&a))
	return nil
}

// Ways of a sum; tests make all go one. Which is taken does not show in the result.
const (
	anyWay = iota
	pushedOnce
	pushedTwice
	readThere
)

// wayOf chooses the way of a sum of so many quads over n ranks.
func wayOf(quads, n int) int {
	switch bytes := 16 * quads; {
	case bytes*(n-1) <= onceBytes:
		return pushedOnce
	case 2*n*16*ceil(quads, n) <= halfBytes:
		return pushedTwice
	}
	return readThere
}

// Gather puts the columns of every rank's part side by side into out, on rank 0.
func (r *linked) Gather(_ kernels.Ops, out, t kernels.Tensor) error {
	if t.Rows*t.Cols == 0 {
		return nil
	}
	a, err := r.begin(t)
	if err != nil {
		return err
	}
	b, o, width, at := bufferOf(t), r.link.ranks[r.rank], 0, 0
	for i, c := range a.columns[:a.ranks] {
		if i == r.rank {
			at = width
		}
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
	whole, ok := r.gathered[b]
	if !ok {
		parts, err := r.exchange(part{a.out, 0})
		if err != nil {
			return err
		}
		whole = parts[0].at
		r.gathered[b] = whole
	}
	if r.rank == 0 && whole != a.out {
		panic("cuda: a tensor's columns are gathered in one place")
	}
	// What rank 0 had there before has been read: it has come to this step's sums since.
	if a.index > 0 && a.vectors == 1 && o.moves(b.at, whole+pointer(4*at), width) {
		a.moved = 1
	}
	o.launch("gatherParts", min(r.link.blocks, ceil(t.Rows*width, 4*reduceThreads)), 1, 1, reduceThreads, 0, bytesOf(&a))
	return nil
}

// Follow implements kernels.Follower.
func (r *linked) Follow(_ kernels.Ops, rows []kernels.SampleRow) error {
	o := r.link.ranks[r.rank]
	var seats []int32
	for _, row := range rows {
		if row.Seat >= 0 && row.Target < 0 {
			seats = append(seats, row.Seat)
		}
	}
	if len(seats) == 0 {
		return nil
	}
	a := followArguments{reduceArguments: r.collective(len(seats)), seats: o.step.put(listBytes(seats)), last: o.last}
	a.slot = uint64(len(seats))
	o.launch("followDrawn", 1, 1, 1, reduceThreads, 0, bytesOf(&a))
	return nil
}

// moves has the product that was written down last write elsewhere what it would write at
// from, row after row with a stride.
func (o *Ops) moves(from, to pointer, stride int) bool {
	s := o.step
	last := len(s.list) - 1
	if last < 0 {
		return false
	}
	name, at := s.names[last], unsafe.Pointer(&s.arguments[s.list[last].argument])
	switch kind, _, _ := strings.Cut(name, "_"); kind {
	case "line":
		a := (*lineArguments)(at)
		if a.out != from {
			return false
		}
		a.out = to
	case "gemv", "gemm", "linear", "wide":
		a := (*linearArguments)(at)
		if a.out != from {
			return false
		}
		a.out, a.outStride = to, int32(stride)
		for _, t := range wideTiles {
			if w := (*wideArguments)(at); t.kernel(o.suffix) == name {
				w.layOut(o, t)
			}
		}
	default:
		return false
	}
	return true
}

// addsSum makes the sum of y that was written down last add y to x by itself.
func (o *Ops) addsSum(x, y kernels.Tensor) bool {
	s := o.step
	last := len(s.list) - 1
	if last < 0 || !strings.HasPrefix(s.names[last], "sum") {
		return false
	}
	a := (*reduceArguments)(unsafe.Pointer(&s.arguments[s.list[last].argument]))
	if a.x != 0 || a.part[a.rank] != bufferOf(y).at || a.count != pointer(y.Rows*y.Cols) || bufferOf(x) == bufferOf(y) {
		return false
	}
	a.x = bufferOf(x).at
	return true
}

// sumsRows makes the sum that was written down last, whose rows are normalised next, do
// so by itself, and lets the product in that reads them.
func (o *Ops) sumsRows(p normArguments) bool {
	s := o.step
	last := len(s.list) - 1
	if last < 0 || p.rows > reduceBlocks || s.names[last] != "sumOnce" && s.names[last] != "sumTwice" {
		return false
	}
	a := (*reduceArguments)(unsafe.Pointer(&s.arguments[s.list[last].argument]))
	if a.x != p.x || a.count != pointer(p.rows*p.columns) || p.xStride != p.columns || p.columns%4 != 0 {
		return false
	}
	kernel, held := "sumRowsOnce", int(p.rows)
	if s.names[last] == "sumTwice" {
		kernel, held = "sumRowsTwice", ceil(int(p.rows), int(a.ranks))
	}
	r := sumRowsArguments{reduceArguments: *a, gain: p.gain, prepared: p.out, scale: p.scale, rows: p.rows, columns: p.columns, preparedStride: p.outStride, eps: p.eps}
	r.slot = uint64(held) * uint64(p.columns)
	if kernel == "sumRowsTwice" && 4*2*uint64(a.ranks)*r.slot > halfBytes {
		return false
	}
	s.arguments, s.list, s.names = s.arguments[:s.list[last].argument], s.list[:last], s.names[:last]
	o.launch(kernel, min(o.link.blocks, int(p.rows)), 1, 1, reduceThreads, 0, bytesOf(&r))
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
