package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"manta/head/dispatch"
	"manta/node/wire"
)

// sse writes server-sent events to one client. Every event's id names the
// request, its seed and what the client has of each choice, so that the client
// can go on at any head. Once its batch runs it belongs to whoever has the batch's turn.
type sse struct {
	server  *Server
	w       http.ResponseWriter
	control *http.ResponseController
	direct  *direct // nil: everything goes through w
	id      dispatch.EventID
	idHead  []byte // of id, but for the choices
	opened  bool
	buffer  bytes.Buffer  // events that wait; before them room for the head of a chunk
	encoder *json.Encoder // writes into buffer

	job   *job
	form  chunker
	tally *tally
	batch *batch
	begun bool
	plain []around // by choice

	heartbeat *time.Timer
	spoke     time.Time // when the newest event was sent
	armed     time.Time // what heartbeat counts from
}

// around is what stands before and behind an event's text, where nothing else in its
// chunk changes.
type around struct{ before, behind []byte }

func (s *Server) newSSE(w http.ResponseWriter, r *http.Request, j *job, form chunker) *sse {
	e := &sse{
		server: s, w: w, control: http.NewResponseController(w), direct: directly(r), job: j, form: form, tally: newTally(j),
		begun: j.resume != nil, plain: make([]around, j.n*len(j.prompts)),
	}
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
	e.idHead = e.id.AppendHead(nil)
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

// head begins an event up to its data.
func (e *sse) head() {
	if e.buffer.Len() == 0 {
		e.buffer.WriteString(chunkRoom)
	}
	e.buffer.WriteString("id: ")
	e.buffer.Write(e.idHead)
	e.buffer.Write(e.id.AppendChoices(e.buffer.AvailableBuffer()))
	e.buffer.WriteString("\ndata: ")
}

// event buffers one event.
func (e *sse) event(value any) error {
	e.head()
	if err := e.encoder.Encode(value); err != nil { // ends the line
		return err
	}
	e.buffer.WriteByte('\n')
	return nil
}

// text buffers an event whose chunk is plain.
func (e *sse) text(choice int, text string) error {
	a := &e.plain[choice]
	if a.before == nil {
		if err := e.learn(choice, a); err != nil {
			return err
		}
	}
	e.head()
	e.buffer.Write(a.before)
	if asIs(text) {
		e.buffer.WriteByte('"')
		e.buffer.WriteString(text)
		e.buffer.WriteByte('"')
	} else {
		if err := e.encoder.Encode(text); err != nil {
			return err
		}
		e.buffer.Truncate(e.buffer.Len() - 1) // the end of the line
	}
	e.buffer.Write(a.behind)
	return nil
}

// learn takes from the encoder what stands around a choice's text.
func (e *sse) learn(choice int, a *around) error {
	var sample bytes.Buffer
	encoder := json.NewEncoder(&sample)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(e.form.chunk(choice, &dispatch.Event{Text: "\x00"}, nil)); err != nil {
		return err
	}
	before, behind, found := bytes.Cut(sample.Bytes(), []byte(`"\u0000"`))
	if !found {
		return errors.New("a plain chunk holds no text")
	}
	a.before, a.behind = before, append(behind, '\n')
	return nil
}

// asIs reports whether a text is its own JSON.
func asIs(text string) bool {
	ascii := true
	for i := range len(text) {
		c := text[i]
		if c < ' ' || c == '"' || c == '\\' {
			return false
		}
		ascii = ascii && c < utf8.RuneSelf
	}
	// encoding/json escapes the two line ends of Unicode.
	return ascii || utf8.ValidString(text) && !strings.Contains(text, "\u2028") && !strings.Contains(text, "\u2029")
}

// flush sends what is buffered. When it may not wait it sends what the connection
// takes, and reports whether that was all. An error means that the client is gone, or
// too slow.
func (e *sse) flush(mayWait bool) (done bool, err error) {
	if e.opened && e.direct != nil {
		done, err = e.direct.send(&e.buffer)
		if done || err != nil || !mayWait {
			return done, notTaken(err)
		}
		e.server.extend(e.w)
		return true, notTaken(e.direct.finish(&e.buffer))
	}
	if e.buffer.Len() == 0 || !mayWait {
		return e.buffer.Len() == 0, nil
	}
	e.open()
	e.server.extend(e.w)
	_, err = e.w.Write(e.buffer.Bytes()[len(chunkRoom):])
	e.buffer.Reset()
	if err == nil {
		err = e.control.Flush()
	}
	return true, notTaken(err)
}

func notTaken(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", errNotTaken, err)
}

// send waits until all of a text is sent, with what is buffered before it.
func (e *sse) send(text string) error {
	if e.buffer.Len() == 0 {
		e.buffer.WriteString(chunkRoom)
	}
	e.buffer.WriteString(text)
	_, err := e.flush(true)
	return err
}

// errNotTaken says that a client is gone, or too slow for WriteTime.
var errNotTaken = errors.New("the client does not take the answer")

// chunker turns events into a form of chunk. Its methods return nil for nothing.
type chunker interface {
	// begin gives the chunks that come before any of a choice.
	begin(choice int) any
	// chunk gives the chunk of an event; choice counts over all prompts.
	chunk(choice int, event *dispatch.Event, usage *usage) any
	// plain reports whether an event's chunk differs from others of its choice in
	// nothing but its text.
	plain(choice int, event *dispatch.Event) bool
	// last gives the chunk with the usage of the whole.
	last(usage *usage) any
}

// stream answers a job with events. What fails before the first is its error; later
// the client hears of it by an event.
func (s *Server) stream(w http.ResponseWriter, r *http.Request, j *job, form chunker) error {
	e := s.newSSE(w, r, j, form)
	err := e.relay(r.Context())
	if err == nil || !e.opened {
		return err
	}
	known := describe(err)
	if known.Status == clientGone {
		s.log.Debug("client gone", "request", j.id, "error", err)
		return nil
	}
	s.log.Warn("stream failed", "request", j.id, "status", known.Status, "error", err)
	if e.event(known.body()) == nil {
		_ = e.send("data: [DONE]\n\n") // the client may be gone; there is no one left to tell
	}
	return nil
}

// relay carries the job's events to the client until the end of both. It sleeps
// while they pass, and comments on a silent stream, so that nothing gives up on it.
func (e *sse) relay(ctx context.Context) error {
	if slices.ContainsFunc(e.id.Choices, func(c dispatch.Seen) bool { return !c.Ended }) {
		b, err := e.server.submit(e.job)
		if err != nil {
			return err
		}
		e.batch, e.heartbeat = b, time.NewTimer(e.server.limits.Heartbeat)
		defer e.heartbeat.Stop()
		e.armed = time.Now()
		e.server.run(ctx, b, e.job, func(prompt int) dispatch.Sink { return eventSink{e, prompt} })
		err = e.attend()
		b.close()
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
	}
	if e.job.usage {
		if err := e.event(e.form.last(e.tally.whole())); err != nil {
			return err
		}
	}
	return e.send("data: [DONE]\n\n")
}

// attend waits for the end of the batch.
func (e *sse) attend() error {
	for {
		select {
		case <-e.batch.ended:
			return e.batch.wait()
		case <-e.heartbeat.C:
			e.batch.turn.Lock()
			err := e.beat(time.Now())
			e.batch.turn.Unlock()
			if err != nil {
				return err
			}
		}
	}
}

// beat comments if nothing was sent since the heartbeat before.
func (e *sse) beat(now time.Time) error {
	every := e.server.limits.Heartbeat
	if left := every - now.Sub(e.spoke); left > 0 {
		e.arm(e.spoke, left)
		return nil
	}
	e.arm(now, every)
	return e.send(": waiting\n\n")
}

func (e *sse) arm(from time.Time, in time.Duration) {
	e.armed = from
	e.heartbeat.Reset(in)
}

// eventSink is the sink of one of the prompts.
type eventSink struct {
	*sse
	prompt int
}

// Take implements dispatch.Sink. What is ready goes out together.
func (s eventSink) Take(events []dispatch.Event, mayWait bool) (bool, error) {
	e := s.sse
	if attempt := e.batch.attempt(); attempt != e.id.Attempt {
		e.id.Attempt = attempt
		e.idHead = e.id.AppendHead(e.idHead[:0])
	}
	if !e.begun {
		e.begun = true
		if err := e.begin(); err != nil {
			return false, err
		}
	}
	for i := range events {
		if err := e.piece(s.prompt, &events[i]); err != nil {
			return false, err
		}
		e.spoke = events[i].At
	}
	// A heartbeat that is put off now and then looks at spoke when it comes.
	if every := e.server.limits.Heartbeat; e.spoke.Sub(e.armed) > every/2 {
		e.arm(e.spoke, every)
	}
	return e.flush(mayWait)
}

func (e *sse) begin() error {
	for choice := range e.id.Choices {
		if chunk := e.form.begin(choice); chunk != nil {
			if err := e.event(chunk); err != nil {
				return err
			}
		}
	}
	return nil
}

// piece buffers the chunk of one event, if it has one.
func (e *sse) piece(prompt int, event *dispatch.Event) error {
	j := e.job
	choice := prompt*j.n + event.Choice
	e.tally.count(prompt, choice, event)
	seen := dispatch.Seen{Tokens: event.Offset, Ended: event.Finish != wire.Unfinished}
	if !j.continuous && e.form.plain(choice, event) {
		e.id.Choices[choice] = seen
		return e.text(choice, event.Text)
	}
	chunk := e.form.chunk(choice, event, e.tally.partial(prompt, choice, j.continuous))
	if chunk == nil {
		return nil
	}
	e.id.Choices[choice] = seen
	return e.event(chunk)
}

var _ dispatch.Sink = eventSink{}

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
