package dispatchtest

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	"manta/head/dispatch"
	"manta/head/state"
	"manta/kernels"
	"manta/node/wire"
)

// Cluster is a control plane and its nodes. Each node drives the replicas whose
// rank (0,0) it has. Use New, Attach, and Close at the end.
type Cluster struct {
	// Script gives the token at an output position of a choice. It must depend on
	// its arguments alone, so that a moved request goes on with the same tokens.
	Script func(request *wire.Request, choice, position int) int32
	// Step is how long a token takes; 0 gives them as fast as they are taken.
	Step time.Duration
	// Chunk is how many tokens a frame carries; 0 means 1.
	Chunk int
	// Tamper changes or drops (false) a frame before it is sent; nil: none.
	Tamper func(frame *wire.Frame) bool

	receiver Receiver
	ctx      context.Context
	stop     context.CancelFunc
	work     sync.WaitGroup

	mu      sync.Mutex
	view    *state.View             // guarded by mu
	changed chan struct{}           // guarded by mu: closed at the next view
	runs    map[wire.RequestID]*run // guarded by mu
	blobs   map[state.Digest][]byte // guarded by mu
	dead    map[string]bool         // guarded by mu: nodes that answer nothing
	Sent    []wire.Request          // guarded by mu; read it through Requests
	Cancels []wire.Cancel           // guarded by mu; read it through Cancelled
}

// Receiver takes what drivers send: the Dispatcher.
type Receiver interface {
	Frame(*wire.Frame)
	Credit(wire.Credit)
	Disconnected(node string)
}

type run struct {
	request wire.Request
	node    string
	stop    context.CancelFunc

	mu    sync.Mutex
	ended map[int]bool // guarded by mu: choices withdrawn
}

var (
	_ dispatch.Views = (*Cluster)(nil)
	_ dispatch.Link  = (*Cluster)(nil)
	_ dispatch.Blobs = (*Cluster)(nil)
	_ Receiver       = (*dispatch.Dispatcher)(nil)
)

// New gives a cluster without replicas whose driver says "hello" over and over.
func New() *Cluster {
	ctx, stop := context.WithCancel(context.Background())
	return &Cluster{
		Script: Repeat("hello "), ctx: ctx, stop: stop,
		view:    &state.View{Index: 1, Deployments: map[string]state.Deployment{}, Replicas: map[string]state.Replica{}},
		changed: make(chan struct{}), runs: map[wire.RequestID]*run{},
		blobs: map[state.Digest][]byte{}, dead: map[string]bool{},
	}
}

// Repeat is a script that gives a text's bytes again and again.
func Repeat(text string) func(*wire.Request, int, int) int32 {
	return func(_ *wire.Request, _, position int) int32 { return int32(text[position%len(text)]) }
}

// Say is a script that gives a text's bytes, then the end token.
func Say(text string) func(*wire.Request, int, int) int32 {
	return func(_ *wire.Request, _, position int) int32 {
		if position >= len(text) {
			return EOS
		}
		return int32(text[position])
	}
}

// Attach sets who takes frames. Call it before anything is sent.
func (c *Cluster) Attach(receiver Receiver) { c.receiver = receiver }

// Close ends all drivers and waits for them.
func (c *Cluster) Close() {
	c.stop()
	c.work.Wait()
}

// Update publishes a changed copy of the view.
func (c *Cluster) Update(change func(view *state.View)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := *c.view
	next.Deployments, next.Replicas = maps.Clone(c.view.Deployments), maps.Clone(c.view.Replicas)
	change(&next)
	next.Index++
	c.view = &next
	close(c.changed)
	c.changed = make(chan struct{})
}

