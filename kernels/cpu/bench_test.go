package cpu

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"manta/kernels"
)

// fastestOf gives the shortest of many runs: what the processor can do when
// nothing else has it.
func fastestOf(runs int, f func()) time.Duration {
	best := time.Hour
	for range runs {
		begin := time.Now()
		f()
		best = min(best, time.Since(begin))
	}
	return best
}

// A layer's shapes, for benchmarks.
type shape struct {
	layers, hidden, heads, kv, dim, ffn, vocabulary int
	layer, head                                     kernels.DType
}

var smollm2 = shape{30, 576, 9, 3, 64, 1536, 49152, kernels.Q4_1, kernels.Q8_0}

// A stack is a model of random weights.
type stack struct {
	shape
	o                         *Ops
	norm                      *kernels.Norm
	qkv, out, gateUp, down    []kernels.Weight
	head                      kernels.Weight
	cache                     kernels.Cache
	rope                      kernels.RopeTable
	x, wide, attended, hidden kernels.Tensor
	last, logits              kernels.Tensor
	headMap                   []int32
	bytes                     float64                // of weights
	lap                       func(operation string) // called after each, where it is not nil
}

func newStack(b testing.TB, o *Ops, s shape, rows, blocks int) *stack {
	rng := newRand(1)
	m := &stack{shape: s, o: o}
	made := map[[2]int]kernels.Matrix{} // layers are packed from the same numbers
	w := func(dtype kernels.DType, rows, cols int) kernels.Weight {
		shape := [2]int{rows, cols}
		if made[shape].Data == nil {
			made[shape] = matrix(rng, dtype, rows, cols)
		}
		packed := weightOf(b, o, made[shape])
		m.bytes += float64(made[shape].Stride) * float64(rows)
		return packed
	}
	scale := make([]float32, s.hidden)
	for i := range scale {
		scale[i] = 0.02 // keeps activations in a model's range
	}
	m.norm = &kernels.Norm{Weight: vectorOf(b, o, scale), Eps: 1e-5}
	for range s.layers {
		m.qkv = append(m.qkv, w(s.layer, (s.heads+2*s.kv)*s.dim, s.hidden))
		m.out = append(m.out, w(s.layer, s.hidden, s.heads*s.dim))
		m.gateUp = append(m.gateUp, w(s.layer, 2*s.ffn, s.hidden))
		m.down = append(m.down, w(s.layer, s.hidden, s.ffn))
	}
	m.head = w(s.shape().head, s.vocabulary, s.hidden)
	inverse := make([]float32, s.dim/2)
	for i := range inverse {
		inverse[i] = 1 / float32(1+i*i)
	}
	var err error
	if m.rope, err = o.Rope(inverse, 1, 8192); err != nil {
		b.Fatal(err)
	}
	if m.cache, err = o.Cache(kernels.CacheSpec{Layers: s.layers, Blocks: blocks, KVHeads: s.kv, HeadDim: s.dim, Type: kernels.F16}); err != nil {
		b.Fatal(err)
	}
	for h := range s.heads {
		m.headMap = append(m.headMap, int32(h*s.kv/s.heads))
	}
	t := func(cols int) kernels.Tensor { return tensor(b, o, rows, cols, make([]float32, rows*cols)) }
	m.x, m.wide, m.attended, m.hidden, m.last = t(s.hidden), t((s.heads+2*s.kv)*s.dim), t(s.heads*s.dim), t(s.ffn), t(s.hidden)
	m.logits = tensor(b, o, 32, s.vocabulary, make([]float32, 32*s.vocabulary))
	return m
}

func (s shape) shape() shape { return s }

// step runs a whole forward pass and samples greedily.
func (m *stack) step(b testing.TB, batch *kernels.Batch, rows []kernels.SampleRow) {
	o, n, lap := m.o, len(batch.Tokens), m.lap
	if lap == nil {
		lap = func(string) {}
	}
	if err := o.Begin(batch); err != nil {
		b.Fatal(err)
	}
	x := m.x.Top(n)
	o.Embed(x, kernels.Embed{Table: m.head, Scale: 1})
	lap("embed")
	for l := range m.layers {
		o.Linear(m.wide.Top(n), x, kernels.Linear{Weight: m.qkv[l], Norm: m.norm})
		lap("queries, keys, values")
		o.Attention(m.attended.Top(n), m.wide.Top(n), kernels.Attention{Cache: m.cache, Layer: l, Heads: m.heads, KVHeads: m.kv, HeadDim: m.dim, HeadMap: m.headMap, Scale: 0.125, Rope: m.rope})
		lap("attention")
		o.Linear(x, m.attended.Top(n), kernels.Linear{Weight: m.out[l], Accumulate: true})
		lap("attention's output")
		o.Linear(m.hidden.Top(n), x, kernels.Linear{Weight: m.gateUp[l], Norm: m.norm, Gated: true, Activation: kernels.SiLU})
		lap("gate and up")
		o.Linear(x, m.hidden.Top(n), kernels.Linear{Weight: m.down[l], Accumulate: true})
		lap("down")
	}
	last := m.last.Top(len(batch.Wanted))
	o.Gather(last, x)
	logits := m.logits.Top(len(batch.Wanted))
	o.Linear(logits, last, kernels.Linear{Weight: m.head, Norm: m.norm})
	o.Sample(logits, rows)
	lap("logits")
	if _, err := o.End().Wait(); err != nil {
		b.Fatal(err)
	}
}

var llama1B = shape{16, 2048, 32, 8, 64, 8192, 128256, kernels.BF16, kernels.BF16}

