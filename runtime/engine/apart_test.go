package engine_test

import (
	"context"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"manta/parallel/group"
	"manta/runtime/engine"
)

// loadApart loads each stage as a process of its own would.
func loadApart(cfg engine.LocalConfig) ([]*engine.Local, error) {
	var stages []*engine.Local
	for own := range cfg.Layout.Pipeline {
		cfg.Here = func(stage, _ int) bool { return stage == own }
		local, err := engine.LoadLocal(cfg)
		if err != nil {
			return nil, err
		}
		stages = append(stages, local)
	}
	return stages, nil
}

// driveApart begins an epoch of such stages, which share nothing but messages.
func driveApart(stages []*engine.Local, layout [][]string, deliver func([]engine.Output)) (*engine.Engine, func(context.Context) error, error) {
	epochs := map[string]*engine.Epoch{}
	carrier := func(node string, _ bool, head, rows []byte) error {
		return epochs[node].Mesh.Deliver(slices.Concat(head, rows))
	}
	var remotes []group.Remote
	for i, local := range stages {
		self := layout[i][0]
		epoch, err := local.Epoch(1, engine.Where{Nodes: layout, Self: self, Carrier: carrier})
		if err != nil {
			return nil, nil, err
		}
		if epochs[self] = epoch; i > 0 {
			remotes = append(remotes, group.Remote{Node: self, Ranks: len(layout[i]), Send: func(_ context.Context, payload []byte) error {
				return epoch.Group.Send(payload)
			}})
		}
	}
	e, spread, drive, err := epochs[layout[0][0]].Drive(deliver, remotes...)
	return e, func(ctx context.Context) error {
		run, ctx := errgroup.WithContext(ctx)
		run.Go(func() error { return drive(ctx) })
		for _, remote := range remotes {
			run.Go(func() error {
				return epochs[remote.Node].Follow(ctx, func(_ context.Context, a group.Answer) error {
					a.Node = remote.Node
					return spread.Deliver(a)
				})
			})
		}
		return run.Wait()
	}, err
}

// stagesApart names a process for each stage.
func stagesApart(stages, ranks int) (nodes [][]string) {
	for stage := range stages {
		nodes = append(nodes, slices.Repeat([]string{fmt.Sprint("stage ", stage)}, ranks))
	}
	return nodes
}