// AddReplica makes a ready replica on a node, and grants credit.
func (c *Cluster) AddReplica(deployment, id, node string, epoch uint64, credit int) {
	c.Update(func(view *state.View) {
		if _, ok := view.Deployments[deployment]; !ok {
			view.Deployments[deployment] = state.Deployment{Name: deployment, Model: deployment}
		}
		view.Replicas[id] = state.Replica{
			ID: id, Deployment: deployment, Epoch: epoch, MaxLen: 4096, Phase: state.Ready,
			Shards: []state.Placement{{Node: node}},
		}
	})
	c.receiver.Credit(wire.Credit{Version: wire.Version, Replica: id, Epoch: epoch, Node: node, Choices: credit})
}

// Kill ends a node's drivers without a word, and takes its replicas out of the view.
func (c *Cluster) Kill(node string) {
	c.mu.Lock()
	c.dead[node] = true
	for id, r := range c.runs {
		if r.node == node {
			r.stop()
			delete(c.runs, id)
		}
	}
	c.mu.Unlock()
	c.Update(func(view *state.View) {
		for id, replica := range view.Replicas {
			if len(replica.Shards) > 0 && replica.Shards[0].Node == node {
				delete(view.Replicas, id)
			}
		}
	})
}

func (c *Cluster) View() *state.View {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.view
}

func (c *Cluster) Wait(ctx context.Context, index uint64) (*state.View, error) {
	for {
		c.mu.Lock()
		view, changed := c.view, c.changed
		c.mu.Unlock()
		if view.Index > index {
			return view, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// PutBlob stores bytes under a digest.
func (c *Cluster) PutBlob(digest state.Digest, data []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.blobs[digest] = data
}

func (c *Cluster) Blob(_ context.Context, digest state.Digest) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	data, ok := c.blobs[digest]
	if !ok {
		return nil, fmt.Errorf("no blob %x", digest[:4])
	}
	return data, nil
}

// Requests gives what was sent so far.
func (c *Cluster) Requests() []wire.Request {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]wire.Request(nil), c.Sent...)
}

// Cancelled gives the cancels so far.
func (c *Cluster) Cancelled() []wire.Cancel {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]wire.Cancel(nil), c.Cancels...)
}

// Running is the number of requests that drivers work on.
func (c *Cluster) Running() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.runs)
}

func (c *Cluster) Send(_ context.Context, node string, message *wire.Request) error {
	request, err := travel(message)
	if err != nil {
		return err
	}
	var busy []wire.Request
	defer func() { // after the lock is free
		for _, r := range busy {
			c.emit(wire.Frame{
				Version: wire.Version, Request: r.ID, Attempt: r.Attempt, Epoch: r.Epoch,
				Err: &wire.Error{Code: wire.ErrBusy, Message: "a request runs alone"},
			})
		}
	}()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead[node] {
		return fmt.Errorf("node %s is gone", node)
	}
	c.Sent = append(c.Sent, request)
	for id, other := range c.runs {
		switch {
		case other.node != node || id == request.ID:
		case other.request.Alone:
			busy = append(busy, request)
			return nil
		case request.Alone:
			other.stop()
			delete(c.runs, id)
			busy = append(busy, other.request)
		}
	}
	if old, ok := c.runs[request.ID]; ok {
		if old.request.Attempt >= request.Attempt {
			return fmt.Errorf("attempt %d after %d", request.Attempt, old.request.Attempt)
		}
		old.stop()
	}
	ctx, stop := context.WithCancel(c.ctx)
	r := &run{request: request, node: node, stop: stop, ended: map[int]bool{}}
	c.runs[request.ID] = r
	c.work.Go(func() { c.drive(ctx, r) })
	return nil
}

