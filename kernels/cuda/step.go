//go:build cuda

package cuda

import (
	"cmp"
	"errors"
	"fmt"
	"runtime"
	"time"
	"unsafe"

	"gorgonia.org/cu"

	"manta/kernels"
)

const (
	slotCount  = 4   // steps that may be in flight
	graphCount = 128 // captured steps that are kept
	captureAt  = 3   // the sight of a step at which it is captured
)

// A slot is one step: what is written down of it, and the pinned memory through
// which it goes. It belongs to the caller from Begin to End, then to the worker,
// then to the waiter, which gives it back.
type slot struct {
	batch       *kernels.Batch
	list        []launch
	names       []string
	arguments   []byte
	meta        []byte  // the batch, as the device reads it
	metaAt      pointer // where it goes
	metaRoom    int
	lists       []byte // what Sample adds
	listsAt     pointer
	items       map[int]*items
	tokens      pointer
	positions   pointer
	rowSpan     pointer
	wanted      pointer
	tables      []pointer // per group
	places      []pointer // per group: each row's slot, where products of so many rows may store heads
	stride      int       // blocks in a row of tables
	samples     []kernels.SampleRow
	seats       []seatCall
	drawn       pointer
	top         pointer
	tops        int // entries of top, over all rows
	scored      bool
	vocabulary  int
	alone       bool    // on this device
	base        pointer // where the number of the first collective stands
	collectives int     // written down so far
	launched    int     // of them
	feed        feed
	err         error // of this step alone

	bring, take func(*slot) error // rows of other stages
	taken       func() error      // sends those that were taken, once they are here

	host      []byte // pinned: meta and lists up, results down
	crossings [2]crossing
	event     cu.Event
	sent      time.Time // when the step began to be handed to the device
	answer    chan answer
}

type answer struct {
	sampled []kernels.Sampled
	err     error
}

// put appends b to the batch's bytes and gives its address.
func (s *slot) put(b []byte) pointer {
	for len(s.meta)%16 != 0 {
		s.meta = append(s.meta, 0)
	}
	at := s.metaAt + pointer(len(s.meta))
	s.meta = append(s.meta, b...)
	if len(s.meta) > s.metaRoom {
		panic(fmt.Sprintf("cuda: a batch of %d bytes where there is room for %d", len(s.meta), s.metaRoom))
	}
	return at
}

// Begin checks the batch and writes down what the kernels need of it.
func (o *Ops) Begin(b *kernels.Batch) error {
	if err := o.sticky(); err != nil {
		return err
	}
	if o.step != nil { // a reducer failed before the last step's End
		o.slots <- o.step
		o.step = nil
	}
	groups, stride, err := checkBatch(b)
	if err != nil {
		return err
	}
	for stride&(stride-1) != 0 { // steps of like length share a graph
		stride++
	}
	s := <-o.slots
	*s = slot{batch: b, stride: stride, items: map[int]*items{}, host: s.host, crossings: s.crossings, event: s.event, answer: make(chan answer, 1), alone: o.alone(),
		list: s.list[:0], names: s.names[:0], arguments: s.arguments[:0], meta: s.meta[:0], lists: s.lists[:0], tables: s.tables[:0], places: s.places[:0]}
	rows, spans := len(b.Tokens), len(b.Spans)
	s.metaRoom = 4*((16+groups)*rows+8+len(b.Wanted)+groups*spans*stride) + 1<<16
	s.metaAt = o.need("batch", s.metaRoom).at
	s.tokens, s.positions, s.wanted = s.put(listBytes(b.Tokens)), s.put(listBytes(b.Positions)), s.put(listBytes(b.Wanted))
	rowSpan := make([]int32, 0, rows)
	for i, span := range b.Spans {
		for range span.Count {
			rowSpan = append(rowSpan, int32(i))
		}
	}
	s.rowSpan = s.put(listBytes(rowSpan))
	table := make([]int32, spans*stride)
	for g := range groups {
		for i := range table {
			table[i] = -1
		}
		for i, span := range b.Spans {
			copy(table[i*stride:(i+1)*stride], span.Blocks[g])
		}
		s.tables = append(s.tables, s.put(listBytes(table)))
		if o.wideKernels && rows >= headRows {
			s.places = append(s.places, s.put(listBytes(places(b, g))))
		}
	}
	if o.link != nil {
		s.base = s.put(listBytes([]uint32{o.number}))
	}
	o.step = s
	return o.sticky()
}

