package api

import (
	"context"
	"fmt"
	"sync"
	"time"

	"manta/head/dispatch"
	"manta/internal/trace"
	"manta/node/wire"
)

// batch is the prompts of a job in progress.
type batch struct {
	turn    sync.Mutex // of all its streams: their sinks run one at a time
	streams []*dispatch.Stream
	stop    context.CancelFunc
	ended   chan struct{} // closed when all have ended

	mu   sync.Mutex // guards what follows
	open int
	err  error // why the first failed
}

// submit queues every prompt, or none. What it gives is to be run and closed.
func (s *Server) submit(j *job) (*batch, error) {
	b := &batch{ended: make(chan struct{})}
	now := time.Now()
	if j.resume == nil { // one that goes on was admitted
		if err := s.admit(j.caller); err != nil {
			return nil, err
		}
	}
	for i, p := range j.prompts {
		request := dispatch.Request{
			ID: dispatch.Part(j.id, i), Deployment: j.model.Name, Tokenizer: j.model.text.Tokenizer,
			Prompt: p.tokens, Choices: j.n, Params: j.params, Priority: j.priority,
			Deadline: now.Add(s.limits.RequestTime), WaitUntil: now.Add(s.limits.WaitTime),
			Owner: j.owner, Body: j.body, Key: j.caller.name, Weight: j.caller.limits.Weight, Session: j.session,
			Turn: &b.turn,
		}
		if j.resume != nil {
			request.Attempt = j.resume.Attempt
			request.Seen = j.resume.Choices[i*j.n : (i+1)*j.n]
		}
		request.Trace = s.tracer.Request(trace.Start{
			From: j.from, ID: j.id, Arrived: j.arrived, Model: j.model.Name, Prompt: len(p.tokens), Choices: j.n,
			MaxTokens: j.params.MaxTokens, Temperature: j.params.Temperature, TopP: j.params.TopP,
		})
		stream, err := s.dispatch.Submit(request)
		if err != nil {
			request.Trace.End(trace.End{Err: err})
			for _, earlier := range b.streams {
				earlier.Close()
			}
			return nil, fmt.Errorf("prompt %d: %w", i, err)
		}
		b.streams = append(b.streams, stream)
	}
	return b, nil
}

// run carries every prompt to its end, through a sink each. The first that fails
// stops the others.
func (s *Server) run(ctx context.Context, b *batch, j *job, sink func(prompt int) dispatch.Sink) {
	ctx, b.stop = context.WithCancel(ctx)
	b.open = len(b.streams)
	for i, stream := range b.streams {
		go func() { // close waits for it
			err := stream.Run(ctx, sink(i))
			stream.Close()
			s.spend(j.caller, stream.Given()+len(j.prompts[i].tokens))
			b.end(err)
		}()
	}
}

// end counts a prompt out.
func (b *batch) end(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil && b.err == nil {
		b.err = err
		b.stop()
	}
	if b.open--; b.open == 0 {
		close(b.ended)
	}
}

// wait gives why the batch failed once all of it has ended.
func (b *batch) wait() error {
	<-b.ended
	return b.err
}

// attempt is the newest sending of any prompt.
func (b *batch) attempt() uint32 {
	var newest uint32
	for _, stream := range b.streams {
		newest = max(newest, stream.Attempt())
	}
	return newest
}

// close withdraws what is unfinished and waits for its goroutines.
func (b *batch) close() {
	b.stop()
	<-b.ended
}

// answer is one choice, gathered.
type answer struct {
	text     string
	tokens   []int32
	logprobs []wire.Logprob
	finish   wire.FinishReason
	reason   any // stop string, stop token id, or nil
}

// gathered is a prompt's choices, and what is known of the prompt.
type gathered struct {
	choices []answer
	prompt  []wire.Logprob
	cached  int
}

// gathering is the sink of a prompt whose answer is given as a whole.
type gathering struct {
	gathered
	texts [][]byte // by choice
}

// Take implements dispatch.Sink.
func (g *gathering) Take(events []dispatch.Event, _ bool) (bool, error) {
	for i := range events {
		e := &events[i]
		a := &g.choices[e.Choice]
		g.texts[e.Choice] = append(g.texts[e.Choice], e.Text...)
		a.tokens = append(a.tokens, e.Tokens...)
		a.logprobs = append(a.logprobs, e.Logprobs...)
		if e.Finish != wire.Unfinished {
			a.finish, a.reason = e.Finish, stopReason(e)
		}
		if e.Prompt != nil {
			g.prompt = e.Prompt
		}
		g.cached = max(g.cached, e.Cached)
	}
	return true, nil
}

// gather runs jobs together to their ends and gives each one's prompts.
func (s *Server) gather(ctx context.Context, jobs ...*job) ([][]gathered, error) {
	var batches []*batch
	defer func() {
		for _, b := range batches {
			b.close()
		}
	}()
	sinks := make([][]*gathering, len(jobs))
	for i, j := range jobs {
		b, err := s.submit(j)
		if err != nil {
			return nil, err
		}
		batches = append(batches, b)
		for range j.prompts {
			sinks[i] = append(sinks[i], &gathering{gathered: gathered{choices: make([]answer, j.n)}, texts: make([][]byte, j.n)})
		}
		s.run(ctx, b, j, func(prompt int) dispatch.Sink { return sinks[i][prompt] })
	}
	all := make([][]gathered, len(jobs))
	for i, b := range batches {
		if err := b.wait(); err != nil {
			return nil, err
		}
		for _, g := range sinks[i] {
			for c, text := range g.texts {
				g.choices[c].text = string(text)
			}
			all[i] = append(all[i], g.gathered)
		}
	}
	return all, nil
}

// stopReason is vLLM's: the stop string, or the id of stop_token_ids.
func stopReason(e *dispatch.Event) any {
	switch {
	case e.StopString != "":
		return e.StopString
	case e.StopToken != nil:
		return *e.StopToken
	}
	return nil
}

var _ dispatch.Sink = (*gathering)(nil)
