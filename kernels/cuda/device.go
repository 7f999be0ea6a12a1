//go:build cuda

package cuda

import (
	"cmp"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"strings"
	"sync"
	"time"
	"unsafe"

	"gorgonia.org/cu"

	"manta/kernels"
)

// The kernels' machine code: make cuda compiles it from src/.
//
//go:embed products.fatbin attention.fatbin rows.fatbin collectives.fatbin
var images embed.FS

// Devices lists the GPUs; none where there is no driver.
func Devices() ([]Info, error) {
	n, err := cu.NumDevices()
	if err != nil || n == 0 {
		return nil, nil // no driver and no device look the same to a user
	}
	list := make([]Info, 0, n)
	for i := range n {
		d, err := cu.GetDevice(i)
		if err != nil {
			return nil, fmt.Errorf("%w: device %d: %v", ErrDevice, i, err)
		}
		info := Info{Index: i}
		if info.Name, err = d.Name(); err == nil {
			info.Memory, err = d.TotalMem()
		}
		if err == nil {
			id, failed := d.UUID()
			info.UUID, err = "GPU-"+id.String(), failed
		}
		if err == nil {
			info.Major, info.Minor, err = d.ComputeCapability()
		}
		if err == nil {
			info.Multiprocessor, err = d.Attribute(multiprocessors)
		}
		for figure, attribute := range map[*int]cu.DeviceAttribute{
			&info.Clock: cu.ClockRate, &info.MemoryClock: cu.MemoryClockRate, &info.MemoryBus: cu.GlobalMemoryBusWidth,
		} {
			if value, failed := d.Attribute(attribute); failed == nil { // a GPU without them is none the worse
				*figure = value
			}
		}
		if err != nil {
			return nil, fmt.Errorf("%w: device %d: %v", ErrDevice, i, err)
		}
		list = append(list, info)
	}
	return list, nil
}

// Ops is one GPU. Its methods belong to one goroutine at a time.
type Ops struct {
	options     Options
	half        bool   // weights and narrow tensors are of 2 bytes
	suffix      string // of kernels of the compute type
	info        Info
	shared      int  // bytes of shared memory that a block may have
	wideKernels bool // the image has machine code for Hopper's copy engine and warpgroups
	// overlap: kernels may start before the one before has ended. Code for older
	// devices does not wait for it by itself, so it must not.
	overlap bool

	work   chan func()    // closed by Close; run by the worker's thread
	ended  chan *slot     // steps that were launched, in order
	slots  chan *slot     // steps that may be written
	waited chan struct{}  // closed when the waiter has returned
	thread sync.WaitGroup // the worker

	// Owned by the worker's thread after New.
	context   cu.CUContext
	modules   []cu.Module
	stream    cu.Stream
	side      cu.Stream // rows between host and device, once there are any
	kernels   map[string]*kernel
	graphs    map[string]*captured
	tick      uint64
	hits      int
	allocated []cu.DevicePtr
	host      [][]byte   // pinned
	events    []cu.Event // of rows between stages
	loading   [2]stage
	seatRoom  buffer
	early     map[int32]seatCall

	failed struct {
		sync.Mutex
		err error // guarded by the mutex
	}

	spent spent // of the waiter

	link   *link  // to the other tensor ranks of the stage, or nil
	rank   int    // among them
	fault  []byte // pinned: what a kernel that waited in vain says
	number uint32 // of the next collective

	step    *slot // between Begin and End
	scratch map[string]*buffer
	lists   map[string]pointer
	maps    map[tiling]tensorMap
	arrived pointer // counters of tiles, zero between kernels
	last    pointer // per seat: the token sampled last
	posted  pointer // where the step's draws go in the host's memory
	counts  pointer // seat × vocabulary, once the vocabulary is known
	words   int     // that vocabulary
	seats   []seatCall
	closed  bool
}

// present counts the Ops of this process on each device.
var present struct {
	sync.Mutex
	ops map[int]int // guarded by the mutex
}

// arrive counts o in, or with -1 out.
func (o *Ops) arrive(n int) {
	present.Lock()
	defer present.Unlock()
	if present.ops == nil {
		present.ops = map[int]int{}
	}
	present.ops[o.info.Index] += n
}

// alone tells whether no kernels of another Ops stand beside this one's on its device.
func (o *Ops) alone() bool {
	present.Lock()
	defer present.Unlock()
	return present.ops[o.info.Index] == 1
}

// A kernel is a function of the image.
type kernel struct {
	name     string
	function uintptr
	shared   int // dynamic shared memory that it may use
}

var _ kernels.Ops = (*Ops)(nil)

const arrivals = 1 << 18 // counters of tiles in flight

