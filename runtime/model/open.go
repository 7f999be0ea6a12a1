package model

import (
	"errors"

	"manta/runtime/token"
	"manta/runtime/weights"
)

// An Opened is a model as ranks load it and as heads are told of it.
type Opened interface {
	Source
	Tokenizer() (token.Source, error)
}

// Open opens what was pulled, in the way that --load-format names: the
// weights, or config.json alone with weights that are made up. Closing the
// weights.Model closes it.
func Open(path, format string) (*weights.Model, Opened, error) {
	if format != "dummy" {
		w, err := weights.Open(path)
		return w, w, err
	}
	w, err := weights.OpenConfig(path)
	if err != nil {
		return nil, nil, err
	}
	made, err := Dummy(w)
	if err != nil {
		return nil, nil, errors.Join(err, w.Close())
	}
	return w, made, nil
}
