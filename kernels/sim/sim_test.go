package sim

import (
	"testing"
	"testing/synctest"
	"time"

	"manta/kernels"
)

// llama8B runs a step of Llama 3.1 8B's shapes and gives how long it took.
func llama8B(t *testing.T, rows, start int) time.Duration {
	t.Helper()
	var took time.Duration
	synctest.Test(t, func(t *testing.T) {
		o := New(H200)
		const hidden, heads, kvHeads, dim, inner, vocabulary, layers = 4096, 32, 8, 128, 14336, 128256, 32
		matrix := func(r, c int) kernels.Weight {
			w, err := o.Weight(kernels.Matrix{Rows: r, Cols: c})
			if err != nil {
				t.Fatal(err)
			}
			return w
		}
		qkv, out, up, down, head := matrix((heads+2*kvHeads)*dim, hidden), matrix(hidden, heads*dim), matrix(2*inner, hidden), matrix(hidden, inner), matrix(vocabulary, hidden)
		tensor := func(cols int) kernels.Tensor { return kernels.Tensor{Rows: rows, Cols: cols} }
		cache, err := o.Cache(kernels.CacheSpec{KVHeads: kvHeads, HeadDim: dim, Type: kernels.BF16})
		if err != nil {
			t.Fatal(err)
		}
		if err := o.Begin(&kernels.Batch{Spans: []kernels.Span{{Count: rows, Start: start}}}); err != nil {
			t.Fatal(err)
		}
		o.Embed(tensor(hidden), kernels.Embed{})
		for range layers {
			o.Linear(tensor((heads+2*kvHeads)*dim), tensor(hidden), kernels.Linear{Weight: qkv})
			o.Attention(tensor(heads*dim), tensor((heads+2*kvHeads)*dim), kernels.Attention{Cache: cache, Heads: heads, KVHeads: kvHeads, HeadDim: dim})
			o.Linear(tensor(hidden), tensor(heads*dim), kernels.Linear{Weight: out})
			o.Linear(tensor(inner), tensor(hidden), kernels.Linear{Weight: up})
			o.Linear(tensor(hidden), tensor(inner), kernels.Linear{Weight: down})
		}
		last := kernels.Tensor{Rows: 1, Cols: hidden}
		o.Linear(kernels.Tensor{Rows: 1, Cols: vocabulary}, last, kernels.Linear{Weight: head})
		o.Sample(kernels.Tensor{Rows: 1, Cols: vocabulary}, []kernels.SampleRow{{Target: -1}})
		before := time.Now()
		drawn, err := o.End().Wait()
		if err != nil || len(drawn) != 1 || drawn[0].Token < 0 || drawn[0].Token >= vocabulary {
			t.Fatalf("%v %v", drawn, err)
		}
		took = time.Since(before)
	})
	return took
}

// The cost model gives back what it was fed from, within a twentieth: a token alone
// and a long prompt on an H200 (kernels/cuda/RESULTS.md).
func TestFiguresAreTheMeasuredOnes(t *testing.T) {
	for _, c := range []struct {
		what        string
		rows, start int
		want        time.Duration
	}{{"one stream", 1, 128, 4220 * time.Microsecond}, {"a prompt of 8192", 8192, 0, 416 * time.Millisecond}} {
		if got := llama8B(t, c.rows, c.start); got < c.want*95/100 || got > c.want*105/100 {
			t.Errorf("%s: %v, measured %v", c.what, got, c.want)
		}
	}
}

// Steps in flight follow each other, and the same token comes again wherever it is
// drawn.
func TestStepsAreSerial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, again := New(Figures{Bandwidth: 1e9, Operations: 1e12}), New(H200)
		row := []kernels.SampleRow{{Target: -1, Seed: 7, Position: 3}}
		logits := kernels.Tensor{Rows: 1, Cols: 500_000} // a millisecond
		before := time.Now()
		var all []kernels.Pending
		for range 3 {
			if err := o.Begin(&kernels.Batch{}); err != nil {
				t.Fatal(err)
			}
			o.Sample(logits, row)
			all = append(all, o.End())
		}
		for i, p := range all {
			drawn, _ := p.Wait()
			if since := time.Since(before); since != time.Duration(i+1)*time.Millisecond {
				t.Errorf("step %d ended after %v", i, since)
			}
			if err := again.Begin(&kernels.Batch{}); err != nil {
				t.Fatal(err)
			}
			again.Sample(logits, row)
			if other, _ := again.End().Wait(); other[0].Token != drawn[0].Token {
				t.Errorf("another device draws %d, not %d", other[0].Token, drawn[0].Token)
			}
		}
	})
}
