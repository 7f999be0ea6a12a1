package serve

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"manta/node/wire"
	"manta/parallel/group"
	"manta/runtime/engine"
	"manta/runtime/sample"
	"manta/runtime/weights"
)

// replica is one replica's life on this node: pull, load, then epoch after epoch
// on the same loaded weights.
type replica struct {
	server *Server
	ctx    context.Context
	stop   context.CancelFunc
	wanted chan struct{} // holds one: want has changed

	mu         sync.Mutex // guards what follows
	assignment wire.Assignment
	state      wire.ReplicaReport
	engine     *engine.Engine // of the epoch that is ready
	live       *liveEpoch
	entered    chan struct{} // closed when live is set
}

func newReplica(s *Server, a wire.Assignment) *replica {
	ctx, stop := context.WithCancel(context.Background())
	return &replica{
		server: s, ctx: ctx, stop: stop, wanted: make(chan struct{}, 1), assignment: a, entered: make(chan struct{}),
		state: wire.ReplicaReport{Replica: a.Replica, Epoch: a.Epoch, Phase: wire.PhasePulling},
	}
}

// Want takes a newer assignment; a running epoch that is not the wanted one ends.
func (r *replica) Want(a wire.Assignment) {
	r.mu.Lock()
	newer := a.Epoch > r.assignment.Epoch
	if newer {
		r.assignment = a
	}
	r.mu.Unlock()
	if newer {
		select {
		case r.wanted <- struct{}{}:
		default:
		}
	}
}

func (r *replica) current() wire.Assignment {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.assignment
}

// Stop implements Hosted.
func (r *replica) Stop() { r.stop() }

// Run lives until the server or the replica is stopped.
func (r *replica) Run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(r.ctx, cancel)()
	var loaded *loadedReplica
	for ctx.Err() == nil {
		a := r.current()
		if loaded != nil && !loaded.serves(a, r.server.cfg.Node) {
			r.unload(loaded)
			loaded = nil
		}
		err := r.epoch(ctx, a, &loaded)
		if ctx.Err() != nil {
			break
		}
		if r.server.cfg.Broken != nil && deviceLost(err) {
			r.server.cfg.Broken(err)
			break
		}
		if r.current().Epoch != a.Epoch {
			continue
		}
		r.server.cfg.Logger.Error("replica failed", "replica", a.Replica, "epoch", a.Epoch, "err", err)
		r.failed(ctx, a, err)
		select {
		case <-ctx.Done():
		case <-r.wanted:
		}
	}
	if loaded != nil {
		r.unload(loaded)
	}
}

func (r *replica) unload(l *loadedReplica) {
	if err := l.close(); err != nil {
		r.server.cfg.Logger.Error("unload", "replica", r.current().Replica, "err", err)
	}
}

// epoch runs one epoch to its end, after loading what is not loaded.
func (r *replica) epoch(ctx context.Context, a wire.Assignment, loaded **loadedReplica) error {
	if *loaded == nil {
		l, err := r.load(ctx, a)
		if err != nil {
			return err
		}
		*loaded = l
	}
	r.set(a.Epoch, wire.PhaseLoading, "")
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	nodes, _, err := r.server.places(a)
	if err != nil {
		return err
	}
	self := r.server.cfg.Node
	e, err := (*loaded).local.Epoch(a.Epoch, engine.Where{Nodes: nodes, Self: self, Carrier: r.server.carrier(ctx, a)})
	if err != nil {
		return err
	}
	live := &liveEpoch{number: a.Epoch, epoch: e, end: end, ready: (*loaded).release}
	if nodes[0][0] == self {
		return r.drive(ctx, a, live)
	}
	return r.follow(ctx, a, live)
}

// liveEpoch is what messages from other nodes meet.
type liveEpoch struct {
	number uint64
	epoch  *engine.Epoch
	spread *group.Spread // on the driver's node
	end    context.CancelCauseFunc
	ready  func() // called when the epoch is
	joined atomic.Bool
}