// places gives each row's slot in the cache, counted over all blocks, or -1.
func places(b *kernels.Batch, group int) []int32 {
	list := make([]int32, 0, len(b.Tokens))
	for _, span := range b.Spans {
		for at := span.Start; at < span.Start+span.Count; at++ {
			place := int32(-1)
			if block := span.Blocks[group][at/kernels.BlockTokens]; block >= 0 {
				place = block*kernels.BlockTokens + int32(at%kernels.BlockTokens)
			}
			list = append(list, place)
		}
	}
	return list
}

// checkBatch tells whether spans cover the rows and blocks the positions.
func checkBatch(b *kernels.Batch) (groups, stride int, err error) {
	if len(b.Positions) != len(b.Tokens) {
		return 0, 0, fmt.Errorf("cuda: %d positions for %d tokens", len(b.Positions), len(b.Tokens))
	}
	next, stride := 0, 4 // kernels read four blocks at a time
	for i, s := range b.Spans {
		if i == 0 {
			groups = len(s.Blocks)
		}
		if s.Row != next || s.Count < 1 || s.Row+s.Count > len(b.Tokens) || len(s.Blocks) != groups {
			return 0, 0, fmt.Errorf("cuda: span %d holds rows [%d, %d) in %d groups of blocks, want a start at %d and %d groups", i, s.Row, s.Row+s.Count, len(s.Blocks), next, groups)
		}
		next += s.Count
		for g, blocks := range s.Blocks {
			used := (s.Start + s.Count + kernels.BlockTokens - 1) / kernels.BlockTokens
			if len(blocks) < used {
				return 0, 0, fmt.Errorf("cuda: span %d, group %d: %d blocks for %d positions", i, g, len(blocks), s.Start+s.Count)
			}
			stride = max(stride, len(blocks))
		}
	}
	if next != len(b.Tokens) {
		return 0, 0, fmt.Errorf("cuda: spans cover %d of %d rows", next, len(b.Tokens))
	}
	for i, r := range b.Wanted {
		if r < 0 || int(r) >= len(b.Tokens) || i > 0 && r <= b.Wanted[i-1] {
			return 0, 0, fmt.Errorf("cuda: wanted row %d of %d rows", r, len(b.Tokens))
		}
	}
	return groups, stride, nil
}

// launch writes a kernel down; arguments is its struct.
func (o *Ops) launch(name string, x, y, z, threads, shared int, arguments []byte) {
	o.launchClusters(name, x, y, z, threads, shared, 0, arguments)
}

// launchClusters does so for a kernel whose blocks stand together in clusters along z.
func (o *Ops) launchClusters(name string, x, y, z, threads, shared, cluster int, arguments []byte) {
	k := o.kernels[name]
	if k == nil {
		panic("cuda: no kernel " + name)
	}
	if shared > k.shared {
		panic(fmt.Sprintf("cuda: %s wants %d bytes of shared memory, may have %d", name, shared, k.shared))
	}
	if x == 0 || y == 0 || z == 0 {
		return
	}
	s := o.step
	for len(s.arguments)%16 != 0 {
		s.arguments = append(s.arguments, 0)
	}
	s.list = append(s.list, launch{k.function, uint32(x), uint32(y), uint32(z), uint32(threads), uint32(shared), uint32(len(s.arguments)), uint32(cluster)})
	s.names = append(s.names, name)
	s.arguments = append(s.arguments, arguments...)
}

