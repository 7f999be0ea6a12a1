package dispatch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"manta/internal/trace"
	"manta/node/wire"
	"manta/runtime/kv"
)

// errFault marks what a driver should never have sent. The stream asks again,
// with a new attempt, and goes on from the tokens that it has.
var errFault = errors.New("faulty frames")

// errLost marks that the View no longer has the replica at the request's epoch.
var errLost = errors.New("driver lost")

// errUnsure marks that the driver refused or could not be reached, which the View
// does not explain yet.
var errUnsure = errors.New("driver refused or out of reach")

// errSilent marks that nothing was heard of a request for long.
var errSilent = errors.New("driver silent")

// Stream is a request in progress. One goroutine runs it, then closes it. What the
// comment below calls the reader's own belongs to whoever has the turn: that
// goroutine, or the one that brings a frame.
type Stream struct {
	dispatcher *Dispatcher
	request    Request
	arrival    uint64 // order among the requests of this head
	place      int    // index in the queue; guarded by Dispatcher.mu
	charged    int    // choices counted against target's credit; guarded by Dispatcher.mu
	repaid     []int  // choices that no longer are; guarded by Dispatcher.mu
	pending    int    // prompt tokens counted as target's; guarded by Dispatcher.mu
	// cost is what its flow was charged, in tokens; 0: nothing yet. Guarded by Dispatcher.mu.
	cost  float64
	chain []kv.Hash // of the prompt's full blocks; immutable

	turn *sync.Mutex // before Dispatcher.mu; who holds mailbox.mu only tries it

	// The reader's own.
	sink     Sink // nil: nobody runs the stream
	choices  []*choice
	ready    []Event
	unsent   bool     // sink has more to do and may have to wait
	endings  []ending // choices that have ended since the last step
	fault    error    // of the newest frame
	refusal  error    // of sink
	running  int      // choices that have not finished
	resends  int
	refusals int       // since it last got a token
	heard    time.Time // when the newest frame came, or the request was sent after it
	asks     int       // since then
	ordeal   ordeal
	given    int // tokens in events
	lastSent sending
	released bool
	failed   error
	times    times
	cached   int
	deadline <-chan time.Time // of Run's goroutine alone; nil: none
	pause    <-chan time.Time // not nil: neither queued nor running until it fires

	mailbox mailbox
}

// times are a request's moments, for the meter.
type times struct {
	accepted, sent, first time.Time
	last                  []time.Time // per choice
}

// untilFirst is the time to the first token, 0 without one.
func (t *times) untilFirst() time.Duration {
	if t.first.IsZero() {
		return 0
	}
	return t.first.Sub(t.accepted)
}

// target is where a request runs.
type target struct {
	replica string
	node    string
	epoch   uint64
}

// sending is the newest sending of a request.
type sending struct {
	to    target
	alone bool
	taken bool // its driver has sent a frame
}

// ID gives the request's id.
func (s *Stream) ID() wire.RequestID { return s.request.ID }

// Attempt gives the number of the newest sending.
func (s *Stream) Attempt() uint32 {
	s.mailbox.mu.Lock()
	defer s.mailbox.mu.Unlock()
	return s.mailbox.attempt
}

// Given is how many tokens went to the sink, once Run has returned.
func (s *Stream) Given() int { return s.given }

// Seed gives the seed that the tokens are drawn with.
func (s *Stream) Seed() uint64 { return s.request.Params.Seed }

// late ends the request at its deadline.
func (s *Stream) late() {
	if s.times.sent.IsZero() {
		s.fail(fmt.Errorf("request %s: %w", s.request.ID, ErrUnavailable))
		return
	}
	s.fail(fmt.Errorf("request %s: %w", s.request.ID, ErrDeadline))
}

// step does what the mailbox asks for, and reports whether there was anything.
func (s *Stream) step(ctx context.Context) bool {
	box := &s.mailbox
	box.mu.Lock()
	frames, overflow, granted, lost := box.frames, box.overflow, box.granted, box.lost
	deleted, superseded := box.deleted, box.superseded
	box.frames, box.weight, box.granted, box.lost = nil, 0, false, false
	box.mu.Unlock()
	fault, settled := s.fault, len(s.endings) > 0
	s.fault = nil
	s.settle()

	switch {
	case overflow:
		s.fail(fmt.Errorf("request %s: %w", s.request.ID, ErrSlowReader))
		return true
	case superseded:
		s.fail(fmt.Errorf("request %s: %w", s.request.ID, ErrSuperseded))
		return true
	case deleted:
		s.fail(fmt.Errorf("deployment %s was deleted: %w", s.request.Deployment, ErrUnknown))
		return true
	case granted && !lost:
		if err := s.send(ctx); err != nil {
			if ctx.Err() != nil {
				return false // the reader gives up; Close takes the request back
			}
			s.recover(fmt.Errorf("%w: %w", errUnsure, err))
			return true
		}
	}
	if fault != nil {
		s.recover(fault)
		return true
	}
	for i := range frames {
		err := s.collect(&frames[i])
		s.settle()
		if err != nil {
			s.recover(err)
			return true
		}
		if s.failed != nil {
			return true
		}
	}
	if lost && s.running > 0 {
		s.recover(errLost)
	}
	return granted || lost || settled || len(frames) > 0
}

