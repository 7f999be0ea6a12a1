package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"manta/head/dispatch"
	"manta/node/wire"
)

// sse writes server-sent events to one client. Every event's id names the
// request, its seed and what the client has of each choice, so that the client
// can go on at any head.
type sse struct {
	server  *Server
	w       http.ResponseWriter
	control *http.ResponseController
	id      dispatch.EventID
	opened  bool
	buffer  bytes.Buffer
	encoder *json.Encoder // writes into buffer
}

func (s *Server) newSSE(w http.ResponseWriter, j *job) *sse {
	e := &sse{server: s, w: w, control: http.NewResponseController(w)}
	e.encoder = json.NewEncoder(&e.buffer)
	e.encoder.SetEscapeHTML(false)
	e.id = dispatch.EventID{
		Request: j.id, Seed: j.params.Seed, Check: dispatch.Check(j.id, j.params.Seed, j.owner, j.body),
		Choices: make([]dispatch.Seen, j.n*len(j.prompts)),
	}
	if j.resume != nil {
		e.id.Attempt = j.resume.Attempt
		copy(e.id.Choices, j.resume.Choices)
	}
	return e
}

// open sends the header. After that an error can only be an event.
func (e *sse) open() {
	if e.opened {
		return
	}
	e.opened = true
	header := e.w.Header()
	header.Set("Content-Type", "text/event-stream; charset=utf-8")
	header.Set("Cache-Control", "no-cache")
	header.Set("X-Accel-Buffering", "no")
	e.server.extend(e.w)
	e.w.WriteHeader(http.StatusOK)
}

// event buffers one event.
func (e *sse) event(value any) error {
	e.buffer.WriteString("id: ")
	e.buffer.Write(e.id.Append(e.buffer.AvailableBuffer()))
	e.buffer.WriteString("\ndata: ")
	if err := e.encoder.Encode(value); err != nil { // ends the line
		return err
	}
	e.buffer.WriteByte('\n')
	return nil
}

// flush sends what is buffered. An error means that the client is gone, or too slow.
func (e *sse) flush() error {
	if e.buffer.Len() == 0 {
		return nil
	}
	e.open()
	e.server.extend(e.w)
	_, err := e.w.Write(e.buffer.Bytes())
	e.buffer.Reset()
	if err == nil {
		err = e.control.Flush()
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errNotTaken, err)
	}
	return nil
}

// errNotTaken says that a client is gone, or too slow for WriteTime.
var errNotTaken = errors.New("the client does not take the answer")

// comment keeps proxies and clients from giving up on a silent stream.
func (e *sse) comment() error {
	e.buffer.WriteString(": waiting\n\n")
	return e.flush()
}

// chunker turns events into a form of chunk. Its methods return nil for nothing.
type chunker interface {
	// begin gives the chunks that come before any of a choice.
	begin(choice int) any
	// chunk gives the chunk of an event; choice counts over all prompts.
	chunk(choice int, event *dispatch.Event, usage *usage) any
	// last gives the chunk with the usage of the whole.
	last(usage *usage) any
}

// stream answers a job with events.
func (s *Server) stream(w http.ResponseWriter, r *http.Request, j *job, form chunker) {
	e := s.newSSE(w, j)
	if err := s.relay(r.Context(), e, j, form); err != nil {
		if !e.opened {
			s.fail(w, r, err)
			return
		}
		known := describe(err)
		if known.Status == clientGone {
			s.log.Debug("client gone", "request", j.id, "error", err)
			return
		}
		s.log.Warn("stream failed", "request", j.id, "status", known.Status, "error", err)
		if e.event(known.body()) == nil {
			e.buffer.WriteString("data: [DONE]\n\n")
			_ = e.flush() // the client may be gone; there is no one left to tell
		}
	}
}

// relay carries events from the batch to the client until the end of both.
func (s *Server) relay(ctx context.Context, e *sse, j *job, form chunker) error {
	tally := newTally(j)
	if !slices.ContainsFunc(e.id.Choices, func(c dispatch.Seen) bool { return !c.Ended }) {
		return s.finishStream(e, j, form, tally)
	}
	b, err := s.start(ctx, j)
	if err != nil {
		return err
	}
	defer b.close()
	heartbeat := time.NewTicker(s.limits.Heartbeat)
	defer heartbeat.Stop()
	begun := j.resume != nil
	for {
		select {
		case p, more := <-b.pieces:
			if !more {
				if err := ctx.Err(); err != nil {
					return err
				}
				return s.finishStream(e, j, form, tally)
			}
			if p.err != nil {
				return errors.Join(e.flush(), p.err)
			}
			e.id.Attempt = b.attempt()
			if !begun {
				begun = true
				if err := e.begin(form); err != nil {
					return err
				}
			}
			if err := e.piece(j, form, tally, &p); err != nil {
				return err
			}
			if len(b.pieces) > 0 {
				continue // what is ready goes out together
			}
			if err := e.flush(); err != nil {
				return err
			}
			heartbeat.Reset(s.limits.Heartbeat)
		case <-heartbeat.C:
			if err := e.comment(); err != nil {
				return err
			}
		}
	}
}

func (e *sse) begin(form chunker) error {
	for choice := range e.id.Choices {
		if chunk := form.begin(choice); chunk != nil {
			if err := e.event(chunk); err != nil {
				return err
			}
		}
	}
	return nil
}

// piece buffers the chunk of one event, if it has one.
func (e *sse) piece(j *job, form chunker, tally *tally, p *piece) error {
	choice := p.prompt*j.n + p.Choice
	tally.count(p.prompt, choice, &p.Event)
	chunk := form.chunk(choice, &p.Event, tally.partial(p.prompt, choice, j.continuous))
	if chunk == nil {
		return nil
	}
	e.id.Choices[choice] = dispatch.Seen{Tokens: p.Offset, Ended: p.Finish != wire.Unfinished}
	return e.event(chunk)
}

// finishStream sends usage, if wanted, and the end.
func (s *Server) finishStream(e *sse, j *job, form chunker, tally *tally) error {
	if j.usage {
		if err := e.event(form.last(tally.whole())); err != nil {
			return err
		}
	}
	e.buffer.WriteString("data: [DONE]\n\n")
	return e.flush()
}

// tally counts a stream's tokens for its usage.
type tally struct {
	job     *job
	outputs []int // by choice
	cached  []int // by prompt
}

func newTally(j *job) *tally {
	t := &tally{job: j, outputs: make([]int, j.n*len(j.prompts)), cached: make([]int, len(j.prompts))}
	if j.resume != nil {
		for i, seen := range j.resume.Choices {
			t.outputs[i] = seen.Tokens
		}
	}
	return t
}

func (t *tally) count(prompt, choice int, e *dispatch.Event) {
	t.outputs[choice] = e.Offset
	t.cached[prompt] = max(t.cached[prompt], e.Cached)
}

// partial is the usage of one choice so far, if wanted with each chunk.
func (t *tally) partial(prompt, choice int, wanted bool) *usage {
	if !wanted {
		return nil
	}
	return newUsage(len(t.job.prompts[prompt].tokens), t.outputs[choice], t.cached[prompt])
}

func (t *tally) whole() *usage {
	prompt, completion, cached := 0, 0, 0
	for i, p := range t.job.prompts {
		prompt += len(p.tokens)
		cached += t.cached[i]
	}
	for _, n := range t.outputs {
		completion += n
	}
	return newUsage(prompt, completion, cached)
}
