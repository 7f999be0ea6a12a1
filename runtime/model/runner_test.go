package model

import (
	"encoding/binary"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sync/errgroup"

	"manta/kernels"
	"manta/kernels/ref"
	"manta/parallel/shard"
	"manta/runtime/model/modeltest"
	"manta/runtime/weights"
)

// goldenModels lists the folders of the references: the package's own, or with
// GOLDEN_DIR those of that set.
func goldenModels(t testing.TB) []string {
	t.Helper()
	folders, err := modeltest.Folders("testdata")
	if err != nil {
		t.Fatal(err)
	}
	return folders
}

func readGolden(t testing.TB, folder string) modeltest.Golden {
	t.Helper()
	g, err := modeltest.Read(folder)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// A runner drives a replica by hand, as the engine does: it gives each sequence
// blocks of its own, and hands hidden rows from stage to stage.
type runner struct {
	t      testing.TB
	spec   *Spec
	stages [][]rank
	sums   []*sums // one a stage
	groups []int
	next   []int32 // first free block of each group
}

type rank struct {
	ops   kernels.Ops
	model *Model
}

const testContext = 256

// newOps makes the device of a rank: ref, and under the tag cuda a GPU.
var newOps = func(testing.TB) kernels.Ops { return ref.New() }

func newRunner(t testing.TB, path string, cacheType kernels.DType, context int) *runner {
	t.Helper()
	return newCluster(t, path, cacheType, context, shard.Layout{Tensor: 1, Pipeline: 1})
}

func newCluster(t testing.TB, path string, cacheType kernels.DType, context int, layout shard.Layout) *runner {
	t.Helper()
	w, err := weights.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	s, err := Describe(w)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(path, "golden.json")); err == nil {
		s.RoundFrequencies(readGolden(t, path).Frequencies(s.stored.kind))
	}
	return clusterOf(t, w, s, cacheType, context, layout)
}

func clusterOf(t testing.TB, w *weights.Model, s *Spec, cacheType kernels.DType, context int, layout shard.Layout) *runner {
	t.Helper()
	r := &runner{t: t, spec: s, groups: s.Shapes().Groups()}
	r.next = make([]int32, len(r.groups))
	limits := Limits{MaxRows: 256, MaxWanted: 256, MaxContext: context, CacheType: cacheType}
	for range r.groups {
		limits.Blocks = append(limits.Blocks, 1024)
	}
	for stage := range layout.Pipeline {
		joint := newSums(layout.Tensor)
		var ranks []rank
		for tensor := range layout.Tensor {
			slice, err := shard.Cut(layout, s.Shape(), stage, tensor)
			if err != nil {
				t.Fatal(err)
			}
			var reduce kernels.Reducer
			if layout.Tensor > 1 {
				reduce = summing{joint, tensor}
			}
			ops := newOps(t)
			m, err := Load(ops, w, s, slice, limits, reduce)
			if err != nil {
				t.Fatal(err)
			}
			ranks = append(ranks, rank{ops, m})
		}
		r.stages, r.sums = append(r.stages, ranks), append(r.sums, joint)
	}
	return r
}

// run computes a batch on all ranks and gives the wanted logits.
func (r *runner) run(b *kernels.Batch) [][]float32 {
	r.t.Helper()
	var hidden []byte
	var out kernels.Tensor
	for stage, ranks := range r.stages {
		outs := make([]kernels.Tensor, len(ranks))
		var group errgroup.Group
		for i, k := range ranks {
			group.Go(func() (err error) {
				defer func() {
					if err != nil {
						r.sums[stage].Close()
					}
				}()
				if err := k.ops.Begin(b); err != nil {
					return err
				}
				if stage > 0 {
					if err := k.ops.Put(k.model.Input().Top(len(b.Tokens)), hidden); err != nil {
						return err
					}
				}
				outs[i], err = k.model.Forward(b)
				return err
			})
		}
		if err := group.Wait(); err != nil {
			r.t.Fatal(err)
		}
		out = outs[0]
		for i, k := range ranks {
			if i > 0 && stage == len(r.stages)-1 { // the logits are rank 0's
				if _, err := k.ops.End().Wait(); err != nil {
					r.t.Fatal(err)
				}
				continue
			}
			bytes := make([]byte, outs[i].Rows*k.ops.RowBytes(outs[i]))
			if err := k.ops.Get(bytes, outs[i]); err != nil {
				r.t.Fatal(err)
			}
			if i > 0 && !slices.Equal(bytes, hidden) {
				r.t.Fatalf("stage %d: tensor ranks 0 and %d differ", stage, i)
			}
			hidden = bytes
			if _, err := k.ops.End().Wait(); err != nil {
				r.t.Fatal(err)
			}
		}
	}
	rows := make([][]float32, out.Rows)
	for i := range rows {
		rows[i] = make([]float32, out.Cols)
		for j := range rows[i] {
			rows[i][j] = math.Float32frombits(binary.LittleEndian.Uint32(hidden[4*(i*out.Cols+j):]))
		}
	}
	return rows
}

// A sequence is tokens, of which some have their keys and values stored.
type sequence struct {
	tokens   []int32
	computed int
	blocks   [][]int32
}

func (r *runner) sequence(tokens []int32) *sequence {
	s := &sequence{tokens: slices.Clone(tokens), blocks: make([][]int32, len(r.groups))}
	for g := range s.blocks {
		for range testContext / kernels.BlockTokens {
			s.blocks[g] = append(s.blocks[g], r.next[g])
			r.next[g]++
		}
	}
	return s
}

// A part is how many tokens of a sequence a step computes.
type part struct {
	sequence *sequence
	count    int
}

// step computes the parts and gives the logits of every row, part by part.
// Blocks that a window has passed are withheld, as the engine withholds them.
func (r *runner) step(parts ...part) [][][]float32 {
	r.t.Helper()
	b := &kernels.Batch{}
	for _, p := range parts {
		s := p.sequence
		span := kernels.Span{Row: len(b.Tokens), Count: p.count, Start: s.computed}
		for g, window := range r.groups {
			blocks := slices.Clone(s.blocks[g])
			if window > 0 {
				for i := range max(0, s.computed-window+1) / kernels.BlockTokens {
					blocks[i] = -1
				}
			}
			span.Blocks = append(span.Blocks, blocks)
		}
		for i := range p.count {
			b.Wanted = append(b.Wanted, int32(len(b.Tokens)))
			b.Tokens = append(b.Tokens, s.tokens[s.computed+i])
			b.Positions = append(b.Positions, int32(s.computed+i))
		}
		b.Spans = append(b.Spans, span)
		s.computed += p.count
	}
	logits := r.run(b)
	var results [][][]float32
	for _, p := range parts {
		results = append(results, logits[:p.count])
		logits = logits[p.count:]
	}
	return results
}

// prompt computes what is left of a sequence in chunks and gives the logits of
// its last token.
func (r *runner) prompt(s *sequence, chunk int) []float32 {
	r.t.Helper()
	var last []float32
	for s.computed < len(s.tokens) {
		n := min(chunk, len(s.tokens)-s.computed)
		last = r.step(part{s, n})[0][n-1]
	}
	return last
}
