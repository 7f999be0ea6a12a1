package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"manta/kernels"
	"manta/parallel/comm"
	"manta/parallel/group"
	"manta/parallel/shard"
	"manta/runtime/model"
	"manta/runtime/sched"
)

// LocalConfig describes the ranks of a replica that run in this process.
type LocalConfig struct {
	Weights model.Source
	Spec    *model.Spec
	Layout  shard.Layout
	// Here tells which ranks this process has; nil: all.
	Here   func(stage, rank int) bool
	Limits sched.Limits // Epoch, Windows and Stages are filled in
	// CacheType is the type of stored keys and values.
	CacheType kernels.DType
	// Depth is the number of steps in flight; 0: stages + 1.
	Depth int
	// Open gives a rank its device. Local closes it.
	Open func(stage, rank int) (kernels.Ops, error)
}

// Local is the ranks of a replica in this process: models on devices, which
// outlive epochs.
type Local struct {
	cfg   LocalConfig
	ranks []localRank
	joins []join
}

// A join is what joins devices, epoch by epoch: a kernels.Link or a kernels.Hop.
type join interface {
	Open()
	Close()
}

type localRank struct {
	slice         shard.Slice
	ops           kernels.Ops
	model         *model.Model
	reduce        *epochReducer   // nil: one tensor rank
	linked        kernels.Reducer // to the others of its stage by device, or nil
	before, after kernels.Hop     // to the stages beside it by device, or nil
}

// epochReducer is the collective that a model was loaded with: in every epoch
// another stands behind it.
type epochReducer struct{ kernels.Reducer }