func (c *Cluster) Cancel(_ context.Context, node string, message *wire.Cancel) error {
	cancel, err := travel(message)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Cancels = append(c.Cancels, cancel)
	r, ok := c.runs[cancel.ID]
	if !ok || cancel.Attempt != r.request.Attempt {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, choice := range cancel.Choices {
		r.ended[choice] = true
	}
	if len(cancel.Choices) == 0 {
		r.stop()
		delete(c.runs, cancel.ID)
	}
	return nil
}

// travel encodes and decodes a message, as the network would.
func travel[M any](message *M) (M, error) {
	var out M
	data, err := wire.Marshal(message)
	if err == nil {
		err = wire.Unmarshal(data, &out)
	}
	return out, err
}

// drive gives a request's tokens, a frame of each choice in turn.
func (c *Cluster) drive(ctx context.Context, r *run) {
	defer c.finish(r)
	request := &r.request
	outputs := make([][]int32, request.Choices)
	if request.Outputs != nil {
		copy(outputs, request.Outputs)
	}
	if request.Alone { // its head is told before it can do harm
		c.emit(wire.Frame{Version: wire.Version, Request: request.ID, Attempt: request.Attempt, Epoch: request.Epoch, Offset: len(outputs[0])})
	}
	first := true
	for {
		live := false
		for choice := range outputs {
			r.mu.Lock()
			ended := r.ended[choice]
			r.mu.Unlock()
			if ended {
				continue
			}
			live = true
			if c.Step > 0 {
				select {
				case <-time.After(c.Step):
				case <-ctx.Done():
				}
			}
			if ctx.Err() != nil {
				return
			}
			frame := c.next(request, choice, outputs)
			if first && request.Params.PromptLogprobs >= 0 {
				for _, token := range request.Prompt {
					frame.Prompt = append(frame.Prompt, logprob(token, request.Params.PromptLogprobs))
				}
			}
			first = false
			if frame.Finish != wire.Unfinished {
				r.mu.Lock()
				r.ended[choice] = true
				r.mu.Unlock()
			}
			c.emit(frame)
		}
		if !live {
			return
		}
	}
}

func (c *Cluster) next(request *wire.Request, choice int, outputs [][]int32) wire.Frame {
	frame := wire.Frame{
		Version: wire.Version, Request: request.ID, Attempt: request.Attempt, Epoch: request.Epoch,
		Choice: choice, Offset: len(outputs[choice]),
	}
	for range max(c.Chunk, 1) {
		token := c.Script(request, choice, len(outputs[choice]))
		outputs[choice] = append(outputs[choice], token)
		frame.Tokens = append(frame.Tokens, token)
		if request.Params.Logprobs >= 0 {
			frame.Logprobs = append(frame.Logprobs, logprob(token, request.Params.Logprobs))
		}
		if request.Params.Ends(token, len(outputs[choice])) {
			frame.Finish = wire.FinishStop
			break
		}
		if len(outputs[choice]) >= request.Params.MaxTokens {
			frame.Finish = wire.FinishLength
			break
		}
	}
	return frame
}

func (c *Cluster) emit(frame wire.Frame) {
	out, err := travel(&frame)
	if err != nil {
		panic(err)
	}
	if c.Tamper != nil && !c.Tamper(&out) {
		return
	}
	c.receiver.Frame(&out)
}

func (c *Cluster) finish(r *run) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r.stop()
	if c.runs[r.request.ID] == r {
		delete(c.runs, r.request.ID)
	}
}

// logprob makes up figures that depend on the token alone, with n alternatives.
func logprob(token int32, n int) wire.Logprob {
	l := wire.Logprob{Token: token, Logprob: -float32(token) / 1000, Rank: 1}
	for i := range int32(n) {
		other := kernels.TokenLogprob{Token: (token + i) % 256, Logprob: -9 - float32(i)}
		if i == 0 {
			other = kernels.TokenLogprob{Token: token, Logprob: l.Logprob}
		}
		l.Top = append(l.Top, other)
	}
	return l
}

// Meter ignores all that it is told.
type Meter struct{}

func (Meter) Waiting(string, int)                     {}
func (Meter) Running(string, int)                     {}
func (Meter) Output(string, int, bool, time.Duration) {}
func (Meter) Ended(string, dispatch.Summary)          {}
func (Meter) Fault(string, string)                    {}