// New opens a device: its context, its kernels, its worker.
func New(device int, options Options) (kernels.Ops, error) {
	o := &Ops{
		options: options,
		work:    make(chan func(), slotCount), ended: make(chan *slot, slotCount), slots: make(chan *slot, slotCount), waited: make(chan struct{}),
		kernels: map[string]*kernel{}, graphs: map[string]*captured{}, scratch: map[string]*buffer{}, lists: map[string]pointer{}, maps: map[tiling]tensorMap{}, early: map[int32]seatCall{},
	}
	switch options.Compute {
	case kernels.BF16:
		o.half, o.suffix = true, "_bf16"
	case kernels.F16:
		o.half, o.suffix = true, "_f16"
	case kernels.F32:
		o.suffix = "_float"
	default:
		return nil, fmt.Errorf("%w: computing in %s; use BF16, F16 or F32", ErrUnavailable, options.Compute)
	}
	o.options.Patience = cmp.Or(o.options.Patience, 2*time.Second)
	if o.options.Seats == 0 {
		o.options.Seats = 256
	}
	list, err := Devices()
	if err != nil {
		return nil, err
	}
	if device < 0 || device >= len(list) {
		return nil, fmt.Errorf("%w: device %d of %d", ErrUnavailable, device, len(list))
	}
	o.info = list[device]
	if o.info.Major < 8 {
		return nil, fmt.Errorf("%w: %s has compute capability %d.%d, want 8.0 or later", ErrUnavailable, o.info.Name, o.info.Major, o.info.Minor)
	}
	opened := make(chan error)
	o.thread.Go(func() { o.run(device, opened) })
	if err := <-opened; err != nil {
		close(o.work)
		o.thread.Wait()
		return nil, err
	}
	if err := o.prepareMemory(); err != nil {
		return nil, errors.Join(err, o.Close())
	}
	return o, nil
}

// run is the worker: the only thread that launches and allocates.
func (o *Ops) run(device int, opened chan<- error) {
	runtime.LockOSThread() // and never unlocked: the thread ends with its context
	err := o.open(device)
	if err == nil {
		o.arrive(1)
		defer o.arrive(-1)
	}
	opened <- err
	if err != nil {
		for f := range o.work {
			f()
		}
		return
	}
	go o.wait()
	for f := range o.work {
		f()
	}
	close(o.ended)
	<-o.waited
	o.release()
}

func (o *Ops) open(device int) (err error) {
	d, err := cu.GetDevice(device)
	if err == nil {
		o.context, err = d.RetainPrimaryCtx() // ranks that share a device share it, and so run side by side
	}
	if err == nil {
		err = cu.SetCurrentContext(o.context)
	}
	if err == nil {
		o.stream, err = cu.MakeStream(cu.NonBlocking)
	}
	if err == nil {
		o.shared, err = d.Attribute(sharedLimit)
	}
	if err != nil {
		return fmt.Errorf("%w: open %s: %v", ErrDevice, o.info.Name, err)
	}
	o.overlap = o.info.Major >= 9
	for image, names := range kernelNames() {
		if err := o.loadImage(image+".fatbin", names); err != nil {
			return err
		}
	}
	return nil
}

// loadImage looks the kernels of one image up.
func (o *Ops) loadImage(image string, names []string) error {
	files := fs.FS(images)
	if o.options.Images != nil {
		files = o.options.Images
	}
	code, err := fs.ReadFile(files, image)
	if err != nil {
		return fmt.Errorf("%w: %v", ErrUnavailable, err)
	}
	module, err := cu.LoadData(string(code))
	if err != nil {
		return fmt.Errorf("%w: load %s on %s: %v", ErrDevice, image, o.info.Name, err)
	}
	o.modules = append(o.modules, module)
	for _, name := range names {
		f, err := module.Function(name)
		if err != nil && (strings.HasPrefix(name, "wide_") || strings.HasPrefix(name, "joint_")) {
			continue // only in sm_90a's machine code
		}
		if err != nil {
			return fmt.Errorf("%w: kernel %s: %v", ErrDevice, name, err)
		}
		version, err := codeVersion(f)
		if err != nil {
			return fmt.Errorf("kernel %s: %w", name, err)
		}
		o.overlap = o.overlap && version >= 90
		usable, err := allowShared(f, o.shared)
		if err != nil {
			return fmt.Errorf("kernel %s: %w", name, err)
		}
		o.kernels[name] = &kernel{name: name, function: handle(f), shared: usable}
		o.wideKernels = o.wideKernels || strings.HasPrefix(name, "wide_")
	}
	return nil
}