// send gives the request to the replica that it was granted, with the tokens
// that its choices already have, and withdraws the choices that have ended.
func (s *Stream) send(ctx context.Context) error {
	box := &s.mailbox
	box.mu.Lock()
	if box.target == nil { // superseded between step and here
		box.mu.Unlock()
		return nil
	}
	box.attempt++
	attempt, to := box.attempt, *box.target
	box.mu.Unlock()

	s.ordeal.settle(s.dispatcher.views.View(), to)
	if s.ordeal.guilty() {
		s.fail(fmt.Errorf("request %s: %w", s.request.ID, ErrPoison))
		return nil
	}
	s.lastSent = sending{to: to, alone: s.ordeal.suspect()}
	message := &wire.Request{
		Version: wire.Version, ID: s.request.ID, Attempt: attempt,
		Replica: to.replica, Epoch: to.epoch, Head: s.dispatcher.name,
		Prompt: s.request.Prompt, Choices: s.request.Choices, Params: s.request.Params,
		Priority: s.request.Priority, Owner: s.request.Owner, Body: s.request.Body, Alone: s.lastSent.alone,
		StreamInterval: s.dispatcher.interval,
	}
	at := s.request.Trace.Attempt(attempt, to.replica, to.node, to.epoch)
	message.TraceParent, message.TraceState = at.Parent, at.State
	if !s.request.Deadline.IsZero() {
		message.DeadlineMS = s.request.Deadline.UnixMilli()
	}
	var ended []int
	for _, c := range s.choices {
		if c.finished {
			ended = append(ended, c.index)
		}
		if len(c.tokens) > 0 && message.Outputs == nil {
			message.Outputs = make([][]int32, len(s.choices))
		}
	}
	for i := range message.Outputs {
		message.Outputs[i] = s.choices[i].tokens
	}
	if s.times.sent.IsZero() {
		s.times.sent = time.Now()
		s.deadline = nil
		if !s.request.Deadline.IsZero() {
			s.deadline = time.After(time.Until(s.request.Deadline))
		}
	}
	if err := s.dispatcher.link.Send(ctx, to.node, message); err != nil {
		return fmt.Errorf("node %s: %w", to.node, err)
	}
	s.request.Trace.Sent()
	s.heard = time.Now()
	if len(ended) > 0 {
		s.dispatcher.cancel(s.request.ID, attempt, to, ended)
	}
	return nil
}

// askAfter is how long a driver may be silent before the request is sent to it again.
// It doubles with each time, up to eight times as long: a prompt may be long.
const askAfter = 5 * time.Second

// ask sends the request again, to where it is, if nothing was heard of it for long. A
// driver that has it goes on, after the tokens that are here. What is lost on the way
// shows by a gap or by a broken connection as a rule; the last frame of an answer is
// followed by none, and a request that was lost by none at all.
func (s *Stream) ask(ctx context.Context) {
	if !s.mailbox.sent() || time.Since(s.heard) < askAfter<<min(s.asks, 3) {
		return
	}
	d, before := s.dispatcher, s.lastSent
	s.asks++
	s.request.Trace.Lost(errSilent, s.outputs())
	d.meter.Fault(s.request.Deployment, "silence")
	d.log.Warn("request is sent again", "request", s.request.ID, "node", before.to.node, "silent", time.Since(s.heard), "tokens", s.outputs())
	err := s.send(ctx)
	s.lastSent.taken = s.lastSent.taken || before.taken && s.lastSent.to == before.to
	if err != nil && ctx.Err() == nil {
		s.recover(fmt.Errorf("%w: %w", errUnsure, err))
	}
}

// collect takes one frame. An error is a fault of the driver or the link, and
// mends by asking again; what the client must hear goes to fail.
func (s *Stream) collect(frame *wire.Frame) error {
	if frame.Err != nil {
		return s.refused(frame.Err)
	}
	s.lastSent.taken = true
	s.heard, s.asks = time.Now(), 0
	if frame.Choice < 0 || frame.Choice >= len(s.choices) {
		return fmt.Errorf("%w: choice %d of %d", errFault, frame.Choice, len(s.choices))
	}
	c := s.choices[frame.Choice]
	if c.finished {
		return nil
	}
	before := len(c.tokens)
	event, fresh, err := c.accept(frame)
	if err != nil {
		return err
	}
	s.measure(c, len(c.tokens)-before, frame)
	if fresh {
		event.Prompt, event.Cached, event.At = frame.Prompt, s.cached, s.times.last[c.index]
		s.ready = append(s.ready, event)
		s.given += len(event.Tokens)
	} else if frame.Prompt != nil {
		s.ready = append(s.ready, Event{Choice: c.index, Offset: len(c.tokens), Prompt: frame.Prompt, Cached: s.cached})
	}
	if c.finished {
		s.endings = append(s.endings, ending{c.index, frame.Finish == wire.Unfinished})
	}
	return nil
}