// LoadLocal opens a device for every rank that is here and loads its slice, all at
// once.
func LoadLocal(cfg LocalConfig) (*Local, error) {
	shapes := cfg.Spec.Shapes()
	cfg.Limits.Windows = shapes.Groups()
	cfg.Limits.Stages = cfg.Layout.Pipeline
	cfg.Depth = cmp.Or(cfg.Depth, cfg.Layout.Pipeline+1)
	l := &Local{cfg: cfg}
	for stage := range cfg.Layout.Pipeline {
		for rank := range cfg.Layout.Tensor {
			if cfg.Here != nil && !cfg.Here(stage, rank) {
				continue
			}
			slice, err := shard.Cut(cfg.Layout, shapes.Shape(), stage, rank)
			if err != nil {
				return nil, err
			}
			l.ranks = append(l.ranks, localRank{slice: slice})
		}
	}
	var load errgroup.Group
	for i := range l.ranks {
		load.Go(func() error { return l.load(&l.ranks[i]) })
	}
	if err := load.Wait(); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	if err := errors.Join(l.link(), l.hop()); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// hop joins ranks to those of the next stage that are here too, where their devices
// pass rows on by themselves.
func (l *Local) hop() error {
	for i := range l.ranks {
		from := &l.ranks[i]
		stager, ok := from.ops.(kernels.Stager)
		if !ok {
			continue
		}
		for k := range l.ranks {
			to := &l.ranks[k]
			if to.slice.Stage != from.slice.Stage+1 || to.slice.Rank != from.slice.Rank {
				continue
			}
			hop, err := stager.Hop(to.ops, l.cfg.Limits.MaxRows, to.model.Input().Cols, l.cfg.Depth)
			if err != nil {
				return fmt.Errorf("engine: join stages %d and %d: %w", from.slice.Stage, to.slice.Stage, err)
			}
			if hop != nil {
				from.after, to.before = hop, hop
				l.joins = append(l.joins, hop)
			}
		}
	}
	return nil
}

// link joins the tensor ranks of each stage that is here whole, where their devices
// reach each other's memory: their sums then are part of the step.
func (l *Local) link() error {
	for stage := range l.cfg.Layout.Pipeline {
		var devices []kernels.Ops
		var ranks []*localRank
		for i := range l.ranks {
			if r := &l.ranks[i]; r.slice.Stage == stage {
				devices, ranks = append(devices, r.ops), append(ranks, r)
			}
		}
		if len(ranks) < 2 || len(ranks) < l.cfg.Layout.Tensor {
			continue
		}
		linker, ok := devices[0].(kernels.Linker)
		if !ok {
			continue
		}
		link, err := linker.Link(devices)
		if err != nil {
			return fmt.Errorf("engine: link the ranks of stage %d: %w", stage, err)
		}
		if link == nil {
			continue
		}
		l.joins = append(l.joins, link)
		for i, r := range ranks {
			r.linked = link.Reducer(i)
		}
	}
	return nil
}

func (l *Local) load(r *localRank) (err error) {
	if r.ops, err = l.cfg.Open(r.slice.Stage, r.slice.Rank); err != nil {
		return fmt.Errorf("engine: device of stage %d rank %d: %w", r.slice.Stage, r.slice.Rank, err)
	}
	limits := model.Limits{
		MaxRows: l.cfg.Limits.MaxRows, MaxWanted: l.cfg.Limits.MaxWanted, MaxContext: l.cfg.Limits.MaxLen,
		Blocks: l.cfg.Limits.Blocks, CacheType: l.cfg.CacheType,
	}
	var reduce kernels.Reducer
	if l.cfg.Layout.Tensor > 1 {
		nowhere := comm.NewMesh(comm.Here(l.cfg.Layout.Pipeline, l.cfg.Layout.Tensor), "", 1, nil)
		r.reduce = &epochReducer{nowhere.Reducer(r.slice.Stage, r.slice.Rank)}
		reduce = r.reduce
	}
	if r.model, err = model.Load(r.ops, l.cfg.Weights, l.cfg.Spec, r.slice, limits, reduce); err != nil {
		return fmt.Errorf("engine: load stage %d rank %d: %w", r.slice.Stage, r.slice.Rank, err)
	}
	return nil
}

// Close frees the devices. No epoch may be running.
func (l *Local) Close() error {
	var errs []error
	for _, r := range l.ranks {
		if r.ops != nil {
			errs = append(errs, r.ops.Close())
		}
	}
	return errors.Join(errs...)
}

// Epoch is one epoch of the ranks here: empty pools and index, joined to the
// other ranks by Mesh. Either Drive or Follow runs it.
type Epoch struct {
	Mesh   *comm.Mesh
	Group  *group.Local
	limits sched.Limits
	depth  int
	over   context.Context
}

// Over is done as soon as the epoch ends, with the cause, whatever its ranks still
// wait for.
func (e *Epoch) Over() context.Context { return e.over }

// Where says where the ranks of an epoch run: nodes[stage][rank], this process as
// Self. The zero Where has all of them here.
type Where struct {
	Nodes   [][]string
	Self    string
	Carrier comm.Carrier // to the meshes on other nodes
}

// Epoch makes a new epoch; one at a time runs.
func (l *Local) Epoch(epoch uint64, where Where) (*Epoch, error) {
	if where.Nodes == nil {
		where.Nodes = comm.Here(l.cfg.Layout.Pipeline, l.cfg.Layout.Tensor)
	}
	mesh := comm.NewMesh(where.Nodes, where.Self, l.cfg.Depth, where.Carrier)
	e := &Epoch{Mesh: mesh, limits: l.cfg.Limits, depth: l.cfg.Depth}
	e.limits.Epoch = epoch
	var members []group.Rank
	for i := range l.ranks {
		r := &l.ranks[i]
		place := Place{First: r.slice.First(), Last: r.slice.Last(), Samples: r.slice.Last() && r.slice.Rank == 0, Before: r.before, After: r.after}
		if l.cfg.Layout.Ranks() > 1 {
			place.Pipe = e.Mesh.Pipe(r.slice.Stage, r.slice.Rank)
		}
		if r.reduce != nil {
			if r.reduce.Reducer = r.linked; r.linked == nil {
				r.reduce.Reducer = e.Mesh.Reducer(r.slice.Stage, r.slice.Rank)
			}
		}
		if l.cfg.Layout.Pipeline == 1 {
			place.Follow, _ = r.linked.(kernels.Follower)
		}
		member, err := NewRank(r.ops, r.model, e.limits, place)
		if err != nil {
			return nil, err
		}
		members = append(members, member)
	}
	e.Group = group.NewLocal(e.depth, members...)
	for _, j := range l.joins {
		j.Open()
	}
	over, finish := context.WithCancelCause(context.Background())
	e.over = over
	e.Group.End = func(cause error) {
		finish(cause)
		e.Mesh.Close()
		for _, j := range l.joins {
			j.Close()
		}
	}
	return e, nil
}

// runner is a group that has to be run.
type runner interface {
	Group
	Run(ctx context.Context) error
}

// Drive makes the epoch's engine and its group, of the ranks here and on other
// nodes. The function runs both until ctx ends or a rank is lost.
func (e *Epoch) Drive(deliver func([]Output), remotes ...group.Remote) (*Engine, *group.Spread, func(context.Context) error, error) {
	spread := group.NewSpread(e.depth, e.Group, remotes...)
	var all runner = e.Group
	if len(remotes) > 0 {
		all = spread
	}
	engine, err := New(Config{Limits: e.limits, Group: all, Depth: e.depth, Deliver: deliver})
	if err != nil {
		return nil, nil, nil, err
	}
	return engine, spread, func(ctx context.Context) error {
		run, ctx := errgroup.WithContext(ctx)
		run.Go(func() error { return all.Run(ctx) })
		run.Go(func() error { return engine.Run(ctx) })
		return run.Wait()
	}, nil
}

// Follow runs ranks whose driver is on another node: payloads go into Group.Send,
// answers out by answer, until ctx ends or a rank is lost.
func (e *Epoch) Follow(ctx context.Context, answer func(context.Context, group.Answer) error) error {
	run, ctx := errgroup.WithContext(ctx)
	run.Go(func() error { return e.Group.Run(ctx) })
	run.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case a := <-e.Group.Answers():
				if err := answer(ctx, a); err != nil {
					return err
				}
			}
		}
	})
	return run.Wait()
}
