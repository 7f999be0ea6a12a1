package serve

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"manta/kernels"
	"manta/node/wire"
	"manta/runtime/engine"
	"manta/runtime/kv"
	"manta/runtime/model"
	"manta/runtime/plan"
	"manta/runtime/sample"
	"manta/runtime/sched"
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
}

func newReplica(s *Server, a wire.Assignment) *replica {
	ctx, stop := context.WithCancel(context.Background())
	return &replica{
		server: s, ctx: ctx, stop: stop, wanted: make(chan struct{}, 1), assignment: a,
		state: wire.ReplicaReport{Replica: a.Replica, Epoch: a.Epoch, Phase: wire.PhasePulling},
	}
}

// want takes a newer assignment; a running epoch that is not the wanted one ends.
func (r *replica) want(a wire.Assignment) {
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

// run lives until the server or the replica is stopped.
func (r *replica) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(r.ctx, cancel)()
	var loaded *loadedReplica
	for ctx.Err() == nil {
		a := r.current()
		if loaded != nil && !loaded.serves(a) {
			r.unload(loaded)
			loaded = nil
		}
		err := r.epoch(ctx, a, &loaded)
		if ctx.Err() != nil {
			break
		}
		if r.current().Epoch != a.Epoch {
			continue
		}
		r.server.cfg.Logger.Error("replica failed", "replica", a.Replica, "epoch", a.Epoch, "err", err)
		r.set(a.Epoch, wire.PhaseFailed, err.Error())
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
	var e *engine.Engine
	probed := make(chan error, 1)
	e, run, err := (*loaded).local.Epoch(a.Epoch, func(outputs []engine.Output) {
		outputs = takeProbe(outputs, probed)
		r.server.sessions.deliver(e, outputs)
	})
	if err != nil {
		return err
	}
	ctx, end := context.WithCancel(ctx)
	defer end()
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	defer func() { r.leave(e) }()
	if err := probe(e); err != nil {
		end()
		return errors.Join(err, <-ended)
	}
	for {
		select {
		case err := <-probed:
			if err != nil {
				end()
				return fmt.Errorf("serve: first step: %w", errors.Join(err, <-ended))
			}
			r.ready(e, a.Epoch)
		case err := <-ended:
			return err
		case <-r.wanted:
			if r.current().Epoch != a.Epoch {
				end()
				return <-ended
			}
		}
	}
}

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

func (r *replica) ready(e *engine.Engine, epoch uint64) {
	r.mu.Lock()
	r.engine = e
	r.mu.Unlock()
	r.set(epoch, wire.PhaseReady, "")
}

func (r *replica) leave(e *engine.Engine) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.engine == e {
		r.engine = nil
	}
}

func (r *replica) set(epoch uint64, phase wire.Phase, reason string) {
	r.mu.Lock()
	r.state = wire.ReplicaReport{Replica: r.assignment.Replica, Epoch: epoch, Phase: phase, Reason: reason}
	r.mu.Unlock()
	r.server.changed()
}

func (r *replica) progress(p weights.Progress) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state.Done, r.state.Total = p.Done, p.Total
}

func (r *replica) report() wire.ReplicaReport {
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

// credit lets each head have its part of what runs at once, and a little more, so
// that a sequence that ends is followed by the next without a round trip.
func (r *replica) credit(heads int, draining bool) (wire.Credit, bool) {
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

// request gives a request to the epoch's engine.
func (r *replica) request(q wire.Request) error {
	r.mu.Lock()
	e, epoch := r.engine, r.assignment.Epoch
	r.mu.Unlock()
	switch {
	case q.Epoch != epoch:
		return &wire.Error{Code: wire.ErrStale, Message: fmt.Sprintf("epoch %d, replica %s is in %d", q.Epoch, q.Replica, epoch)}
	case e == nil:
		return &wire.Error{Code: wire.ErrLost, Message: "replica " + q.Replica + " is not ready"}
	}
	takenOver, err := r.server.sessions.begin(q, e)
	if err != nil || takenOver {
		return err
	}
	request := engine.Request{
		ID: engine.RequestID(q.ID), Attempt: q.Attempt, Prompt: q.Prompt, Choices: q.Choices, Params: q.Params,
		Priority: q.Priority, Outputs: q.Outputs,
	}
	if q.DeadlineMS != 0 {
		request.Deadline = time.UnixMilli(q.DeadlineMS)
	}
	if err := e.Submit(request); err != nil {
		r.server.sessions.cancel(wire.Cancel{ID: q.ID, Attempt: q.Attempt})
		return err
	}
	return nil
}

// loadedReplica is a replica's weights on this node's devices.
type loadedReplica struct {
	assignment wire.Assignment
	weights    *weights.Model
	local      *engine.Local
}

// serves reports whether an assignment runs on what is loaded.
func (l *loadedReplica) serves(a wire.Assignment) bool {
	b := l.assignment
	a.Epoch, b.Epoch = 0, 0
	return fmt.Sprint(a) == fmt.Sprint(b)
}

func (l *loadedReplica) close() error { return errors.Join(l.local.Close(), l.weights.Close()) }

// load pulls the model and puts every rank's slice onto its device.
func (r *replica) load(ctx context.Context, a wire.Assignment) (*loadedReplica, error) {
	devices := make(map[[2]int]string)
	for _, shard := range a.Shards {
		if shard.Node != r.server.cfg.Node {
			return nil, fmt.Errorf("serve: rank (%d, %d) is on node %s: the ranks of a replica must be on one node", shard.Stage, shard.Rank, shard.Node)
		}
		devices[[2]int{shard.Stage, shard.Rank}] = shard.Device
	}
	ref, err := weights.ParseReference(a.Model)
	if err != nil {
		return nil, err
	}
	r.set(a.Epoch, wire.PhasePulling, "")
	pulled, err := r.server.cfg.Library(a.Settings.DownloadDir).Pull(ctx, ref, r.progress)
	if err != nil {
		return nil, err
	}
	r.set(a.Epoch, wire.PhaseLoading, "")
	w, err := weights.Open(pulled.Path)
	if err != nil {
		return nil, err
	}
	spec, err := model.Describe(w)
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	cache, err := plan.CacheType(kindOf(devices[[2]int{0, 0}]), a.Settings.KVCacheDType)
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	local, err := engine.LoadLocal(engine.LocalConfig{
		Weights: w, Spec: spec, Layout: a.Layout, CacheType: cache,
		Limits: sched.Limits{
			Blocks: a.Blocks, MaxSequences: a.Settings.MaxNumSeqs, MaxRows: a.Settings.MaxNumBatchedTokens,
			MaxWanted: plan.Wanted(a.Settings.MaxNumSeqs), MaxLen: a.MaxLen,
			PrefixCaching: a.Settings.PrefixCaching, Seed: kv.Seed(w.Digest()),
		},
		Open: func(stage, rank int) (kernels.Ops, error) {
			return r.server.open(devices[[2]int{stage, rank}], a.Settings.DType)
		},
	})
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return &loadedReplica{assignment: a, weights: w, local: local}, nil
}
