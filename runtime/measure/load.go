package measure

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"manta/kernels"
	"manta/parallel/shard"
	"manta/runtime/engine"
	"manta/runtime/model"
	"manta/runtime/plan"
	"manta/runtime/sample"
	"manta/runtime/sched"
)

// LoadConfig says what an engine under load is made of.
type LoadConfig struct {
	Path       string // of the model
	LoadFormat string
	DType      string
	KVCache    string      // kv_cache_dtype
	Kind       string      // of the devices
	Budget     plan.Budget // with its defaults
	Layout     shard.Layout
	Open       func(stage, rank int) (kernels.Ops, error)
}

// Engine is one that takes many requests at once, as under a server: its
// loading, ranks and step loop are those of node/serve, without heads, links and
// HTTP. What serving costs is the difference to the same work through the API.
type Engine struct {
	engine     *engine.Engine
	vocabulary int
	outputs    chan []engine.Output
	stop       func() error
	device     kernels.Ops   // of rank (0, 0)
	Loaded     time.Duration // from Start to the end of the first step
	Fit        plan.Fit
}

// Start loads a model and makes one real step.
func Start(ctx context.Context, cfg LoadConfig) (_ *Engine, err error) {
	began := time.Now()
	w, source, err := model.Open(cfg.Path, cfg.LoadFormat)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Close())
		}
	}()
	spec, err := model.Describe(source)
	if err != nil {
		return nil, err
	}
	b := cfg.Budget
	if b.KVType, err = spec.Shapes().CacheType(cfg.Kind, cfg.KVCache, cfg.DType); err != nil {
		return nil, err
	}
	fit, err := plan.Compute(spec.Shapes(), cfg.Layout, b)
	if err != nil {
		return nil, err
	}
	e := &Engine{outputs: make(chan []engine.Output, 1<<10), vocabulary: spec.Shapes().Vocab, Fit: fit}
	local, err := engine.LoadLocal(engine.LocalConfig{
		Weights: source, Spec: spec, Layout: cfg.Layout, CacheType: b.KVType,
		Limits: sched.Limits{
			Blocks: fit.Blocks, MaxSequences: b.MaxSequences, MaxRows: b.MaxRows, MaxWanted: plan.Wanted(b.MaxSequences), MaxLen: fit.MaxLen,
		},
		Open: func(stage, rank int) (kernels.Ops, error) {
			ops, err := cfg.Open(stage, rank)
			if stage == 0 && rank == 0 {
				e.device = ops
			}
			return ops, err
		},
	})
	if err != nil {
		return nil, err
	}
	e.engine, e.stop, err = drive(ctx, local, func(ctx context.Context, o []engine.Output) {
		select {
		case e.outputs <- slices.Clone(o):
		case <-ctx.Done():
		}
	}, w.Close)
	if err != nil {
		return nil, err
	}
	if _, err := e.Do([]Request{{1, 1}}); err != nil {
		return nil, errors.Join(err, e.stop())
	}
	e.Loaded = time.Since(began)
	return e, nil
}

// Close ends the engine and frees its devices.
func (e *Engine) Close() error { return e.stop() }

// Request is the lengths of one, in tokens.
type Request struct{ Input, Output int }

// A Result is what some work came to.
type Result struct {
	Seconds        float64
	Input, Output  int // tokens
	Steps          int
	FirstToken     float64 // seconds to the first token of the first request
	AllFirst       float64 // … until every request had its first
	DecodeSeconds  float64 // from then to the end …
	DecodeOutput   int     // … with so many tokens …
	DecodeSteps    int     // … in so many steps
	ProcessSeconds float64 // processor time of this process
	// HostShare is the part of the time after the first token in which the device had no step to do,
	// because the host had not handed it over yet; negative where it is not counted.
	HostShare float64
}

// A spender is a device that counts how long it works, and how long it stands
// idle between two steps.
type spender interface {
	Spent() (busy, idle time.Duration)
}

// Do hands all the work over at once, in order, and waits for every token. Prompts
// are random and depend on a request's place alone; the model's end token does not
// end an answer.
func (e *Engine) Do(work []Request) (Result, error) {
	var r Result
	p := sample.Default()
	p.Temperature, p.IgnoreEOS = 0, true
	var busy, idle time.Duration
	counting, counts := e.device.(spender)
	before, cpu, began := e.engine.Stats(), processTime(), time.Now()
	for i, w := range work {
		draw := rand.New(rand.NewPCG(1, uint64(i)+2))
		prompt := make([]int32, w.Input)
		for j := range prompt {
			prompt[j] = int32(draw.IntN(e.vocabulary))
		}
		p.MaxTokens = w.Output
		id := engine.RequestID{byte(i), byte(i >> 8), byte(i >> 16), 1}
		if err := e.engine.Submit(engine.Request{ID: id, Attempt: 1, Prompt: prompt, Choices: 1, Params: p}); err != nil {
			return r, err
		}
		r.Input += w.Input
	}
	waiting, open := len(work), len(work)
	for open > 0 {
		for _, o := range <-e.outputs {
			if o.Err != nil {
				return r, o.Err
			}
			if o.Offset == 0 && len(o.Tokens) > 0 {
				now := time.Since(began).Seconds()
				if waiting == len(work) {
					if r.FirstToken = now; counts {
						busy, idle = counting.Spent()
					}
				}
				if waiting--; waiting == 0 {
					r.AllFirst, r.DecodeSteps = now, int(e.engine.Stats().Steps)
					r.DecodeOutput = -r.Output - len(o.Tokens)
				}
			}
			r.Output += len(o.Tokens)
			if o.Finish != "" {
				open--
			}
		}
	}
	r.Seconds = time.Since(began).Seconds()
	r.ProcessSeconds = (processTime() - cpu).Seconds()
	r.HostShare = -1
	if counts {
		b, i := counting.Spent()
		r.HostShare = float64(i-idle) / float64(b-busy+i-idle)
	}
	after := e.engine.Stats()
	r.Steps = int(after.Steps - before.Steps)
	r.DecodeSeconds, r.DecodeOutput, r.DecodeSteps = r.Seconds-r.AllFirst, r.DecodeOutput+r.Output, int(after.Steps)-r.DecodeSteps
	return r, nil
}
