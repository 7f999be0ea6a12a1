// Package measure runs a model in this process, without head, node or HTTP: how
// fast its engine is, and how far the products of one device are from another's.
// `manta bench engine` and `manta bench accuracy` print what it gives.
//
// It owns the devices that it opens and closes them before it returns.
package measure

import (
	"errors"

	"manta/kernels"
	"manta/parallel/shard"
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

// whole is the layout of one rank.
var whole = shard.Layout{Tensor: 1, Pipeline: 1}