// release frees everything; the context goes with the last that has it.
func (o *Ops) release() {
	for _, g := range o.graphs {
		if g.graph != nil {
			g.graph.destroy()
		}
	}
	for _, b := range o.host {
		unpin(b)
	}
	for _, p := range o.allocated {
		cu.MemFree(p) //nolint:errcheck // a lost context cannot free, and need not
	}
	for range len(o.slots) {
		cu.DestroyEvent(&(<-o.slots).event) //nolint:errcheck // as above
	}
	for i := range o.loading {
		if o.loading[i].host != nil {
			cu.DestroyEvent(&o.loading[i].event) //nolint:errcheck // as above
		}
	}
	for i := range o.events {
		cu.DestroyEvent(&o.events[i]) //nolint:errcheck // as above
	}
	for _, m := range o.modules {
		m.Unload() //nolint:errcheck // as above
	}
	if o.side != (cu.Stream{}) {
		o.side.Destroy() //nolint:errcheck // as above
	}
	o.stream.Destroy() //nolint:errcheck // as above
	if d, err := cu.GetDevice(o.info.Index); err == nil {
		d.ReleasePrimaryCtx() //nolint:errcheck // as above
	}
}

// do runs f on the worker's thread and waits for it.
func (o *Ops) do(f func() error) error {
	done := make(chan error, 1)
	o.work <- func() { done <- f() }
	return <-done
}

// fail makes err stick, if it is the first.
func (o *Ops) fail(err error) error {
	if err == nil {
		return nil
	}
	o.failed.Lock()
	defer o.failed.Unlock()
	if o.failed.err == nil {
		o.failed.err = err
	}
	return o.failed.err
}

// sticky is the first error of the device.
func (o *Ops) sticky() error {
	o.failed.Lock()
	defer o.failed.Unlock()
	return o.failed.err
}

// Close waits for what runs and frees the device's memory.
func (o *Ops) Close() error {
	if o.closed {
		return nil
	}
	o.closed = true
	err := o.do(func() error {
		if err := o.stream.Synchronize(); err != nil && o.sticky() == nil {
			return fmt.Errorf("%w: close: %v", ErrDevice, err)
		}
		return nil
	})
	close(o.work)
	o.thread.Wait()
	return err
}

// kernelNames lists what each image must hold.
func kernelNames() map[string][]string {
	products, attention := []string{"linear_float", "line_plain_bf16", "line_gated_bf16", "line_added_bf16", "line_added_f16", "line_bare_bf16", "line_bare_f16"}, []string(nil)
	rows := []string{"deliver", "gather", "seat", "feed", "readAll", "route", "group", "combine", "adjust", "draw", "scoreTokens"}
	for _, t := range []string{"_bf16", "_f16", "_float"} {
		for _, k := range []string{"prepare", "norm", "add", "embed", "pack", "fill"} {
			rows = append(rows, k+t)
		}
		for _, c := range []string{"_bf16", "_f16", "_float"} {
			attention = append(attention, "store"+t+c, "attend"+t+c)
		}
	}
	for _, t := range []string{"_bf16", "_f16"} {
		rows = append(rows, "widen"+t)
		products = append(products, "gate"+t)
		for _, w := range wideTiles {
			products = append(products, w.kernel(t))
		}
		for _, n := range jointTiles {
			products = append(products, fmt.Sprintf("joint%s_%d", t, n))
		}
		for _, n := range []string{"1", "2", "4", "8"} {
			products = append(products, "gemv"+t+"_"+n)
		}
		for _, n := range []string{"16", "32", "64", "128"} {
			products = append(products, "gemm"+t+"_"+n)
		}
		for _, n := range []string{"64", "128"} {
			attention = append(attention, "spread"+t+"_"+n, "decode"+t+"_"+n, "decode_wide"+t+"_"+n, "walk"+t+"_"+n, "turn"+t+"_"+n, "prompt"+t+"_"+n, "wide_prompt"+t+"_"+n, "wide_prompt_capped"+t+"_"+n)
		}
	}
	return map[string][]string{"products": products, "attention": attention, "rows": rows, "collectives": {"sumOnce", "sumTwice", "sumRead", "sumRowsOnce", "sumRowsTwice", "gatherParts", "followDrawn"}}
}

func addressOf(b []byte) pointer { return pointer(uintptr(unsafe.Pointer(&b[0]))) }

func bytesOf[T any](p *T) []byte { return unsafe.Slice((*byte)(unsafe.Pointer(p)), unsafe.Sizeof(*p)) }

func listBytes[T any](list []T) []byte {
	if len(list) == 0 {
		return nil
	}
	var one T
	return unsafe.Slice((*byte)(unsafe.Pointer(&list[0])), len(list)*int(unsafe.Sizeof(one)))
}
