// Package engine is the step loop of a replica's driver: the only owner of its
// sequences. It turns requests into sequences, keeps steps in flight on a group
// of ranks, and gives every choice its tokens.
//
// It sees token ids alone; text lives on the head. One goroutine, Run, owns all
// state; Submit and Cancel put messages into its bounded inbox.
package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"manta/kernels"
	"manta/parallel/group"
	"manta/runtime/kv"
	"manta/runtime/sample"
	"manta/runtime/sched"
)

// Errors of a request.
var (
	// ErrBusy: the inbox is full; the caller has sent beyond its credit.
	ErrBusy = errors.New("engine: too many requests")
	// ErrStale: an attempt of this request that is as new is already here.
	ErrStale = errors.New("engine: stale attempt")
	// ErrInvalid: the request can't run on this replica.
	ErrInvalid = errors.New("engine: invalid request")
	// ErrDeadline: the request's deadline passed.
	ErrDeadline = errors.New("engine: deadline passed")
	// ErrLost: the epoch ended; the request may be sent elsewhere.
	ErrLost = errors.New("engine: replica lost")
)

// inboxSize bounds the requests and cancellations that wait for the loop.
const inboxSize = 8192

// A RequestID names a request for its whole life.
type RequestID [16]byte

// A Request asks for the tokens of every choice.
type Request struct {
	ID       RequestID
	Attempt  uint32
	Prompt   []int32
	Choices  int
	Params   sample.Params
	Priority int
	Deadline time.Time // zero: none
	// Outputs[c] are tokens that choice c has already; it goes on after them.
	Outputs [][]int32
	Timed   bool // its outputs have a Life
}

// A FinishReason says why a choice ended.
type FinishReason = sched.FinishReason

// Logprob is a token's log probability, its rank and the best alternatives.
type Logprob struct {
	Token   int32
	Logprob float32
	Rank    int32
	Top     []kernels.TokenLogprob
}

// An Output is what a step gave to one choice.
type Output struct {
	ID       RequestID
	Attempt  uint32
	Choice   int
	Offset   int // output tokens of the choice before Tokens
	Tokens   []int32
	Logprobs []Logprob // one a token, when asked for
	Prompt   []Logprob // with the first output of choice 0, when asked for: of prompt token 1 and on
	Cached   int       // prompt tokens found in the prefix index
	Finish   FinishReason
	Err      error // ends the whole request
	Life     *Life // of a timed request's choice; valid during Deliver
}

// Life is what a choice has been through so far.
type Life struct {
	Started     time.Time // when its first step was sent
	Steps       int       // that had rows of it
	Preemptions int
}

// A Group carries steps to the ranks; parallel/group implements it.
type Group interface {
	Ranks() int
	Send(payload []byte) error
	Answers() <-chan group.Answer
}

var _ Group = (*group.Local)(nil)

// Config is what an engine is made of.
type Config struct {
	Limits sched.Limits
	Group  Group
	Depth  int // steps in flight: stages + 1
	// Deliver takes outputs on the loop's goroutine; it must not block. The slice
	// is the loop's own, its elements are not.
	Deliver func([]Output)
}

// Stats is a snapshot for metrics and routing.
type Stats struct {
	sched.Stats
	Blocks, BlocksFree, BlocksCached int // of group 0
	SlotsTaken, SlotsUsed            int // tokens' places in blocks that sequences hold
	PromptTokens, OutputTokens       uint64
	Finished                         uint64
}

// Engine drives one epoch of a replica.
type Engine struct {
	cfg   Config
	inbox chan func(*loop)

	mu    sync.Mutex // guards what follows, and sending to inbox
	stats Stats
	ended bool // Run has ended: nothing reads inbox any more
}

// New makes an engine; Run starts it.
func New(cfg Config) (*Engine, error) {
	if cfg.Depth < 1 || cfg.Deliver == nil || cfg.Group == nil {
		return nil, fmt.Errorf("engine: a group, a depth and a receiver of outputs are needed")
	}
	if err := cfg.Limits.Check(); err != nil {
		return nil, err
	}
	return &Engine{cfg: cfg, inbox: make(chan func(*loop), inboxSize)}, nil
}

// Submit queues a request. Its answers, errors included, come through Deliver.
func (e *Engine) Submit(r Request) error {
	if len(r.Prompt) == 0 || r.Choices < 1 || r.Choices > sample.MaxChoices || len(r.Outputs) > r.Choices {
		return fmt.Errorf("%w: %d prompt tokens, %d choices", ErrInvalid, len(r.Prompt), r.Choices)
	}
	return e.send(func(l *loop) { l.submit(r) })
}

// Cancel withdraws choices of a request, or with none named the whole of it. A
// cancelled choice gives no further output.
func (e *Engine) Cancel(id RequestID, attempt uint32, choices []int) error {
	return e.send(func(l *loop) { l.cancel(id, attempt, choices) })
}

func (e *Engine) send(message func(*loop)) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ended {
		return ErrLost
	}
	select {
	case e.inbox <- message:
		return nil
	default:
		return ErrBusy
	}
}

// Stats gives the newest snapshot.
func (e *Engine) Stats() Stats {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.stats
}

// Run is the step loop. It ends with ctx or with the epoch; then every request
// that was not finished has had an Output with ErrLost.
func (e *Engine) Run(ctx context.Context) error {
	scheduler, err := sched.New(e.cfg.Limits)
	if err != nil {
		return err
	}
	l := &loop{
		engine:    e,
		scheduler: scheduler,
		requests:  make(map[RequestID]*request),
		choices:   make(map[*sched.Sequence]*choice),
		unstarted: make(map[kv.SequenceID]*Life),
		answers:   collector{ranks: e.cfg.Group.Ranks()},
	}
	err = l.run(ctx)
	e.mu.Lock()
	e.ended = true
	e.mu.Unlock()
	l.fail(err)
	return err
}

// collector puts the ranks' answers to one step together.
type collector struct {
	ranks  int
	steps  uint64            // answered by every rank
	nodes  map[string]uint64 // answers of each node
	counts map[sched.StepID]int
	result map[sched.StepID]*sched.Result
}

// add takes one rank's answer and gives the step's result once all have answered.
func (c *collector) add(node string, r *sched.Result) (*sched.Result, error) {
	if c.ranks == 1 {
		return r, nil
	}
	if c.counts == nil {
		c.counts, c.result = make(map[sched.StepID]int), make(map[sched.StepID]*sched.Result)
		c.nodes = make(map[string]uint64)
	}
	c.nodes[node]++
	first, ok := c.result[r.ID]
	if !ok {
		first = r
		c.result[r.ID] = r
	}
	if r.Digest != first.Digest {
		return nil, fmt.Errorf("%w: digests %x and %x after step %d", sched.ErrDiverged, r.Digest, first.Digest, r.ID)
	}
	if len(r.Samples) > 0 {
		first.Samples = r.Samples
	}
	c.counts[r.ID]++
	if c.counts[r.ID] < c.ranks {
		return nil, nil
	}
	c.steps++
	delete(c.counts, r.ID)
	delete(c.result, r.ID)
	return first, nil
}

// sequenceIDs count from 1 within an epoch.
type sequenceIDs struct{ last kv.SequenceID }

func (s *sequenceIDs) next() kv.SequenceID {
	s.last++
	return s.last
}
