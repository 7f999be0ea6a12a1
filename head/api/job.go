package api

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"manta/head/dispatch"
	"manta/internal/trace"
	"manta/node/wire"
	"manta/runtime/sample"
)

// job is one HTTP request for text, checked and tokenized: n choices of each of
// its prompts.
type job struct {
	model    *served
	id       wire.RequestID
	created  int64
	prompts  []prompt
	params   sample.Params
	n        int
	priority int
	owner    [32]byte
	caller   *caller
	session  string
	body     [32]byte
	arrived  time.Time         // for its trace; zero: now
	from     trace.Context     // of the client
	resume   *dispatch.EventID // nil: from the start

	stream     bool
	usage      bool
	continuous bool
	tokensAsID bool
	tokenIDs   bool
}

type prompt struct {
	text   string
	tokens []int32
}

// sessionHeader names a session: its requests go to one replica if they can.
const sessionHeader = "X-Session-Id"

// behindClients is added to the priority of a batch's lines: clients wait, batches
// do not.
const behindClients = 100

// newJob takes what the two forms of request share.
func newJob(r *http.Request, model *served, f *sampling, data []byte, params sample.Params) (*job, error) {
	n, err := f.choices()
	if err != nil {
		return nil, err
	}
	j := &job{
		model: model, created: time.Now().Unix(), params: params, n: n,
		owner: by(r.Context()).hash, caller: by(r.Context()), session: r.Header.Get(sessionHeader), body: digest(data),
		stream: f.Stream, tokensAsID: f.TokensAsIDs, tokenIDs: f.ReturnTokenIDs,
	}
	j.arrived, _ = r.Context().Value(arrivedKey{}).(time.Time)
	j.from = trace.Context{Parent: r.Header.Get("Traceparent"), State: r.Header.Get("Tracestate")}
	if j.priority = f.Priority; j.caller.name != "" {
		j.priority = max(j.priority, j.caller.limits.Priority)
	}
	if j.caller.line != nil {
		j.priority += behindClients
	}
	if f.StreamOptions != nil {
		j.usage = f.StreamOptions.IncludeUsage || f.StreamOptions.ContinuousUsage
		j.continuous = f.StreamOptions.ContinuousUsage
	}
	// crypto/rand.Read never fails.
	_, _ = rand.Read(j.id[:])
	if j.params.Seed = model.Settings.Seed; f.Seed != nil {
		j.params.Seed = params.Seed
	} else if j.caller.line != nil {
		j.params.Seed = *j.caller.line
	} else if model.Settings.Seed == 0 {
		var seed [8]byte
		_, _ = rand.Read(seed[:])
		j.params.Seed = binary.LittleEndian.Uint64(seed[:])
	}
	return j, nil
}

// goOn makes the job the continuation of the stream that Last-Event-ID names.
// The id must be one given to the same key for the same body.
func (j *job) goOn(r *http.Request) error {
	text := r.Header.Get("Last-Event-ID")
	if text == "" || !j.stream {
		return nil
	}
	id, err := dispatch.ParseEventID(text)
	if err != nil {
		return err
	}
	if id.Check != dispatch.Check(id.Request, id.Seed, j.owner, j.body) || len(id.Choices) != j.n*len(j.prompts) {
		return dispatch.ErrNotFound
	}
	j.id, j.params.Seed, j.resume = id.Request, id.Seed, &id
	return nil
}

// fit checks prompts against the model's length and settles max_tokens, in
// vLLM's words. A limit of 0 means the rest of the context.
func (j *job) fit(limit int, field string) error {
	longest := 0
	for _, p := range j.prompts {
		if len(p.tokens) == 0 {
			return badField(field, "the prompt is empty")
		}
		longest = max(longest, len(p.tokens))
	}
	length := j.model.length
	if longest >= length {
		return badField(field, "This model's maximum context length is %d tokens. However, your request has %d input tokens. Please reduce the length of the input messages.", length, longest)
	}
	if limit > length-longest {
		return badField("max_tokens", "'max_tokens' or 'max_completion_tokens' is too large: %d. This model's maximum context length is %d tokens and your request has %d input tokens (%d > %d - %d).", limit, length, longest, limit, length, longest)
	}
	j.params.MaxTokens = limit
	if limit == 0 {
		j.params.MaxTokens = length - longest
	}
	return j.params.Check(j.model.text.Vocabulary)
}

// piece is an event of one of a batch's prompts.
type piece struct {
	prompt int
	dispatch.Event
	err error
}

// batch is the prompts of a job in progress. Its goroutines end with close.
type batch struct {
	streams []*dispatch.Stream
	pieces  chan piece // closed when all have ended
	stop    context.CancelFunc
	work    sync.WaitGroup
}

// start queues every prompt, or none.
func (s *Server) start(ctx context.Context, j *job) (*batch, error) {
	b := &batch{pieces: make(chan piece, 16)}
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
	ctx, b.stop = context.WithCancel(ctx)
	for i, stream := range b.streams {
		b.work.Go(func() {
			defer stream.Close()
			s.spend(j.caller, b.read(ctx, i, stream)+len(j.prompts[i].tokens))
		})
	}
	go func() { // ends with the readers; close waits for them
		b.work.Wait()
		close(b.pieces)
	}()
	return b, nil
}

// read hands a stream's events on until it ends, and counts the tokens.
func (b *batch) read(ctx context.Context, index int, stream *dispatch.Stream) (tokens int) {
	for {
		event, err := stream.Next(ctx)
		if errors.Is(err, io.EOF) {
			return tokens
		}
		tokens += len(event.Tokens)
		select {
		case b.pieces <- piece{prompt: index, Event: event, err: err}:
		case <-ctx.Done():
			return tokens
		}
		if err != nil {
			return tokens
		}
	}
}

// attempt is the newest sending of any prompt.
func (b *batch) attempt() uint32 {
	var newest uint32
	for _, stream := range b.streams {
		newest = max(newest, stream.Attempt())
	}
	return newest
}

// close withdraws what is unfinished and waits for the readers.
func (b *batch) close() {
	b.stop()
	for range b.pieces {
		// What comes after the end has no reader.
	}
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

// gather reads a batch to its end.
func (s *Server) gather(ctx context.Context, j *job) ([]gathered, error) {
	b, err := s.start(ctx, j)
	if err != nil {
		return nil, err
	}
	defer b.close()
	all := make([]gathered, len(j.prompts))
	texts := make([][]byte, len(j.prompts)*j.n)
	for i := range all {
		all[i].choices = make([]answer, j.n)
	}
	for p := range b.pieces {
		if p.err != nil {
			return nil, p.err
		}
		of := &all[p.prompt]
		a := &of.choices[p.Choice]
		at := p.prompt*j.n + p.Choice
		texts[at] = append(texts[at], p.Text...)
		a.tokens = append(a.tokens, p.Tokens...)
		a.logprobs = append(a.logprobs, p.Logprobs...)
		if p.Finish != wire.Unfinished {
			a.finish, a.reason = p.Finish, stopReason(&p.Event)
		}
		if p.Prompt != nil {
			of.prompt = p.Prompt
		}
		of.cached = max(of.cached, p.Cached)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	for at, text := range texts {
		all[at/j.n].choices[at%j.n].text = string(text)
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