// BenchmarkBandwidth decodes one stream and tells which part of the memory's read
// bandwidth its weights come at: random weights, Llama-3.2-1B's shape in bf16, and
// SmolLM2's in the types of its file. Other guests of the host take bandwidth as
// they please, so plain reads and steps alternate, and a ratio is that of neighbours.
func BenchmarkBandwidth(b *testing.B) {
	for _, c := range []struct {
		name  string
		shape shape
		steps int // between two passes of reading
	}{{"llama-1b-bf16", llama1B, 1}, {"smollm2-q4_1", smollm2, 10}} {
		b.Run(c.name, func(b *testing.B) {
			o := deviceOf(b, Options{Precision: Int8}, fastest())
			m := newStack(b, o, c.shape, 1, 64)
			batch, rows := batchOf(1, 100, 1)
			m.step(b, batch, rows) // packs the head
			reader, err := o.newReader(readBytes)
			if err != nil {
				b.Fatal(err)
			}
			const passes = 3
			read := func() (rate float64) {
				for range passes {
					rate += reader.pass(o) / passes
				}
				return rate
			}
			var rates, reads, ratios []float64
			before := read()
			for b.Loop() {
				begin := time.Now()
				for range c.steps {
					m.step(b, batch, rows)
				}
				rate, after := float64(c.steps)*m.bytes/time.Since(begin).Seconds(), read()
				rates, reads, ratios = append(rates, rate), append(reads, after), append(ratios, 2*rate/(before+after))
				before = after
			}
			for _, list := range [][]float64{rates, reads, ratios} {
				slices.Sort(list)
			}
			n := len(ratios)
			b.ReportMetric(rates[n/2]/m.bytes, "tokens/s")
			b.ReportMetric(rates[n/2]/1e9, "GB/s")
			b.ReportMetric(reads[n/2]/1e9, "GB/s-read")
			b.ReportMetric(ratios[n/2], "of-read-bandwidth")
			b.ReportMetric(ratios[n/4], "lower-quartile")
		})
	}
}

// batchOf makes a step of some sequences with count rows each from start on.
func batchOf(sequences, start, count int) (*kernels.Batch, []kernels.SampleRow) {
	b := &kernels.Batch{}
	var rows []kernels.SampleRow
	perSequence := (start+count+15)/16 + 1
	for s := range sequences {
		var blocks []int32
		for i := range perSequence {
			blocks = append(blocks, int32(s*perSequence+i))
		}
		b.Spans = append(b.Spans, kernels.Span{Row: len(b.Tokens), Start: start, Count: count, Blocks: [][]int32{blocks}})
		for r := range count {
			b.Tokens, b.Positions = append(b.Tokens, int32(r+s)), append(b.Positions, int32(start+r))
		}
		b.Wanted = append(b.Wanted, int32(len(b.Tokens)-1))
		rows = append(rows, kernels.SampleRow{Row: int32(s), Seat: -1, Target: -1, TopLogprobs: -1, TopP: 1, RepetitionPenalty: 1})
	}
	return b, rows
}

// BenchmarkModel runs whole steps of SmolLM2's shape, on each instruction set.
func BenchmarkModel(b *testing.B) {
	for _, set := range sets() {
		for _, p := range []Precision{Float32, Int16, Int8} {
			b.Run(set.name+"/"+[]string{"float32", "int16", "int8"}[p], func(b *testing.B) { benchmarkModel(b, set, p) })
		}
	}
}

func benchmarkModel(b *testing.B, set *kernelSet, p Precision) {
	o := deviceOf(b, Options{Precision: p}, set)
	m := newStack(b, o, smollm2, 1024, 4096)
	for _, c := range []struct {
		name                    string
		sequences, start, count int
	}{{"decode", 1, 100, 1}, {"decode-1k", 1, 1024, 1}, {"decode-16", 16, 200, 1}, {"prompt-512", 1, 0, 512}, {"prompt-64", 1, 0, 64}} {
		b.Run(c.name, func(b *testing.B) {
			batch, rows := batchOf(c.sequences, c.start, c.count)
			b.ReportAllocs()
			for b.Loop() {
				m.step(b, batch, rows)
			}
			b.ReportMetric(float64(c.sequences*c.count)*float64(b.N)/b.Elapsed().Seconds(), "tokens/s")
		})
	}
}

// BenchmarkProduct gives each format's speed as weights stream by (one row), as
// bytes a second, and as a wide product, with the machine's limits first.
func BenchmarkProduct(b *testing.B) {
	o := device(b, 0, fastest())
	b.Run("read", func(b *testing.B) {
		for b.Loop() {
			rate, err := o.readBandwidth()
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(rate/1e9, "GB/s")
		}
	})
	for _, dtype := range []kernels.DType{kernels.F32, kernels.BF16, kernels.F16, kernels.Q8_0, kernels.Q4_1, kernels.Q4_0} {
		const rows, cols = 16384, 2048
		w := weightOf(b, o, matrix(newRand(1), dtype, rows, cols)).(*weight)
		for _, m := range []int{1, 2, 4, 8, 12, 96} {
			x := tensor(b, o, m, cols, random(newRand(2), m*cols))
			y := tensor(b, o, m, rows, nil)
			b.Run(fmt.Sprintf("%s/%d", dtype, m), func(b *testing.B) {
				if m <= 2 {
					b.SetBytes(int64(len(w.segments[0].data)))
				}
				for b.Loop() {
					o.Linear(y, x, kernels.Linear{Weight: w})
				}
				b.ReportMetric(2*rows*cols*float64(m)*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
			})
		}
	}
}

// What a node measures when it starts, and how long that takes.
func BenchmarkSpeed(b *testing.B) {
	for b.Loop() {
		bandwidth, operations, err := Speed(0)
		if err != nil {
			b.Fatal(err)
		}
		b.Logf("%.1f GB/s, %.0f G operations/s", bandwidth/1e9, operations/1e9)
	}
}
