// Package sim is a device that computes nothing: an operation takes the time that
// a cost model says it takes, and tokens are made up. What stands on it (engine,
// nodes, heads, the network between them) is all real. It shows what a cluster
// costs beside its devices, on a machine that has none.
//
// An operation's time is its launch and the longer of two: its bytes at the
// device's bandwidth, its operations at the device's speed (the roofline of
// Williams et al. 2009). A step takes the sum. An Ops belongs to one goroutine at a
// time; it starts none.
package sim

import (
	"fmt"
	"slices"
	"time"

	"manta/kernels"
)

// Figures are a device's, as measured through this program's own kernels.
type Figures struct {
	Name       string
	Memory     int64
	Bandwidth  float64 // bytes a second
	Operations float64 // a second, of 16-bit products
	Launch     time.Duration

	// Fatal is a token that ends the process of a device that sees it, as a kernel
	// does that reads where it must not; 0: there is none.
	Fatal int32
}

// H200 is what kernels/cuda reached early («What was tried» in its RESULTS.md): Llama 3.1
// 8B, one stream 4.22 ms a token, a prompt of 8,192 tokens 416 ms. Recorded figures of
// heads stand on it, so it stays.
var H200 = Figures{
	Name: "NVIDIA H200 (simulated)", Memory: 141 << 30, Bandwidth: 3.95e12, Operations: 330e12, Launch: 2500 * time.Nanosecond,
}

// Times gives a device that is so many times as fast.
func (f Figures) Times(speed float64) Figures {
	f.Name = fmt.Sprintf("%s × %v", f.Name, speed)
	f.Bandwidth, f.Operations = f.Bandwidth*speed, f.Operations*speed
	f.Launch = time.Duration(float64(f.Launch) / speed)
	return f
}

// Ops is a simulated device.
type Ops struct {
	figures Figures
	batch   *kernels.Batch
	step    time.Duration // of the operations since Begin
	free    time.Time     // when the last step has ended
	sampled []kernels.Sampled
}

var _ kernels.Ops = (*Ops)(nil)

// New gives a device of its own.
func New(figures Figures) *Ops { return &Ops{figures: figures} }

// take counts one operation.
func (o *Ops) take(bytes, operations float64) {
	seconds := max(bytes/o.figures.Bandwidth, operations/o.figures.Operations)
	o.step += o.figures.Launch + time.Duration(seconds*float64(time.Second))
}

// Tensor has a shape and no memory.
func (o *Ops) Tensor(rows, cols int) (kernels.Tensor, error) {
	return kernels.Tensor{Rows: rows, Cols: cols}, nil
}

type weight struct{ rows, cols int }

func (w weight) Shape() (rows, cols int) { return w.rows, w.cols }

// Pair keeps the shape.
func (o *Ops) Pair(gate, up kernels.Matrix) (kernels.Weight, error) { return o.Weight(gate, up) }

// Weight keeps the shape: the bytes are never read.
func (o *Ops) Weight(parts ...kernels.Matrix) (kernels.Weight, error) {
	w := weight{}
	for _, p := range parts {
		w.rows, w.cols = w.rows+p.Rows, p.Cols
	}
	return w, nil
}

type vector int

func (v vector) Len() int { return int(v) }

// Vector keeps the length.
func (o *Ops) Vector(values []float32) (kernels.Vector, error) { return vector(len(values)), nil }

type table int

func (t table) Dim() int { return int(t) }

// Rope keeps the dimension.
func (o *Ops) Rope(inverse []float32, _ float32, _ int) (kernels.RopeTable, error) {
	return table(2 * len(inverse)), nil
}

type cache kernels.CacheSpec

func (c cache) Spec() kernels.CacheSpec { return kernels.CacheSpec(c) }

// Cache keeps the sizes.
func (o *Ops) Cache(spec kernels.CacheSpec) (kernels.Cache, error) { return cache(spec), nil }

// Begin starts a step.
func (o *Ops) Begin(b *kernels.Batch) error {
	if o.figures.Fatal != 0 && slices.Contains(b.Tokens, o.figures.Fatal) {
		panic(fmt.Sprintf("sim: token %d, which this device was told to die of", o.figures.Fatal))
	}
	o.batch, o.step, o.sampled = b, 0, nil
	return nil
}

const elementBytes = 2 // of activations and weights

// moves is an operation that reads and writes activations alone.
func (o *Ops) moves(tensors ...kernels.Tensor) {
	bytes := 0
	for _, t := range tensors {
		bytes += t.Rows * t.Cols * elementBytes
	}
	o.take(float64(bytes), 0)
}

