package engine

import (
	"context"
	"fmt"
	"slices"
	"time"

	"manta/parallel/group"
	"manta/runtime/kv"
	"manta/runtime/sched"
)

// loop is the state of one Run; its goroutine alone touches it.
type loop struct {
	engine    *Engine
	scheduler *sched.Scheduler
	requests  map[RequestID]*request
	choices   map[*sched.Sequence]*choice
	unstarted map[kv.SequenceID]*Life // of timed choices that no step has had yet
	ids       sequenceIDs
	arrivals  uint64
	answers   collector
	outputs   []Output
	prompts   uint64
	drawn     uint64
	finished  uint64
	deadline  time.Time // the nearest of all requests; zero: none
	watchdog  watchdog
}

// request is a request with choices that are not finished.
type request struct {
	Request
	open   int       // choices not finished
	held   []int     // choices that wait for the first one's prompt
	prompt []Logprob // scores of prompt tokens 1 and on
	first  *sched.Sequence
}

// choice ties a sequence to its request.
type choice struct {
	request *request
	index   int
	sent    int   // output tokens delivered or given by the client
	life    *Life // nil: not timed
}

func (l *loop) run(ctx context.Context) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		now := time.Now()
		if err := l.watchdog.check(now); err != nil {
			return &StuckError{Steps: l.answers.steps, Answers: l.answers.nodes, cause: err}
		}
		if !l.deadline.IsZero() && !now.Before(l.deadline) {
			l.expire(now)
		}
		if err := l.fill(); err != nil {
			return err
		}
		l.publish()
		timer.Reset(l.alarm(now))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case message := <-l.engine.inbox:
			message(l)
			l.drainInbox()
		case a := <-l.engine.cfg.Group.Answers():
			if err := l.answer(a); err != nil {
				return err
			}
		case <-timer.C: // somebody's deadline
		}
	}
}

// drainInbox takes what else has come, so that requests that arrive together
// start in one step.
func (l *loop) drainInbox() {
	for {
		select {
		case message := <-l.engine.inbox:
			message(l)
		default:
			return
		}
	}
}

// fill keeps as many steps in flight as the depth allows.
func (l *loop) fill() error {
	for l.scheduler.InFlight() < l.engine.cfg.Depth {
		step, err := l.scheduler.Next()
		if err != nil || step == nil {
			return err
		}
		payload, err := sched.Encode(step)
		if err != nil {
			return fmt.Errorf("engine: encode step %d: %w", step.ID, err)
		}
		if err := l.engine.cfg.Group.Send(payload); err != nil {
			return err
		}
		now := time.Now()
		l.watchdog.sent(now, step.RowCount())
		l.started(step, now)
	}
	return nil
}

// started notes when a step begins timed choices.
func (l *loop) started(step *sched.Step, now time.Time) {
	if len(l.unstarted) == 0 {
		return
	}
	for _, start := range step.New {
		if life := l.unstarted[start.Seq]; life != nil {
			life.Started = now
			delete(l.unstarted, start.Seq)
		}
	}
}

// answer takes one rank's answer.
func (l *loop) answer(a group.Answer) error {
	if a.Err != nil {
		return a.Err
	}
	result, err := sched.DecodeResult(a.Payload)
	if err != nil {
		return err
	}
	if result, err = l.answers.add(a.Node, result); err != nil || result == nil {
		return err
	}
	l.watchdog.answered(time.Now())
	events, err := l.scheduler.Apply(result)
	if err != nil {
		return err
	}
	for i := range events {
		l.event(&events[i])
	}
	l.release()
	l.flush()
	return nil
}

