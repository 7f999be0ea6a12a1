package model

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"manta/kernels"
	"manta/kernels/ref"
	"manta/parallel/shard"
	"manta/runtime/weights"
)

// A golden is the reference of one model: see the golden set's README.
type golden struct {
	Prompts []struct {
		IDs        []int32
		LogitsLast []float32 `json:"logits_last"`
		Greedy     []int32
		Margin     float64
	}
}

// goldenModels lists the folders of the references: the package's own, or with
// GOLDEN_DIR those of that set.
func goldenModels(t testing.TB) []string {
	root := cmp.Or(os.Getenv("GOLDEN_DIR"), "testdata")
	files, err := filepath.Glob(filepath.Join(root, "models", "*", "golden.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no references under %s/models: %v", root, err)
	}
	for i, f := range files {
		files[i] = filepath.Dir(f)
	}
	return files
}

func readGolden(t testing.TB, folder string) golden {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(folder, "golden.json"))
	if err != nil {
		t.Fatal(err)
	}
	var g golden
	if err := json.Unmarshal(data, &g); err != nil || len(g.Prompts) == 0 {
		t.Fatalf("%s: %d prompts: %v", folder, len(g.Prompts), err)
	}
	return g
}

// A runner drives whole replicas of one stage and one tensor rank by hand, as the
// engine does: it gives each sequence blocks of its own.
type runner struct {
	t      testing.TB
	ops    kernels.Ops
	spec   *Spec
	model  *Model
	groups []int
	next   []int32
}

const testContext = 256

func newRunner(t testing.TB, path string, cacheType kernels.DType, context int) *runner {
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
	roundAsReference(t, s, w)
	slice, err := shard.Whole(s.Shape())
	if err != nil {
		t.Fatal(err)
	}
	r := &runner{t: t, ops: ref.New(), spec: s, groups: s.Shapes().Groups()}
	r.next = make([]int32, len(r.groups))
	limits := Limits{MaxRows: 256, MaxWanted: 256, MaxContext: context, CacheType: cacheType}
	for range r.groups {
		limits.Blocks = append(limits.Blocks, 1024)
	}
	if r.model, err = Load(r.ops, w, s, slice, limits, nil); err != nil {
		t.Fatal(err)
	}
	return r
}

// roundAsReference repeats what transformers 5.17's references of 16-bit models
// went through: the script that made them converted each model in memory, and its
// rotation frequencies with it. Those of 5.23 read the files.
func roundAsReference(t testing.TB, s *Spec, w *weights.Model) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(w.Path(), "golden.json"))
	if err != nil {
		return // no reference
	}
	var g struct{ Source string }
	if err := json.Unmarshal(data, &g); err != nil {
		t.Fatal(err)
	}
	m, _ := w.Tensor(s.Names.Embedding + ".weight")
	if strings.HasPrefix(g.Source, "transformers 5.17.") {
		s.RoundFrequencies(m.Type)
	}
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
	if err := r.ops.Begin(b); err != nil {
		r.t.Fatal(err)
	}
	out, err := r.model.Forward(b)
	if err != nil {
		r.t.Fatal(err)
	}
	logits := read(r.t, r.ops, out)
	if _, err := r.ops.End().Wait(); err != nil {
		r.t.Fatal(err)
	}
	var results [][][]float32
	for _, p := range parts {
		results = append(results, logits[:p.count])
		logits = logits[p.count:]
	}
	return results
}

// read copies the rows of a tensor of a device with float32 activations.
func read(t testing.TB, ops kernels.Ops, x kernels.Tensor) [][]float32 {
	t.Helper()
	bytes := make([]byte, x.Rows*ops.RowBytes(x))
	if err := ops.Get(bytes, x); err != nil {
		t.Fatal(err)
	}
	rows := make([][]float32, x.Rows)
	for i := range rows {
		rows[i] = make([]float32, x.Cols)
		for j := range rows[i] {
			rows[i][j] = math.Float32frombits(binary.LittleEndian.Uint32(bytes[4*(i*x.Cols+j):]))
		}
	}
	return rows
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
