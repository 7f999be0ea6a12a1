package serve

import (
	"context"
	"errors"
	"fmt"

	"manta/node/wire"
	"manta/runtime/model"
	"manta/runtime/weights"
)

// Resolve finds out what a model reference stands for: it pulls the model, and
// gives what heads need to know of it. An error is told in the answer.
func (s *Server) Resolve(ctx context.Context, q wire.Resolve) wire.Resolved {
	answer, err := s.resolve(ctx, q)
	if err != nil {
		return wire.Resolved{Version: wire.Version, Model: q.Model, Err: err.Error()}
	}
	return answer
}

func (s *Server) resolve(ctx context.Context, q wire.Resolve) (_ wire.Resolved, err error) {
	if q.Version > wire.Version {
		return wire.Resolved{}, fmt.Errorf("serve: resolve of version %d, this node speaks %d", q.Version, wire.Version)
	}
	ref, err := weights.ParseReference(q.Model)
	if err != nil {
		return wire.Resolved{}, err
	}
	pulled, err := s.cfg.Library(q.DownloadDir).Pull(ctx, ref, nil)
	if err != nil {
		return wire.Resolved{}, err
	}
	w, opened, err := model.Open(pulled.Path, q.LoadFormat)
	if err != nil {
		return wire.Resolved{}, err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	spec, err := model.Describe(opened)
	if err != nil {
		return wire.Resolved{}, err
	}
	source, err := opened.Tokenizer()
	if err != nil {
		return wire.Resolved{}, err
	}
	tokenizer, err := wire.Marshal(source)
	if err != nil {
		return wire.Resolved{}, fmt.Errorf("serve: encode the tokenizer: %w", err)
	}
	template, _ := w.ChatTemplate()
	g := w.Generation()
	return wire.Resolved{
		Version: wire.Version, Model: pulled.Name, Revision: pulled.Revision, Shapes: spec.Shapes(),
		Tokenizer: tokenizer, Template: template, Weights: w.Digest(),
		Generation: wire.Generation{
			EndTokens: w.EndTokens(), Temperature: float(g.Temperature), TopP: float(g.TopP), TopK: g.TopK,
			MinP: float(g.MinP), RepetitionPenalty: float(g.RepetitionPenalty),
		},
	}, nil
}

func float(f *float64) *float32 {
	if f == nil {
		return nil
	}
	narrow := float32(*f)
	return &narrow
}
