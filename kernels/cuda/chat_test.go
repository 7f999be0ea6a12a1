//go:build cuda

package cuda

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"manta/kernels"
)

// A chatStep is what one step of a work of requests has: contexts of the sequences
// that decode, and how much of which prompts.
type chatStep struct{ contexts, starts, prompts []int }

// chatSteps replays requests (prompt and output lengths) that are all there at once
// through steps of at most 8,192 rows and 1,024 sequences.
func chatSteps(work [][2]int) (steps []chatStep) {
	type sequence struct{ prompt, output, done, made int }
	var running []*sequence
	for len(work) > 0 || len(running) > 0 {
		var s chatStep
		left := 8192
		var made []*sequence
		for _, q := range running {
			if q.done == q.prompt {
				s.contexts, made, left = append(s.contexts, q.prompt+q.made-1), append(made, q), left-1
			}
		}
		take := func(q *sequence) {
			n := min(q.prompt-q.done, left)
			s.starts, s.prompts = append(s.starts, q.done), append(s.prompts, n)
			if q.done, left = q.done+n, left-n; q.done == q.prompt {
				made = append(made, q)
			}
		}
		for _, q := range running {
			if q.done < q.prompt && left > 0 {
				take(q)
			}
		}
		for len(work) > 0 && len(running) < 1024 && left > 0 {
			running = append(running, &sequence{prompt: work[0][0], output: work[0][1]})
			work = work[1:]
			take(running[len(running)-1])
		}
		for _, q := range made {
			q.made++
		}
		running = slices.DeleteFunc(running, func(q *sequence) bool { return q.made >= q.output })
		steps = append(steps, s)
	}
	return steps
}

// batch lays the step out over so many blocks, in no order.
func (c chatStep) batch(blocks int) (*kernels.Batch, []kernels.SampleRow) {
	b := &kernels.Batch{}
	var rows []kernels.SampleRow
	order := rand.New(rand.NewPCG(1, 1)).Perm(blocks)
	span := func(start, count int) {
		var list []int32
		for range (start + count + 15) / 16 {
			list = append(list, int32(order[0]))
			order = order[1:]
		}
		b.Spans = append(b.Spans, kernels.Span{Row: len(b.Tokens), Count: count, Start: start, Blocks: [][]int32{list}})
		for i := range count {
			b.Tokens, b.Positions = append(b.Tokens, int32(1+(len(rows)*31+i*7)%1000)), append(b.Positions, int32(start+i))
		}
		i := int32(len(rows))
		b.Wanted = append(b.Wanted, int32(len(b.Tokens)-1))
		rows = append(rows, kernels.SampleRow{Row: i, Seat: i, Target: -1, TopP: 1, RepetitionPenalty: 1, TopLogprobs: -1})
	}
	for _, context := range c.contexts {
		span(context, 1)
	}
	for i, count := range c.prompts {
		span(c.starts[i], count)
	}
	return b, rows
}

// stepWithout is step without one of its parts.
func (d *dummy) stepWithout(t testing.TB, b *kernels.Batch, rows []kernels.SampleRow, part string) kernels.Pending {
	if err := d.o.Begin(b); err != nil {
		t.Fatal(err)
	}
	n, w := len(b.Tokens), len(b.Wanted)
	x, qkv, attended, inner := d.x.Top(n), d.qkvT.Top(n), d.attended.Top(n), d.inner.Top(n)
	do := func(name string, f func()) {
		if name != part {
			f()
		}
	}
	d.o.Embed(x, d.embed)
	for l := range d.layers {
		do("qkv", func() { d.o.Linear(qkv, x, d.qkv[l]) })
		do("attention", func() { d.o.Attention(attended, qkv, d.attention[l]) })
		do("out", func() { d.o.Linear(x, attended, d.out[l]) })
		do("up", func() { d.o.Linear(inner, x, d.up[l]) })
		do("down", func() { d.o.Linear(x, inner, d.down[l]) })
	}
	d.o.Gather(d.wanted.Top(w), x)
	do("head", func() { d.o.Linear(d.logitsT.Top(w), d.wanted.Top(w), d.head) })
	do("sample", func() { d.o.Sample(d.logitsT.Top(w), rows) })
	return d.o.End()
}