// End hands the step to the worker.
func (o *Ops) End() kernels.Pending {
	s := o.step
	o.step = nil
	s.seats, o.seats = o.seats, nil
	o.work <- func() {
		if err := o.sticky(); err == nil && s.err == nil {
			s.err = o.submitted(o.submit(s))
		}
		o.ended <- s
	}
	return &pending{o: o, answer: s.answer}
}

// submitted makes an error stick, unless it is of this epoch alone. Whatever it is,
// ranks that would wait for this one are told.
func (o *Ops) submitted(err error) error {
	if err != nil && o.link != nil {
		o.link.Close()
	}
	if ofEpoch(err) {
		return err
	}
	return o.fail(err)
}

// ofEpoch tells whether an error is of a step and its epoch, not of the device.
func ofEpoch(err error) bool {
	var step ofStep
	return errors.Is(err, kernels.ErrUnlinked) || errors.As(err, &step)
}

// submit brings the step's data to the device, launches it, and sees that what it draws comes back.
func (o *Ops) submit(s *slot) error {
	if err := o.seat(s.seats, false); err != nil {
		return err
	}
	if s.bring != nil {
		if err := s.bring(s); err != nil {
			return err
		}
	}
	s.sent = time.Now()
	results := len(s.samples)*16 + s.tops*8
	if size := len(s.meta) + len(s.lists) + results + 64; len(s.host) < size {
		host, err := o.pin(2 * size) // grows by doubling; the old one stays until Close
		if err != nil {
			return err
		}
		s.host = host
	}
	if err := o.deliver(s); err != nil {
		return err
	}
	graph, err := o.graphOf(s)
	if err != nil {
		return err
	}
	if s.collectives > s.launched {
		if graph == nil { // the device's queue has room for a step, whatever others wait for
			if err := o.synchronize(); err != nil {
				return err
			}
		}
		if err := o.link.meet(&o.link.launches); err != nil {
			return err
		}
	}
	if err := o.launchStep(s, graph); err != nil {
		return err
	}
	if s.take != nil {
		if err := s.take(s); err != nil {
			return err
		}
	}
	if s.scored { // else draw has left its tokens there
		if err := o.download(s); err != nil {
			return err
		}
	}
	if err := s.event.Record(o.stream); err != nil {
		return fmt.Errorf("%w: event: %v", ErrDevice, err)
	}
	return nil
}

// deliver brings the batch to the device.
func (o *Ops) deliver(s *slot) error {
	const most = 16 << 10 // bytes that a kernel reads over the bus; a copy is faster for more
	a := deliverArguments{posted: o.posted, from: addressOf(s.host)}
	if len(s.samples) > 0 {
		a.drawn = addressOf(s.host[s.down():])
	}
	copy(s.host, s.meta)
	copy(s.host[len(s.meta):], s.lists)
	upload := func(at pointer, b []byte) error {
		if len(b) == 0 {
			return nil
		}
		err := cu.MemcpyHtoDAsync(cu.DevicePtr(at), unsafe.Pointer(&b[0]), int64(len(b)), o.stream)
		return wrapDevice(err, "upload of a step")
	}
	if len(s.meta) <= most {
		a.to, a.words = s.metaAt, int32(ceil(len(s.meta), 16)) // meta's room ends later
	} else if err := upload(s.metaAt, s.host[:len(s.meta)]); err != nil {
		return err
	}
	if err := upload(s.listsAt, s.host[len(s.meta):len(s.meta)+len(s.lists)]); err != nil {
		return err
	}
	l := []launch{{function: o.kernels["deliver"].function, x: 1, y: 1, z: 1, threads: 256}}
	return launchAll(o.stream, l, bytesOf(&a), false, func(int) string { return "deliver" })
}

