package engine_test

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"manta/kernels"
	"manta/kernels/cpu"
	"manta/parallel/shard"
	"manta/runtime/engine"
	"manta/runtime/kv"
	"manta/runtime/model"
	"manta/runtime/model/modeltest"
	"manta/runtime/sample"
	"manta/runtime/sched"
	"manta/runtime/weights"
)

// replica is a golden model served by an engine.
type replica struct {
	engine  *engine.Engine
	outputs chan engine.Output
	stop    func()
	// windowed sequences give blocks back and so need fewer.
	windowed bool
}

// openDevice gives each rank of a test its device; rank counts through the stages.
var openDevice = func(_ int, options cpu.Options) (kernels.Ops, error) { return cpu.New(options) }

// serve loads a model folder onto ranks of the CPU backend.
func serve(t testing.TB, path string, layout shard.Layout, limits sched.Limits) *replica {
	t.Helper()
	return serveOn(t, path, layout, limits, cpu.Options{Threads: 1}, 0)
}

func serveOn(t testing.TB, path string, layout shard.Layout, limits sched.Limits, options cpu.Options, depth int) *replica {
	t.Helper()
	return serveFrom(t, path, layout, limits, options, depth, false)
}

// serveFrom may make a process of its own of each stage.
func serveFrom(t testing.TB, path string, layout shard.Layout, limits sched.Limits, options cpu.Options, depth int, apart bool) *replica {
	t.Helper()
	w, err := weights.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	spec, err := model.Describe(w)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(path, "golden.json")); err == nil {
		g, err := modeltest.Read(path)
		if err != nil {
			t.Fatal(err)
		}
		spec.RoundFrequencies(g.Frequencies(spec.Shapes().WeightType))
	}
	for range spec.Shapes().Groups()[1:] {
		limits.Blocks = append(limits.Blocks, limits.Blocks[0])
	}
	cfg := engine.LocalConfig{
		Weights: w, Spec: spec, Layout: layout, Limits: limits, CacheType: kernels.F32, Depth: depth,
		Open: func(stage, rank int) (kernels.Ops, error) { return openDevice(stage*layout.Tensor+rank, options) },
	}
	r := &replica{outputs: make(chan engine.Output, 1<<16)}
	for _, window := range spec.Shapes().Groups() {
		r.windowed = r.windowed || window > 0
	}
	deliver := func(outputs []engine.Output) {
		for _, o := range outputs {
			r.outputs <- o
		}
	}
	var locals []*engine.Local
	var run func(context.Context) error
	if apart {
		if locals, err = loadApart(cfg); err == nil {
			r.engine, run, err = driveApart(locals, stagesApart(layout.Pipeline, layout.Tensor), deliver)
		}
	} else {
		var local *engine.Local
		var epoch *engine.Epoch
		if local, err = engine.LoadLocal(cfg); err == nil {
			locals = append(locals, local)
			epoch, err = local.Epoch(1, engine.Where{})
		}
		if err == nil {
			r.engine, _, run, err = epoch.Drive(deliver)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	r.stop = func() {
		cancel()
		<-ended
		for _, local := range locals {
			if err := local.Close(); err != nil {
				t.Error(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	}
	return r
}

// generate runs requests together and gives each its tokens.
func (r *replica) generate(t testing.TB, requests []engine.Request) map[engine.RequestID][]int32 {
	t.Helper()
	return r.generateWith(t, requests, func(engine.Output) {})
}

// generateWith shows every output to look.
func (r *replica) generateWith(t testing.TB, requests []engine.Request, look func(engine.Output)) map[engine.RequestID][]int32 {
	t.Helper()
	tokens := make(map[engine.RequestID][]int32)
	for _, q := range requests {
		if err := r.engine.Submit(q); err != nil {
			t.Fatal(err)
		}
	}
	for open := len(requests); open > 0; {
		o := <-r.outputs
		if o.Err != nil {
			t.Fatalf("request %x: %v", o.ID[:2], o.Err)
		}
		look(o)
		tokens[o.ID] = append(tokens[o.ID], o.Tokens...)
		if o.Finish != sched.Unfinished {
			open--
		}
	}
	return tokens
}

// arrangement is a way to serve that must not change a token.
type arrangement struct {
	name   string
	layout shard.Layout
	rows   int // of a step: prompts are cut into such chunks
	blocks int // few force preemption
	cache  bool
	apart  bool // each stage is a process of its own
}

func folders(t *testing.T) []string {
	t.Helper()
	paths, err := modeltest.Folders("../model/testdata")
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// Every golden model gives the reference's greedy tokens whatever the chunks, the
// company in the batch, prefix hits, preemption, tensor ranks and stages.
func TestGoldenThroughTheEngine(t *testing.T) {
	arrangements := []arrangement{
		{"whole", shard.Layout{Tensor: 1, Pipeline: 1}, 512, 400, false, false},
		{"chunks of 7, prefix cache", shard.Layout{Tensor: 1, Pipeline: 1}, 7, 400, true, false},
		{"chunks of 64, preempted", shard.Layout{Tensor: 1, Pipeline: 1}, 64, 17, true, false},
		{"one row a step", shard.Layout{Tensor: 1, Pipeline: 1}, 1, 400, true, false},
		{"2 tensor ranks", shard.Layout{Tensor: 2, Pipeline: 1}, 64, 400, true, false},
		{"2 stages", shard.Layout{Tensor: 1, Pipeline: 2}, 64, 60, true, false},
		{"2 tensor ranks of 2 stages", shard.Layout{Tensor: 2, Pipeline: 2}, 16, 400, true, false},
		{"3 tensor ranks", shard.Layout{Tensor: 3, Pipeline: 1}, 32, 400, true, false},
		{"4 tensor ranks", shard.Layout{Tensor: 4, Pipeline: 1}, 64, 400, true, false},
		{"4 tensor ranks of 2 stages", shard.Layout{Tensor: 4, Pipeline: 2}, 64, 60, true, false},
		{"3 stages", shard.Layout{Tensor: 1, Pipeline: 3}, 24, 60, true, false},
		{"2 uneven stages", shard.Layout{Tensor: 1, Pipeline: 2, StageLayers: []int{1, rest}}, 64, 60, true, false},
		{"2 tensor ranks of 2 uneven stages", shard.Layout{Tensor: 2, Pipeline: 2, StageLayers: []int{rest, 1}}, 16, 400, true, false},
		{"2 tensor ranks of 3 stages", shard.Layout{Tensor: 2, Pipeline: 3}, 64, 400, false, false},
		{"3 tensor ranks of 2 stages", shard.Layout{Tensor: 3, Pipeline: 2}, 64, 400, true, false},
		{"3 tensor ranks of 3 stages", shard.Layout{Tensor: 3, Pipeline: 3}, 16, 60, true, false},
		{"2 stages apart", shard.Layout{Tensor: 1, Pipeline: 2}, 64, 60, true, true},
		{"2 tensor ranks of 2 stages apart", shard.Layout{Tensor: 2, Pipeline: 2}, 16, 400, true, true},
	}
	for _, path := range folders(t) {
		shape := shapeOf(t, path)
		for _, a := range arrangements {
			a.layout.StageLayers = slices.Clone(a.layout.StageLayers)
			for i, n := range a.layout.StageLayers {
				if n == rest {
					a.layout.StageLayers[i] = shape.Layers - 1
				}
			}
			if a.layout.Check(shape) != nil || !takes(a.layout) {
				continue // more ranks than heads, or stages than layers, or no time
			}
			t.Run(filepath.Base(path)+"/"+a.name, func(t *testing.T) { checkGolden(t, path, a) })
		}
	}
}

// rest stands for all layers but one.
const rest = -1

// takes leaves out arrangements that a device has no time for.
var takes = func(shard.Layout) bool { return true }

// opened gives a model's weights, which close with the test, and what they describe.
func opened(t *testing.T, path string) (*weights.Model, *model.Spec) {
	t.Helper()
	w, err := weights.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	spec, err := model.Describe(w)
	if err != nil {
		t.Fatal(err)
	}
	return w, spec
}

func shapeOf(t *testing.T, path string) shard.Shape {
	_, spec := opened(t, path)
	return spec.Shape()
}

func checkGolden(t *testing.T, path string, a arrangement) {
	g, err := modeltest.Read(path)
	if err != nil {
		t.Fatal(err)
	}
	limits := sched.Limits{
		Blocks: []int{a.blocks}, MaxSequences: min(8, a.rows), MaxRows: a.rows, MaxWanted: 16,
		MaxLen: 256, PrefixCaching: a.cache, Seed: kv.Seed([32]byte{}),
	}
	r := serveFrom(t, path, a.layout, limits, cpu.Options{Threads: 1}, 0, a.apart)
	defer r.stop()
	rng := rand.New(rand.NewPCG(5, 5))
	for round := range 2 { // the second meets the first's blocks in the index
		var requests []engine.Request
		want := make(map[engine.RequestID][]int32)
		for i := range 3 * len(g.Prompts) {
			p := g.Prompts[i%len(g.Prompts)]
			q := engine.Request{ID: engine.RequestID{byte(round), byte(i)}, Attempt: 1, Prompt: p.IDs, Choices: 1, Params: greedy(len(p.Greedy))}
			requests = append(requests, q)
			want[q.ID] = p.Greedy
			if p.Margin <= modeltest.Margin {
				delete(want, q.ID)
			}
		}
		rng.Shuffle(len(requests), func(i, j int) { requests[i], requests[j] = requests[j], requests[i] })
		got := r.generate(t, requests)
		for id, tokens := range want {
			if !slices.Equal(got[id], tokens) {
				t.Errorf("round %d prompt %d: got %v, want %v", round, int(id[1])%len(g.Prompts), got[id], tokens)
			}
		}
	}
	stats := r.engine.Stats()
	if a.cache && a.blocks > 100 && stats.PrefixHits == 0 {
		t.Error("no prefix was found in the cache")
	}
	if a.blocks == 17 && !r.windowed && stats.Preemptions == 0 {
		t.Error("nothing was preempted")
	}
}

func greedy(n int) sample.Params {
	p := sample.Default()
	p.Temperature, p.MaxTokens, p.IgnoreEOS = 0, n, true
	return p
}

// Seeded sampling too: a choice gets the same tokens alone, among others, and
// after a preemption.
func TestSeededSamplingDoesNotDependOnCompany(t *testing.T) {
	path := folders(t)[0]
	var requests []engine.Request
	rng := rand.New(rand.NewPCG(9, 9))
	for i := range 24 {
		prompt := make([]int32, 3+rng.IntN(60))
		for j := range prompt {
			prompt[j] = int32(rng.IntN(900))
		}
		p := greedy(10 + rng.IntN(30))
		p.Temperature, p.Seed = 0.5+rng.Float32(), rng.Uint64()
		p.TopK, p.TopP, p.MinP = rng.IntN(50), 0.5+rng.Float32()/2, rng.Float32()/10
		p.FrequencyPenalty, p.PresencePenalty, p.RepetitionPenalty = rng.Float32(), rng.Float32(), 1+rng.Float32()/4
		requests = append(requests, engine.Request{ID: engine.RequestID{byte(i)}, Attempt: 1, Prompt: prompt, Choices: 1, Params: p})
	}
	limits := sched.Limits{Blocks: []int{20}, MaxSequences: 12, MaxRows: 48, MaxWanted: 16, MaxLen: 200, PrefixCaching: true}
	whole := shard.Layout{Tensor: 1, Pipeline: 1}
	together := serve(t, path, whole, limits)
	got := together.generate(t, requests)
	if together.engine.Stats().Preemptions == 0 {
		t.Error("nothing was preempted")
	}
	together.stop()
	limits.Blocks = []int{400}
	alone := serve(t, path, whole, limits)
	defer alone.stop()
	for i := range requests {
		want := alone.generate(t, requests[i:i+1])[requests[i].ID]
		if !slices.Equal(got[requests[i].ID], want) {
			t.Errorf("request %d: together %v, alone %v", i, got[requests[i].ID], want)
		}
	}
}
