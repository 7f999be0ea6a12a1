package kube

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"manta/internal/telemetry"
)

// set is a StatefulSet in memory.
type set struct {
	replicas, calls int
	err             error
}

func (s *set) Replicas(context.Context, string) (int, error) { s.calls++; return s.replicas, s.err }
func (s *set) SetReplicas(_ context.Context, _ string, n int) error {
	s.replicas = n
	return s.err
}

// The leader goes to zero after so long without work, to one when a request waits,
// and leaves every other number alone.
func TestScaler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cluster := &heads{nodes: []string{"n"}, loads: map[string]telemetry.Load{"m": {Running: 1}}}
		nodes := &set{replicas: 3}
		s := &Scaler{API: nodes, Cluster: cluster, StatefulSet: "node", Idle: time.Minute, Log: slog.New(slog.DiscardHandler)}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		expect := func(after time.Duration, replicas int, why string) {
			t.Helper()
			<-time.After(after)
			synctest.Wait()
			if nodes.replicas != replicas {
				t.Fatalf("%s: %d replicas, want %d", why, nodes.replicas, replicas)
			}
		}
		expect(time.Hour, 3, "while a request runs")
		cluster.loads = nil
		expect(50*time.Second, 3, "before the time is up")
		cluster.err = errors.New("a head does not tell")
		expect(time.Hour, 3, "while a head does not tell")
		cluster.err = nil
		expect(time.Minute, 0, "without work")
		cluster.nodes = nil
		expect(time.Hour, 0, "still without")
		cluster.loads = map[string]telemetry.Load{"m": {Waiting: 2}}
		expect(2*time.Second, 1, "when requests wait")
		calls := nodes.calls
		cluster.nodes = []string{"n"}
		expect(time.Hour, 1, "while there is a node, others rule")
		if nodes.calls != calls {
			t.Errorf("the API was asked %d times for nothing", nodes.calls-calls)
		}
		cluster.loads, cluster.follow = nil, true
		expect(time.Hour, 1, "who does not lead, does nothing")
		stop()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}
