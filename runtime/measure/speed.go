package measure

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"manta/kernels"
	"manta/runtime/engine"
	"manta/runtime/plan"
	"manta/runtime/sample"
	"manta/runtime/sched"
)

// Speed is what an engine does without a server around it.
type Speed struct {
	LoadSeconds     float64 `json:"load_seconds"`
	DecodePerSecond float64 `json:"decode_tokens_per_second"` // one stream, from one token on
	PromptPerSecond float64 `json:"prompt_tokens_per_second"`
	BytesPerToken   float64 `json:"bytes_per_token"` // of weights, as the file stores them
}

// Work sizes a measurement of speed.
type Work struct {
	Prompt, Output int // tokens of the prompt, and of the answer to a prompt of one token
	Rounds         int
}

// EngineSpeed runs one stream at a time through an engine, greedily, and gives one
// Speed a round. The first, unmeasured, warms up.
func EngineSpeed(ctx context.Context, path string, d Device, w Work) ([]Speed, error) {
	began := time.Now()
	r, err := start(ctx, path, d, w)
	if err != nil {
		return nil, err
	}
	loaded := time.Since(began).Seconds()
	var all []Speed
	for round := range w.Rounds + 1 {
		var s Speed
		if s, err = r.round(w); err != nil {
			break
		}
		if s.LoadSeconds, s.BytesPerToken = loaded, r.bytes; round > 0 {
			all = append(all, s)
		}
	}
	return all, errors.Join(err, r.stop())
}

// running is an engine at work.
type running struct {
	engine  *engine.Engine
	outputs chan engine.Output
	vocab   int
	bytes   float64 // of weights a token
	asked   uint64
	stop    func() error
}

// start loads the model and runs an engine on it until stop is called.
func start(ctx context.Context, path string, d Device, w Work) (*running, error) {
	m, err := open(path)
	if err != nil {
		return nil, err
	}
	rows := max(w.Prompt, w.Output) + kernels.BlockTokens
	limits := sched.Limits{MaxSequences: 1, MaxRows: 512, MaxWanted: 1, MaxLen: rows}
	for range m.spec.Shapes().Groups() {
		limits.Blocks = append(limits.Blocks, 2*(rows/kernels.BlockTokens+1))
	}
	local, err := engine.LoadLocal(engine.LocalConfig{
		Weights: m.weights, Spec: m.spec, Layout: whole, Limits: limits, CacheType: d.Cache,
		Open: func(int, int) (kernels.Ops, error) { return d.Open() },
	})
	if err != nil {
		return nil, errors.Join(err, m.weights.Close())
	}
	r := &running{outputs: make(chan engine.Output, w.Prompt+w.Output), vocab: m.spec.Shapes().Vocab, bytes: bytesPerToken(m.spec.Shapes())}
	r.engine, r.stop, err = drive(ctx, local, func(_ context.Context, list []engine.Output) {
		for _, o := range list {
			r.outputs <- o
		}
	}, m.weights.Close)
	if err != nil {
		return nil, errors.Join(err, m.weights.Close())
	}
	return r, nil
}

// bytesPerToken counts the weights that a step of one row reads. Of experts it
// reads those that are used; a tied embedding is read as the output matrix.
func bytesPerToken(s plan.Shapes) float64 {
	ffn := float64(s.FFNBytes)
	if s.Experts > 0 {
		ffn *= float64(s.ExpertsUsed) / float64(s.Experts)
	}
	output := s.OutputBytes
	if s.Tied {
		output = s.EmbeddingBytes
	}
	return float64(s.Layers)*(float64(s.AttentionBytes)+ffn) + float64(output)
}

// round measures the prompt, then the answer.
func (r *running) round(w Work) (s Speed, err error) {
	prompt, _, err := r.generate(w.Prompt, 1)
	if err != nil {
		return s, err
	}
	first, last, err := r.generate(1, w.Output)
	if err != nil {
		return s, err
	}
	s.PromptPerSecond = float64(w.Prompt) / prompt.Seconds()
	s.DecodePerSecond = float64(w.Output) / (first + last).Seconds()
	return s, nil
}

// generate answers a prompt of other tokens each time, and tells how long the
// first token took, and all that came after it.
func (r *running) generate(prompt, output int) (first, rest time.Duration, err error) {
	r.asked++
	request := engine.Request{Attempt: 1, Choices: 1, Params: sample.Default()}
	binary.LittleEndian.PutUint64(request.ID[:], r.asked)
	request.Params.Temperature, request.Params.MaxTokens, request.Params.IgnoreEOS = 0, output, true
	for i := range prompt {
		request.Prompt = append(request.Prompt, int32((uint64(i)*7919+r.asked*104729)%uint64(r.vocab)))
	}
	began := time.Now()
	if err := r.engine.Submit(request); err != nil {
		return 0, 0, err
	}
	for {
		o := <-r.outputs
		if o.Err != nil {
			return 0, 0, fmt.Errorf("measure: %w", o.Err)
		}
		if first == 0 {
			first = time.Since(began)
		}
		if o.Finish != sched.Unfinished {
			return first, time.Since(began) - first, nil
		}
	}
}