// end releases a choice that has finished. The driver is told when it was the
// head that ended it.
func (s *Stream) end(e ending) {
	s.running--
	to, attempt := s.dispatcher.ended(s, e.choice)
	if !e.tell || to == nil {
		return
	}
	var which []int // nil: all
	if s.running > 0 {
		which = []int{e.choice}
	}
	s.dispatcher.cancel(s.request.ID, attempt, *to, which)
}

// refused handles a driver's error.
func (s *Stream) refused(e *wire.Error) error {
	switch e.Code {
	case wire.ErrInvalid:
		s.fail(fmt.Errorf("%w: %s", ErrInvalid, e.Message))
	case wire.ErrDeadline:
		s.fail(fmt.Errorf("request %s: %w", s.request.ID, ErrDeadline))
	case wire.ErrLost, wire.ErrStale, wire.ErrBusy:
		return fmt.Errorf("%w: %w", errUnsure, e)
	default:
		s.fail(fmt.Errorf("request %s: %w: %s", s.request.ID, ErrInternal, e.Message))
	}
	return nil
}

// recover takes the request off its replica, to go on elsewhere or there again.
// It queues at its old place: at once when the View says that the replica is
// gone, after a pause when asking again at once may only give the same answer.
// Deaths of replicas are not held against it, unless it is what kills them.
func (s *Stream) recover(cause error) {
	d := s.dispatcher
	to, attempt := d.detach(s)
	if to != nil && isDeath(cause) {
		s.ordeal.lost(*to, s.lastSent.alone && s.lastSent.taken, s.outputs())
	}
	if errors.Is(cause, errFault) {
		d.meter.Fault(s.request.Deployment, "frame")
		if to != nil {
			d.cancel(s.request.ID, attempt, *to, nil)
		}
	}
	s.resends++
	s.request.Trace.Lost(cause, s.outputs())
	s.request.Trace.Queue()
	level := slog.LevelWarn
	if s.refusals > 0 && errors.Is(cause, errUnsure) && !isDeath(cause) {
		level = slog.LevelInfo // it asks again and again until its replica is there
	}
	d.log.Log(context.Background(), level, "request resumes", "request", s.request.ID, "resends", s.resends, "cause", cause)
	if errors.Is(cause, errLost) {
		d.requeue(s)
		return
	}
	s.refusals++
	if s.refusals > maxRefusals {
		s.fail(fmt.Errorf("request %s: %w: %w", s.request.ID, ErrReplica, cause))
		return
	}
	s.pause = time.After(firstPause << min(s.refusals-1, 8))
}

// isDeath reports whether a request that was lost so may have lost its epoch.
func isDeath(cause error) bool {
	var told *wire.Error
	return errors.Is(cause, errLost) || errors.As(cause, &told) && told.Code == wire.ErrLost
}

// outputs counts the tokens of all choices.
func (s *Stream) outputs() int {
	n := 0
	for _, c := range s.choices {
		n += len(c.tokens)
	}
	return n
}

// firstPause doubles with each refusal, up to 256 times.
const firstPause = 5 * time.Millisecond

// fail ends the request with an error that its client sees.
func (s *Stream) fail(err error) {
	s.failed = err
	s.release(err)
}

// Close withdraws what is unfinished. It is safe after the end and more than once.
func (s *Stream) Close() {
	if s.failed == nil && s.running > 0 {
		s.failed = context.Canceled
	}
	s.release(s.failed)
}

// release takes the request out of the dispatcher, once.
func (s *Stream) release(err error) {
	if s.released {
		return
	}
	s.released = true
	to, attempt := s.dispatcher.forget(s, s.spent())
	if to != nil && s.running > 0 {
		s.dispatcher.cancel(s.request.ID, attempt, *to, nil)
	}
	summary := s.summary(err)
	s.dispatcher.meter.Ended(s.request.Deployment, summary)
	s.request.Trace.End(trace.End{
		Err: err, Tokens: s.outputs(), Queue: summary.Queue, FirstToken: s.times.untilFirst(),
		Prefill: summary.Prefill, Decode: summary.Decode, Total: summary.Total,
	})
}

// spent is how many tokens the request took to compute.
func (s *Stream) spent() int {
	if s.times.first.IsZero() {
		return 0
	}
	tokens := len(s.request.Prompt) - s.cached
	for _, c := range s.choices {
		tokens += len(c.tokens)
	}
	return tokens
}

func (s *Stream) summary(err error) Summary {
	now := time.Now()
	sum := Summary{
		Err: err, Prompt: len(s.request.Prompt), Cached: s.cached,
		MaxTokens: s.request.Params.MaxTokens, Total: now.Sub(s.times.accepted),
	}
	for _, c := range s.choices {
		sum.Outputs = append(sum.Outputs, len(c.tokens))
		if c.finished {
			sum.Finishes = append(sum.Finishes, c.finish)
		}
	}
	if !s.times.sent.IsZero() {
		sum.Queue = s.times.sent.Sub(s.times.accepted)
	}
	if !s.times.first.IsZero() {
		sum.Prefill, sum.Decode = s.times.first.Sub(s.times.sent), now.Sub(s.times.first)
	}
	return sum
}