// event turns what a sequence got into an output.
func (l *loop) event(e *sched.Event) {
	c := l.choices[e.Seq]
	if c == nil {
		return
	}
	score := Logprob{Token: e.Sample.Token, Logprob: e.Sample.Logprob, Rank: e.Sample.Rank, Top: e.Sample.Top}
	if e.Sample.Position >= 0 {
		if e.Sample.Position == len(c.request.prompt)+1 { // again after a preemption: known
			c.request.prompt = append(c.request.prompt, score)
		}
		return
	}
	o := Output{Tokens: []int32{e.Sample.Token}, Finish: e.Finish, Cached: e.Seq.Cached, Prompt: c.request.takePrompt(c)}
	if e.Seq.Params.Logprobs >= 0 {
		o.Logprobs = []Logprob{score}
	}
	if c.life != nil {
		c.life.Steps, c.life.Preemptions = e.Seq.Steps, e.Seq.Preemptions()
		o.Life = c.life
	}
	l.drawn++
	l.put(c, o)
	if e.Finish != sched.Unfinished {
		l.close(e.Seq)
	}
}

// takePrompt gives the prompt's scores once, with the first output of choice 0.
func (r *request) takePrompt(c *choice) []Logprob {
	if c.index != 0 || r.prompt == nil || c.sent > r.sentBefore(0) {
		return nil
	}
	return r.prompt
}

// sentBefore is how many output tokens of a choice the request came with.
func (r *request) sentBefore(choice int) int {
	if choice < len(r.Outputs) {
		return len(r.Outputs[choice])
	}
	return 0
}

func (l *loop) put(c *choice, o Output) {
	o.ID, o.Attempt, o.Choice, o.Offset = c.request.ID, c.request.Attempt, c.index, c.sent
	c.sent += len(o.Tokens)
	l.outputs = append(l.outputs, o)
}

func (l *loop) flush() {
	if len(l.outputs) > 0 {
		l.engine.cfg.Deliver(l.outputs)
		clear(l.outputs)
		l.outputs = l.outputs[:0]
	}
}

// close forgets a sequence that has ended.
func (l *loop) close(q *sched.Sequence) {
	c := l.choices[q]
	l.untie(q)
	c.request.open--
	l.finished++
	if c.request.open == 0 && len(c.request.held) == 0 {
		l.forget(c.request)
	}
}

// untie takes a sequence from its choice.
func (l *loop) untie(q *sched.Sequence) {
	delete(l.choices, q)
	delete(l.unstarted, q.ID)
}

func (l *loop) forget(r *request) {
	delete(l.requests, r.ID)
	if !r.Deadline.IsZero() && r.Deadline.Equal(l.deadline) {
		l.deadline = time.Time{}
		for _, other := range l.requests {
			l.watch(other)
		}
	}
}

// watch makes the loop wake up for a request's deadline.
func (l *loop) watch(r *request) {
	if !r.Deadline.IsZero() && (l.deadline.IsZero() || r.Deadline.Before(l.deadline)) {
		l.deadline = r.Deadline
	}
}

// alarm is the time until the nearest deadline, of a request or of a step.
func (l *loop) alarm(now time.Time) time.Duration {
	wait := time.Hour
	if !l.deadline.IsZero() {
		wait = l.deadline.Sub(now)
	}
	if step, ok := l.watchdog.deadline(); ok {
		wait = min(wait, step.Sub(now)+time.Millisecond)
	}
	return max(wait, 0)
}

// expire ends the requests whose deadline has passed.
func (l *loop) expire(now time.Time) {
	for _, r := range l.requests {
		if !r.Deadline.IsZero() && !now.Before(r.Deadline) {
			l.end(r, ErrDeadline)
		}
	}
	l.flush()
}

// fail ends every request and every message that came too late.
func (l *loop) fail(cause error) {
	l.drainInbox()
	for _, r := range l.requests {
		l.end(r, fmt.Errorf("%w: %w", ErrLost, cause))
	}
	l.flush()
	l.publish()
}

// end closes a request with an error.
func (l *loop) end(r *request, err error) {
	for q, c := range l.choices {
		if c.request == r {
			l.scheduler.Finish(q)
			l.untie(q)
		}
	}
	l.outputs = append(l.outputs, Output{ID: r.ID, Attempt: r.Attempt, Err: err})
	r.open, r.held = 0, nil
	l.forget(r)
}

