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

// LocalConfig describes a replica whose ranks all run in this process.
type LocalConfig struct {
	Weights model.Source
	Spec    *model.Spec
	Layout  shard.Layout
	Limits  sched.Limits // Epoch, Windows and Stages are filled in
	// CacheType is the type of stored keys and values.
	CacheType kernels.DType
	// Depth is the number of steps in flight; 0: stages + 1.
	Depth int
	// Open gives a rank its device. Local closes it.
	Open func(stage, rank int) (kernels.Ops, error)
}

// Local is a loaded replica: models on devices, which outlive epochs.
type Local struct {
	cfg   LocalConfig
	ranks []localRank
}

type localRank struct {
	slice  shard.Slice
	ops    kernels.Ops
	model  *model.Model
	reduce *reducer
}

// reducer stands for the stage's collective, which is a new one in every epoch.
type reducer struct{ kernels.Reducer }

// LoadLocal opens a device for every rank and loads its slice, all at once.
func LoadLocal(cfg LocalConfig) (*Local, error) {
	shapes := cfg.Spec.Shapes()
	cfg.Limits.Windows = shapes.Groups()
	cfg.Limits.Stages = cfg.Layout.Pipeline
	l := &Local{cfg: cfg}
	for stage := range cfg.Layout.Pipeline {
		for rank := range cfg.Layout.Tensor {
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
	return l, nil
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
		r.reduce = &reducer{comm.NewMesh(comm.Here(l.cfg.Layout.Pipeline, l.cfg.Layout.Tensor), "", 1, nil).Reducer(r.slice.Stage, r.slice.Rank)}
		reduce = r.reduce
	}
	if r.model, err = model.Load(r.ops, l.cfg.Weights, l.cfg.Spec, r.slice, limits, reduce); err != nil {
		return fmt.Errorf("engine: load stage %d rank %d: %w", r.slice.Stage, r.slice.Rank, err)
	}
	return nil
}

// Epoch makes the engine of a new epoch, with empty pools and index on every
// rank. The function runs it until ctx ends or a rank is lost; one epoch at a time.
func (l *Local) Epoch(epoch uint64, deliver func([]Output)) (*Engine, func(context.Context) error, error) {
	limits := l.cfg.Limits
	limits.Epoch = epoch
	stages, tensor := l.cfg.Layout.Pipeline, l.cfg.Layout.Tensor
	depth := cmp.Or(l.cfg.Depth, stages+1)
	mesh := comm.NewMesh(comm.Here(stages, tensor), "", depth, nil)
	var members []group.Rank
	for i := range l.ranks {
		r := &l.ranks[i]
		place := Place{First: r.slice.First(), Last: r.slice.Last(), Samples: r.slice.Last() && r.slice.Rank == 0}
		if len(l.ranks) > 1 {
			place.Pipe = mesh.Pipe(r.slice.Stage, r.slice.Rank)
		}
		if r.reduce != nil {
			r.reduce.Reducer = mesh.Reducer(r.slice.Stage, r.slice.Rank)
		}
		member, err := NewRank(r.ops, r.model, limits, place)
		if err != nil {
			return nil, nil, err
		}
		members = append(members, member)
	}
	g := group.NewLocal(depth, members...)
	g.End = mesh.Close
	e, err := New(Config{Limits: limits, Group: g, Depth: depth, Deliver: deliver})
	if err != nil {
		return nil, nil, err
	}
	return e, func(ctx context.Context) error {
		run, ctx := errgroup.WithContext(ctx)
		run.Go(func() error { return g.Run(ctx) })
		run.Go(func() error { return e.Run(ctx) })
		return run.Wait()
	}, nil
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