// download copies what was drawn and scored to where draw has left its tokens.
func (o *Ops) download(s *slot) error {
	down := s.down()
	for _, r := range []struct {
		at    pointer
		bytes int
	}{{s.drawn, len(s.samples) * 16}, {s.top, s.tops * 8}} {
		if r.bytes == 0 {
			continue
		}
		if err := cu.MemcpyDtoHAsync(unsafe.Pointer(&s.host[down]), cu.DevicePtr(r.at), int64(r.bytes), o.stream); err != nil {
			return wrapDevice(err, "download of a step")
		}
		down += r.bytes
	}
	return nil
}

// down is where the results begin in the step's pinned memory.
func (s *slot) down() int { return (len(s.meta) + len(s.lists) + 15) / 16 * 16 }

// captured counts how often a step was seen, and has its graph once there is one.
type captured struct {
	seen  int
	tick  uint64
	graph *graph
}

// launchStep launches a graph, or without one kernel by kernel.
func (o *Ops) launchStep(s *slot, graph *graph) error {
	if graph != nil {
		o.hits++
		return graph.launch(o.stream)
	}
	return launchAll(o.stream, s.list, s.arguments, o.overlap, s.name)
}

func (s *slot) name(i int) string { return s.names[i] }

// graphOf gives the graph of a step that was seen before.
func (o *Ops) graphOf(s *slot) (*graph, error) {
	if o.options.NoGraphs || len(s.list) < 8 {
		return nil, nil
	}
	o.tick++
	key := string(listBytes(s.list)) + string(s.arguments)
	c := o.graphs[key]
	if c == nil {
		o.forget()
		c = &captured{}
		o.graphs[key] = c
	}
	c.seen, c.tick = c.seen+1, o.tick
	if c.graph == nil && c.seen >= captureAt {
		g, err := capture(o.stream, s.list, s.arguments, o.overlap, s.name)
		if err != nil {
			return nil, err
		}
		c.graph = g
	}
	return c.graph, nil
}

// forget makes room for one more step: it drops the one that was seen longest ago.
func (o *Ops) forget() {
	if len(o.graphs) < graphCount {
		return
	}
	oldest := ""
	for key, c := range o.graphs {
		if oldest == "" || c.tick < o.graphs[oldest].tick {
			oldest = key
		}
	}
	if g := o.graphs[oldest].graph; g != nil {
		g.destroy()
	}
	delete(o.graphs, oldest)
}

// wait is the second thread: it gives each step's answer when its event has come.
func (o *Ops) wait() {
	defer close(o.waited)
	runtime.LockOSThread()
	o.fail(wrapDevice(cu.SetCurrentContext(o.context), "waiter")) //nolint:errcheck // sticks
	for s := range o.ended {
		if o.sticky() == nil {
			o.fail(wrapDevice(s.event.Synchronize(), "step")) //nolint:errcheck // sticks
			o.fail(o.absent())                                //nolint:errcheck // sticks
		}
		o.spent.ended(s.sent, time.Now())
		if s.taken != nil && s.err == nil && o.sticky() == nil {
			s.err = s.taken()
		}
		a := answer{err: cmp.Or(o.sticky(), s.err)}
		if a.err == nil {
			a.sampled = s.results()
		}
		s.answer <- a
		o.slots <- s
	}
}

func wrapDevice(err error, what string) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %s: %v", ErrDevice, what, err)
}

// results reads what the device drew.
func (s *slot) results() []kernels.Sampled {
	if len(s.samples) == 0 {
		return nil
	}
	b := s.host[s.down():]
	top := b[16*len(s.samples):]
	list := make([]kernels.Sampled, len(s.samples))
	for i, r := range s.samples {
		d := (*drawn)(unsafe.Pointer(&b[16*i]))
		list[i] = kernels.Sampled{Token: d.token}
		if r.TopLogprobs < 0 || d.token < 0 {
			continue
		}
		list[i].Logprob, list[i].Rank = d.logprob, d.rank
		n := min(int(r.TopLogprobs), s.vocabulary)
		list[i].Top = make([]kernels.TokenLogprob, 0, n)
		for range n {
			t := (*topToken)(unsafe.Pointer(&top[0]))
			if t.token >= 0 {
				list[i].Top = append(list[i].Top, kernels.TokenLogprob{Token: t.token, Logprob: t.logprob})
			}
			top = top[8:]
		}
	}
	return list
}

