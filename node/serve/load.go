package serve

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"

	"manta/kernels"
	"manta/node/wire"
	"manta/runtime/engine"
	"manta/runtime/kv"
	"manta/runtime/model"
	"manta/runtime/plan"
	"manta/runtime/sched"
	"manta/runtime/weights"
)

// loadedReplica is a replica's weights on this node's devices.
type loadedReplica struct {
	assignment wire.Assignment
	weights    *weights.Model
	local      *engine.Local
}

// serves reports whether an assignment runs on what is loaded: a lost rank may
// have moved to another node meanwhile, while those here are what they were.
func (l *loadedReplica) serves(a wire.Assignment, node string) bool {
	key := func(a wire.Assignment) string {
		a.Shards = slices.DeleteFunc(slices.Clone(a.Shards), func(s wire.Shard) bool { return s.Node != node })
		a.Epoch = 0
		return fmt.Sprintf("%+v", a)
	}
	return key(l.assignment) == key(a)
}

// release gives back what loading took, once a step has run: a processor has packed
// all that it multiplies with by then, and reads single rows where they lie.
func (l *loadedReplica) release() {
	if kindOf(l.assignment.Shards[0].Device) == "cpu" {
		l.weights.Release()
	}
	debug.FreeOSMemory()
}

func (l *loadedReplica) close() error { return errors.Join(l.local.Close(), l.weights.Close()) }

// load pulls the model and puts every rank's slice onto its device.
func (r *replica) load(ctx context.Context, a wire.Assignment) (*loadedReplica, error) {
	nodes, devices, err := r.server.places(a)
	if err != nil {
		return nil, err
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
	w, source, err := model.Open(pulled.Path, a.Settings.LoadFormat)
	if err != nil {
		return nil, err
	}
	spec, err := model.Describe(source)
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	// A GPU's loading reads the files by itself, all cores at once, and ranks of a
	// spread group need a part of them alone.
	if kindOf(a.Shards[0].Device) != KindCUDA && len(r.server.others(a)) == 0 {
		if err := w.Prefetch(ctx, r.progress); err != nil {
			return nil, errors.Join(err, w.Close())
		}
	}
	cache, err := spec.Shapes().CacheType(kindOf(a.Shards[0].Device), a.Settings.KVCacheDType, a.Settings.DType)
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	local, err := engine.LoadLocal(engine.LocalConfig{
		Weights: source, Spec: spec, Layout: a.Layout, CacheType: cache,
		Here: func(stage, rank int) bool { return nodes[stage][rank] == r.server.cfg.Node },
		Limits: sched.Limits{
			Blocks: a.Blocks, MaxSequences: a.Settings.MaxNumSeqs, MaxRows: a.Settings.MaxNumBatchedTokens,
			MaxWanted: plan.Wanted(a.Settings.MaxNumSeqs), MaxLen: a.MaxLen,
			PrefixCaching: a.Settings.PrefixCaching, Seed: kv.Seed(w.Digest()),
		},
		Open: func(stage, rank int) (kernels.Ops, error) {
			return r.server.open(devices[stage][rank], Want{DType: a.Settings.DType, Seats: a.Settings.MaxNumSeqs})
		},
	})
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return &loadedReplica{assignment: a, weights: w, local: local}, nil
}