// BenchmarkChat says what parts of a step cost within it: steps of BENCH_DIR's chat-1000
// on 8B and of its uniform-256 on 0.6B (MANTA_BENCH picks), whole and without one part, in
// turn. What is missing without a part is µs a layer; of head and sample, a step. At the
// power limit the figures of two runs differ by some 30 µs.
func BenchmarkChat(b *testing.B) {
	for _, s := range wantedShapes() {
		if file := map[string]string{"8B": "chat-1000.json", "0.6B": "uniform-256.json"}[s.name]; file != "" {
			raw, err := os.ReadFile(filepath.Join(cmp.Or(os.Getenv("BENCH_DIR"), "."), file))
			if err != nil {
				b.Skip("no work: set BENCH_DIR")
			}
			var work [][2]int
			if err := json.Unmarshal(raw, &work); err != nil {
				b.Fatal(err)
			}
			s.chat(b, chatSteps(work))
		}
	}
}

func (s shape) chat(b *testing.B, steps []chatStep) {
	ops, err := New(0, Options{Compute: kernels.BF16, Seats: 1024})
	if err != nil {
		b.Fatal(err)
	}
	o := ops.(*Ops)
	const blocks = 1 << 15
	d := newDummy(b, o, s, 8192, 1024, blocks)
	stored := d.attention[0].Cache.(*cache)
	for i, at := range []pointer{stored.k, stored.v} {
		a := fillArguments{out: at, count: pointer(s.layers * blocks * kernels.BlockTokens * s.kv * s.size), seed: uint32(77 + i), scale: 1.7}
		if err := o.once("fill_bf16", 2048, 256, bytesOf(&a)); err != nil {
			b.Fatal(err)
		}
	}
	most := len(slices.MaxFunc(steps, func(i, j chatStep) int { return cmp.Compare(len(i.contexts), len(j.contexts)) }).contexts)
	list := []chatStep{steps[0], steps[16]}
	for _, n := range []int{1000, 700, 400, 256, 128, 64, 32, 16, 8, 4, 1} {
		if n > most {
			continue
		}
		list = append(list, steps[slices.IndexFunc(steps, func(c chatStep) bool { return len(c.prompts) == 0 && len(c.contexts) <= n })])
	}
	parts := []string{"", "attention", "qkv", "out", "up", "down", "head", "sample"}
	for _, c := range list {
		batch, rows := c.batch(blocks)
		all := 0
		for _, context := range c.contexts {
			all += context
		}
		times := map[string][]float64{}
		each := 1.
		for round := range 1 + len(parts) {
			for i := range parts {
				part := parts[(i+round)%len(parts)]
				if len(c.prompts) > 0 && part != "" && part != "attention" {
					continue
				}
				n := max(2, min(20, int(50/each)))
				each = inARow(b, n, func() kernels.Pending { return d.stepWithout(b, batch, rows, part) }).Seconds() * 1e3
				if round > 0 {
					times[part] = append(times[part], each)
				}
			}
		}
		fmt.Printf("%s, %d rows, %d of them decode at %d on average: ", s.name, len(batch.Tokens), len(c.contexts), all/max(1, len(c.contexts)))
		for _, part := range parts {
			t := times[part]
			if len(t) == 0 {
				continue
			}
			slices.Sort(t)
			missing := (times[""][len(times[""])/2] - t[len(t)/2]) * 1e3
			switch part {
			case "":
				fmt.Printf("%.3f ms;", t[len(t)/2])
			case "head", "sample":
				fmt.Printf(" %s %.0f", part, missing)
			default:
				fmt.Printf(" %s %.1f", part, missing/float64(s.layers))
			}
		}
		fmt.Println()
	}
	if err := o.Close(); err != nil {
		b.Fatal(err)
	}
}