// pending is a step on its way. Wait may be called again.
type pending struct {
	o      *Ops
	answer chan answer
	got    *answer
}

func (p *pending) Wait() ([]kernels.Sampled, error) {
	if p.got == nil {
		a := <-p.answer
		p.got = &a
	}
	return p.got.sampled, p.got.err
}

// RowBytes counts float32: activations cross ranks in full.
func (o *Ops) RowBytes(t kernels.Tensor) int { return 4 * t.Cols }

// Put copies little-endian float32 values in.
func (o *Ops) Put(t kernels.Tensor, src []byte) error {
	if len(src) != 4*t.Rows*t.Cols {
		return fmt.Errorf("cuda: put %d bytes into %d×%d", len(src), t.Rows, t.Cols)
	}
	b := bufferOf(t)
	b.narrow = false
	if len(src) == 0 {
		return nil
	}
	if err := o.flush(); err != nil {
		return err
	}
	return o.do(func() error {
		if err := o.sticky(); err != nil {
			return err
		}
		return o.fail(wrapDevice(cu.MemcpyHtoDAsync(cu.DevicePtr(b.at), unsafe.Pointer(&src[0]), int64(len(src)), o.stream), "put"))
	})
}

// Get copies float32 values out, once all that was called before has run.
func (o *Ops) Get(dst []byte, t kernels.Tensor) error {
	if len(dst) != 4*t.Rows*t.Cols {
		return fmt.Errorf("cuda: get %d bytes from %d×%d", len(dst), t.Rows, t.Cols)
	}
	if len(dst) == 0 {
		return nil
	}
	b := bufferOf(t)
	if err := o.flush(); err != nil {
		return err
	}
	from := b.at
	if b.narrow {
		from = o.need("widened", len(dst)).at
		a := convertArguments{x: b.at, out: from, count: pointer(t.Rows * t.Cols)}
		if err := o.once("widen"+o.suffix, 1024, 256, bytesOf(&a)); err != nil {
			return o.fail(err)
		}
	}
	return o.do(func() error {
		if err := o.sticky(); err != nil {
			return err
		}
		if err := cu.MemcpyDtoHAsync(unsafe.Pointer(&dst[0]), cu.DevicePtr(from), int64(len(dst)), o.stream); err != nil {
			return o.fail(wrapDevice(err, "get"))
		}
		return o.synchronize()
	})
}

// flush launches what the open step has written down so far, so that Put and Get
// stand in order with it: a step with collectives over the host runs in pieces.
func (o *Ops) flush() error {
	s := o.step
	if s == nil || len(s.list) == 0 && len(o.seats) == 0 && s.bring == nil {
		return nil
	}
	seats := o.seats
	o.seats = nil
	err := o.do(func() error {
		if err := o.sticky(); err != nil {
			return err
		}
		piece := &slot{list: s.list, names: s.names, arguments: s.arguments, meta: s.meta, metaAt: s.metaAt,
			lists: s.lists, listsAt: s.listsAt, collectives: s.collectives, launched: s.launched, host: s.host, crossings: s.crossings, bring: s.bring, event: s.event, seats: seats}
		err := o.submitted(o.submit(piece))
		s.host, s.crossings, s.bring = piece.host, piece.crossings, nil
		if err == nil {
			err = o.synchronize() // its pinned memory is used again
		}
		return err
	})
	s.list, s.names, s.arguments, s.launched = s.list[:0], s.names[:0], s.arguments[:0], s.collectives
	s.feed = feed{}
	if ofEpoch(err) {
		s.err = err
		return err
	}
	o.fail(err) //nolint:errcheck // sticks
	return nil
}