// Embed, Norm, Add and Gather move activations.
func (o *Ops) Embed(out kernels.Tensor, _ kernels.Embed)  { o.moves(out, out) }
func (o *Ops) Norm(out, x kernels.Tensor, _ kernels.Norm) { o.moves(out, x) }
func (o *Ops) Add(x, y kernels.Tensor, _ *kernels.Norm)   { o.moves(x, x, y) }
func (o *Ops) Gather(out, _ kernels.Tensor)               { o.moves(out, out) }

// Linear reads the weight once and multiplies every row by it.
func (o *Ops) Linear(out, x kernels.Tensor, a kernels.Linear) {
	rows, cols := a.Weight.Shape()
	weights, activations := rows*cols, x.Rows*(cols+out.Cols)
	o.take(float64(weights+activations)*elementBytes, 2*float64(weights)*float64(x.Rows))
}

// Attention reads what is stored of every sequence once, and multiplies each row by
// what it sees.
func (o *Ops) Attention(out, qkv kernels.Tensor, a kernels.Attention) {
	kv := 2 * a.KVHeads * a.Cache.Spec().Type.Bytes(a.HeadDim)
	bytes, operations := (out.Rows*out.Cols+qkv.Rows*qkv.Cols)*elementBytes, 0.0
	for _, s := range o.batch.Spans {
		seen := s.Start + s.Count
		if a.Window > 0 {
			seen = min(seen, a.Window+s.Count)
		}
		bytes += seen * kv
		operations += 4 * float64(a.Heads*a.HeadDim) * float64(s.Count) * float64(max(seen-s.Count/2, 1))
	}
	o.take(float64(bytes), operations)
}

// Experts reads the experts that rows may be routed to.
func (o *Ops) Experts(out, x kernels.Tensor, a kernels.Experts) {
	up, cols := a.GateUp[0].Shape()
	down, inner := a.Down[0].Shape()
	expert := up*cols + down*inner
	used := min(len(a.GateUp), x.Rows*a.TopK)
	o.take(float64(expert*used+x.Rows*(cols+out.Cols))*elementBytes, 2*float64(expert)*float64(x.Rows*a.TopK))
}

// Sample makes tokens up: from the seed, the choice and the position alone, so that
// a sequence that moves goes on as it would have.
func (o *Ops) Sample(logits kernels.Tensor, rows []kernels.SampleRow) {
	o.moves(logits)
	for _, r := range rows {
		s := kernels.Sampled{Token: r.Target, Logprob: -1, Rank: 1}
		if r.Target < 0 {
			s.Token = min(int32(kernels.Uniform(r.Seed, r.Choice, r.Position)*float32(logits.Cols)), int32(logits.Cols-1))
		}
		for i := range r.TopLogprobs {
			s.Top = append(s.Top, kernels.TokenLogprob{Token: (s.Token + i) % int32(logits.Cols), Logprob: -1 - float32(i)})
		}
		o.sampled = append(o.sampled, s)
	}
}

type pending struct {
	ready   time.Time
	sampled []kernels.Sampled
}

// grain is what Go rounds the timers of an idle process up to, on Linux: it waits for
// them in epoll, by the millisecond.
const grain = time.Millisecond

// Wait returns when the step has taken its time.
func (p pending) Wait() ([]kernels.Sampled, error) {
	if left := time.Until(p.ready); left > 0 && left < grain {
		rest(left)
	}
	if left := time.Until(p.ready); left > 0 {
		timer := time.NewTimer(left)
		defer timer.Stop()
		<-timer.C
	}
	return p.sampled, nil
}

// End hands the step to the device: it begins when the one before has ended.
func (o *Ops) End() kernels.Pending {
	if now := time.Now(); now.After(o.free) {
		o.free = now
	}
	o.free = o.free.Add(o.step)
	p := pending{o.free, o.sampled}
	o.batch, o.sampled = nil, nil
	return p
}

// Seat and Feed have nothing to keep: tokens do not depend on what came before.
func (o *Ops) Seat(int32, []int32, []int32) {}
func (o *Ops) Feed(int32, int32)            {}

// Put takes activations that nothing looks at; Get gives as many zeros.
func (o *Ops) Put(t kernels.Tensor, src []byte) error {
	if len(src) != t.Rows*o.RowBytes(t) {
		return fmt.Errorf("sim: put %d bytes into %d×%d", len(src), t.Rows, t.Cols)
	}
	return nil
}

// Get gives zeros.
func (o *Ops) Get(dst []byte, t kernels.Tensor) error {
	if len(dst) != t.Rows*o.RowBytes(t) {
		return fmt.Errorf("sim: get %d bytes from %d×%d", len(dst), t.Rows, t.Cols)
	}
	clear(dst)
	return nil
}

// RowBytes counts two bytes a value.
func (o *Ops) RowBytes(t kernels.Tensor) int { return elementBytes * t.Cols }

// Close has nothing to free.
func (o *Ops) Close() error { return nil }