// submit starts a request; a newer attempt takes the place of an older.
func (l *loop) submit(r Request) {
	if old, ok := l.requests[r.ID]; ok {
		if old.Attempt >= r.Attempt {
			l.outputs = append(l.outputs, Output{ID: r.ID, Attempt: r.Attempt, Err: ErrStale})
			l.flush()
			return
		}
		l.drop(old)
	}
	req := &request{Request: r}
	l.requests[r.ID] = req
	l.prompts += uint64(len(r.Prompt))
	l.watch(req)
	for c := range r.Choices {
		req.held = append(req.held, c)
	}
	l.start(req, 0)
	l.release()
	l.flush()
}

// start makes a choice's sequence.
func (l *loop) start(r *request, index int) {
	r.held = slices.DeleteFunc(r.held, func(c int) bool { return c == index })
	tokens := slices.Clone(r.Prompt)
	if index < len(r.Outputs) {
		tokens = append(tokens, r.Outputs[index]...)
	}
	l.arrivals++
	q := &sched.Sequence{
		ID: l.ids.next(), Choice: index, Tokens: tokens, Prompt: len(r.Prompt),
		Params: r.Params, Priority: r.Priority, Arrival: l.arrivals,
	}
	if index > 0 {
		q.Params.PromptLogprobs = -1 // choice 0 brings them
	}
	c := &choice{request: r, index: index, sent: r.sentBefore(index)}
	if index == 0 {
		r.first = q
	}
	if finish := l.finishedBefore(q); finish != sched.Unfinished {
		l.put(c, Output{Finish: finish})
		if r.open == 0 && len(r.held) == 0 {
			l.forget(r)
		}
		return
	}
	if err := l.scheduler.Add(q); err != nil {
		l.end(r, fmt.Errorf("%w: %w", ErrInvalid, err))
		return
	}
	r.open++
	l.choices[q] = c
	if r.Timed {
		c.life = &Life{}
		l.unstarted[q.ID] = c.life
	}
}

// finishedBefore tells whether the outputs that a request came with end a choice.
func (l *loop) finishedBefore(q *sched.Sequence) FinishReason {
	n := q.Outputs()
	switch {
	case n == 0:
		return sched.Unfinished
	case q.Params.Ends(q.Tokens[len(q.Tokens)-1], n):
		return sched.FinishStop
	case n >= q.Params.MaxTokens || len(q.Tokens) >= l.engine.cfg.Limits.MaxLen:
		return sched.FinishLength
	}
	return sched.Unfinished
}

// release starts the further choices of requests whose prompt is computed, so
// that they share its blocks.
func (l *loop) release() {
	for _, r := range l.requests {
		if len(r.held) == 0 {
			continue
		}
		_, alive := l.choices[r.first]
		if alive && r.first.Computed < len(r.Prompt) {
			continue
		}
		for _, index := range slices.Clone(r.held) {
			if l.requests[r.ID] == r { // until one fails the whole request
				l.start(r, index)
			}
		}
	}
}

func (l *loop) cancel(id RequestID, attempt uint32, choices []int) {
	r, ok := l.requests[id]
	if !ok || attempt < r.Attempt {
		return
	}
	if len(choices) == 0 {
		l.drop(r)
		return
	}
	r.held = slices.DeleteFunc(r.held, func(c int) bool { return slices.Contains(choices, c) })
	for q, c := range l.choices {
		if c.request == r && slices.Contains(choices, c.index) {
			l.scheduler.Finish(q)
			l.close(q)
		}
	}
}

// drop forgets a request without a word to anyone.
func (l *loop) drop(r *request) {
	n := len(l.outputs)
	l.end(r, ErrStale)
	l.outputs = l.outputs[:n]
}

// publish makes the counts visible.
func (l *loop) publish() {
	e := l.engine
	pool := l.scheduler.Ledger().Pool(0)
	taken, used := l.scheduler.Slots()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.stats = Stats{
		Stats:  l.scheduler.Stats(),
		Blocks: pool.Size(), BlocksFree: pool.Free(), BlocksCached: pool.Idle(),
		SlotsTaken: taken, SlotsUsed: used,
		PromptTokens: l.prompts, OutputTokens: l.drawn, Finished: l.finished,
	}
}