// drive runs the epoch's engine on this node.
func (r *replica) drive(ctx context.Context, a wire.Assignment, live *liveEpoch) error {
	var e *engine.Engine
	probed := make(chan error, 1)
	e, spread, run, err := live.epoch.Drive(func(outputs []engine.Output) {
		outputs = takeProbe(outputs, probed)
		r.server.sessions.deliver(e, outputs)
	}, r.server.remotes(a)...)
	if err != nil {
		return err
	}
	live.spread = spread
	r.enter(live)
	defer r.leave()
	return r.alive(ctx, a, live, run, func(ctx context.Context) error {
		if err := r.server.join(ctx, a); err != nil {
			return err
		}
		live.joined.Store(true)
		if err := probe(e); err != nil {
			return err
		}
		select {
		case err := <-probed:
			if err != nil {
				return fmt.Errorf("serve: first step: %w", err)
			}
		case <-ctx.Done():
			return ctx.Err()
		}
		r.mu.Lock()
		r.engine = e
		r.mu.Unlock()
		return nil
	})
}

// follow runs ranks whose driver is on another node.
func (r *replica) follow(ctx context.Context, a wire.Assignment, live *liveEpoch) error {
	live.joined.Store(true)
	r.enter(live)
	defer r.leave()
	run := func(ctx context.Context) error {
		err := live.epoch.Follow(ctx, func(ctx context.Context, answer group.Answer) error {
			return r.server.answer(ctx, a, answer)
		})
		if ctx.Err() == nil {
			// The driver must hear of it, whatever the group could still say.
			told, stop := context.WithTimeout(context.WithoutCancel(ctx), peerTimeout)
			defer stop()
			err = errors.Join(err, r.server.answer(told, a, group.Answer{Err: err}))
		}
		return err
	}
	return r.alive(ctx, a, live, run, func(context.Context) error { return nil })
}

// alive runs an epoch until it fails or another is wanted. It is ready once
// prepare has returned.
func (r *replica) alive(ctx context.Context, a wire.Assignment, live *liveEpoch, run, prepare func(context.Context) error) error {
	outer := ctx
	group, ctx := errgroup.WithContext(ctx)
	released, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		r.release(live.epoch.Over(), released)
	}()
	defer func() {
		close(released)
		<-watched
	}()
	group.Go(func() error { return run(ctx) })
	group.Go(func() error {
		if err := prepare(ctx); err != nil {
			return err
		}
		r.set(a.Epoch, wire.PhaseReady, "")
		live.ready()
		return nil
	})
	group.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-r.wanted:
				if r.current().Epoch != a.Epoch {
					live.end(errSuperseded)
				}
			}
		}
	})
	err := group.Wait()
	if cause := context.Cause(outer); cause != nil {
		return cause
	}
	return err
}

// release gives the ranks of an epoch that is over their time to let go of the device:
// none where one has lost it, since the others may wait for that one for ever.
func (r *replica) release(over context.Context, released <-chan struct{}) {
	if r.server.cfg.Broken == nil {
		return
	}
	select {
	case <-released:
		return
	case <-over.Done():
	}
	cause := context.Cause(over)
	if deviceLost(cause) {
		r.server.cfg.Broken(cause)
		return
	}
	select {
	case <-released:
	case <-time.After(releaseTime):
		r.server.cfg.Broken(fmt.Errorf("%w: %w", errHangs, cause))
	}
}

// releaseTime is how long a step may go on after its epoch has ended.
const releaseTime = 5 * time.Second

var errHangs = errors.New("serve: the device does not come back from its step")

// errSuperseded ends an epoch in favour of a newer one.
var errSuperseded = errors.New("serve: a newer epoch is wanted")

// probeID names the request that proves a new epoch with one real step.
var probeID = engine.RequestID{0xff, 'p', 'r', 'o', 'b', 'e'}

func probe(e *engine.Engine) error {
	p := sample.Default()
	p.MaxTokens = 1
	return e.Submit(engine.Request{ID: probeID, Attempt: 1, Prompt: []int32{0}, Choices: 1, Params: p})
}

// takeProbe takes the probe's answer out of the outputs.
func takeProbe(outputs []engine.Output, probed chan<- error) []engine.Output {
	if len(outputs) == 0 || outputs[0].ID != probeID {
		return outputs
	}
	probed <- outputs[0].Err
	return outputs[1:]
}

// enter lets messages from other nodes in.
func (r *replica) enter(live *liveEpoch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.live = live
	close(r.entered)
	r.entered = make(chan struct{})
}

