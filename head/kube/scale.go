package kube

import (
	"context"
	"log/slog"
	"time"

	"manta/internal/telemetry"
)

// scaleEvery is between two looks at what there is to do: a request that meets no
// node waits at most so much longer.
const scaleEvery = time.Second

// replicator is the StatefulSet as the scaler sees it.
type replicator interface {
	Replicas(ctx context.Context, statefulSet string) (int, error)
	SetReplicas(ctx context.Context, statefulSet string, replicas int) error
}

var _ replicator = (*API)(nil)

// Scaler takes a StatefulSet of nodes to zero when no head has had anything to do
// for a while, and to one when a request waits. Between, it leaves the number to
// others: an autoscaler, or a person. Only the leader's acts.
type Scaler struct {
	API         replicator
	Cluster     Cluster
	StatefulSet string
	Idle        time.Duration // without work until zero
	Log         *slog.Logger

	busy time.Time // when there was work last, or this head did not lead
}

// Run acts until ctx ends.
func (s *Scaler) Run(ctx context.Context) error {
	ticker := time.NewTicker(scaleEvery)
	defer ticker.Stop()
	s.busy = time.Now()
	for {
		if err := s.look(ctx); err != nil && ctx.Err() == nil {
			s.Log.Warn("scale", "statefulset", s.StatefulSet, "error", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
}

// look compares what there is to do with what there is to do it.
func (s *Scaler) look(ctx context.Context) error {
	if !s.Cluster.Leading() {
		s.busy = time.Now()
		return nil
	}
	ctx, stop := context.WithTimeout(ctx, 5*time.Second)
	defer stop()
	loads, err := s.Cluster.Loads(ctx)
	if err != nil {
		return err
	}
	var sum telemetry.Load
	for _, load := range loads {
		sum = sum.Add(load)
	}
	if sum.Waiting+sum.Running > 0 {
		s.busy = time.Now()
	}
	nodes := len(s.Cluster.Nodes())
	switch {
	case sum.Waiting > 0 && nodes == 0:
		return s.set(ctx, 1, func(now int) bool { return now == 0 })
	case time.Since(s.busy) >= s.Idle:
		s.busy = time.Now() // looked again after as long
		return s.set(ctx, 0, func(now int) bool { return now > 0 })
	}
	return nil
}

// set changes the number of pods if it is one that is to be changed.
func (s *Scaler) set(ctx context.Context, to int, from func(int) bool) error {
	now, err := s.API.Replicas(ctx, s.StatefulSet)
	if err != nil || !from(now) {
		return err
	}
	s.Log.Info("scale", "statefulset", s.StatefulSet, "from", now, "to", to)
	return s.API.SetReplicas(ctx, s.StatefulSet, to)
}
