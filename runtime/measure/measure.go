// Package measure runs a model in this process, without head, node or HTTP: how
// fast its engine is, and how far the products of one device are from another's.
// `manta bench engine` and `manta bench accuracy` print what it gives.
//
// It owns the devices that it opens and closes them before it returns.
package measure

import (
	"context"
	"errors"

	"manta/kernels"
	"manta/parallel/shard"
	"manta/runtime/engine"
	"manta/runtime/model"
	"manta/runtime/weights"
)

// A Device is opened once for each measurement, which closes it.
type Device struct {
	Open  func() (kernels.Ops, error)
	Cache kernels.DType // of stored keys and values
}

// opened is a model's file with what it says.
type opened struct {
	weights *weights.Model
	spec    *model.Spec
}

func open(path string) (*opened, error) {
	w, err := weights.Open(path)
	if err != nil {
		return nil, err
	}
	spec, err := model.Describe(w)
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return &opened{w, spec}, nil
}

// drive runs an engine in its first epoch until stop is called, which frees its ranks
// and then its weights. On an error the ranks are free, the weights are not.
func drive(ctx context.Context, local *engine.Local, deliver func(context.Context, []engine.Output), weights func() error) (_ *engine.Engine, stop func() error, err error) {
	ctx, cancel := context.WithCancel(ctx)
	epoch, err := local.Epoch(1, engine.Where{})
	if err != nil {
		cancel()
		return nil, nil, errors.Join(err, local.Close())
	}
	e, _, run, err := epoch.Drive(func(o []engine.Output) { deliver(ctx, o) })
	if err != nil {
		cancel()
		return nil, nil, errors.Join(err, local.Close())
	}
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	return e, func() error {
		cancel()
		err := <-ended
		if errors.Is(err, context.Canceled) {
			err = nil
		}
		return errors.Join(err, local.Close(), weights())
	}, nil
}

// whole is the layout of one rank.
var whole = shard.Layout{Tensor: 1, Pipeline: 1}