func (r *replica) leave() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.live, r.engine = nil, nil
}

func (r *replica) set(epoch uint64, phase wire.Phase, reason string) {
	r.mu.Lock()
	r.state = wire.ReplicaReport{Replica: r.assignment.Replica, Epoch: epoch, Phase: phase, Reason: reason}
	r.mu.Unlock()
	r.server.cfg.Logger.Info("replica", "replica", r.assignment.Replica, "epoch", epoch, "phase", phase)
	r.server.changed()
}

// failed reports that an epoch ended, and who is to blame: a node that does not
// answer a simple question either is lost; if it does, only a message was.
func (r *replica) failed(ctx context.Context, a wire.Assignment, err error) {
	report := wire.ReplicaReport{Replica: a.Replica, Epoch: a.Epoch, Phase: wire.PhaseFailed, Reason: err.Error()}
	if nodes, _, bad := r.server.places(a); bad == nil {
		if node, ok := r.server.blame(err, nodes); ok && !r.server.reachable(ctx, node) {
			report.Lost = []string{node}
		}
	}
	r.mu.Lock()
	r.state = report
	r.mu.Unlock()
	r.server.changed()
}

func (r *replica) progress(p weights.Progress) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state.Done, r.state.Total = p.Done, p.Total
}

// Report implements Hosted.
func (r *replica) Report() wire.ReplicaReport {
	r.mu.Lock()
	defer r.mu.Unlock()
	report := r.state
	if r.engine != nil {
		s := r.engine.Stats()
		report.Engine = wire.EngineStats{
			Running: s.Running, Waiting: s.Waiting, Blocks: s.Blocks, BlocksFree: s.BlocksFree, BlocksCached: s.BlocksCached,
			SlotsTaken: s.SlotsTaken, SlotsUsed: s.SlotsUsed, Preemptions: s.Preemptions,
			PrefixQueries: s.PrefixQueries, PrefixHits: s.PrefixHits, PromptTokens: s.PromptTokens, OutputTokens: s.OutputTokens,
			Steps: s.Steps, Rows: s.Rows, ChoicesFinished: s.Finished,
		}
	}
	return report
}

// Credit lets each head have its part of what runs at once, and a little more, so
// that a sequence that ends is followed by the next without a round trip.
func (r *replica) Credit(heads int, draining bool) (wire.Credit, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.engine == nil {
		return wire.Credit{}, false
	}
	choices := r.assignment.Settings.MaxNumSeqs
	choices = (choices+choices/8)/heads + 1
	if draining {
		choices = 0
	}
	return wire.Credit{
		Version: wire.Version, Replica: r.assignment.Replica, Epoch: r.assignment.Epoch,
		Node: r.server.cfg.Node, Choices: choices,
	}, true
}

// aloneAfter is how long a request that has to run alone waits before it may do its
// harm, for its head to hear that it is the one: of those that were sent at the same
// time only it is to blame. Heads that hear nothing blame no one.
const aloneAfter = 50 * time.Millisecond

// request gives a request to the epoch's engine.
func (r *replica) request(q wire.Request) error {
	r.mu.Lock()
	e, epoch := r.engine, r.assignment.Epoch
	r.mu.Unlock()
	switch {
	case q.Epoch != epoch:
		return &wire.Error{Code: wire.ErrStale, Message: fmt.Sprintf("epoch %d, replica %s is in %d", q.Epoch, q.Replica, epoch)}
	case e == nil:
		return &wire.Error{Code: wire.ErrBusy, Message: "replica " + q.Replica + " is not ready"}
	}
	takenOver, err := r.server.sessions.begin(q, e)
	if err != nil || takenOver {
		return err
	}
	request := engine.Request{
		ID: engine.RequestID(q.ID), Attempt: q.Attempt, Prompt: q.Prompt, Choices: q.Choices, Params: q.Params,
		Priority: q.Priority, Outputs: q.Outputs, Timed: r.server.cfg.Tracer != nil && q.TraceParent != "",
	}
	if q.DeadlineMS != 0 {
		request.Deadline = time.UnixMilli(q.DeadlineMS)
	}
	start := func() { r.server.sessions.start(q, e, func() error { return e.Submit(request) }) }
	if q.Alone {
		return r.server.later(aloneAfter, start)
	}
	start()
	return nil
}
