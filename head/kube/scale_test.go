package kube

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"manta/internal/telemetry"
)

// set is a StatefulSet in memory.
type set struct {
	sync.Mutex
	replicas, calls int
}

func (s *set) Replicas(context.Context, string) (int, error) {
	s.Lock()
	defer s.Unlock()
	s.calls++
	return s.replicas, nil
}

func (s *set) SetReplicas(_ context.Context, _ string, n int) error {
	s.Lock()
	defer s.Unlock()
	s.replicas = n
	return nil
}

func (s *set) asked() (replicas, calls int) {
	s.Lock()
	defer s.Unlock()
	return s.replicas, s.calls
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
		when := func(change func(), after time.Duration, replicas int, why string) {
			t.Helper()
			cluster.Lock()
			change()
			cluster.Unlock()
			<-time.After(after)
			synctest.Wait()
			if now, _ := nodes.asked(); now != replicas {
				t.Fatalf("%s: %d replicas, want %d", why, now, replicas)
			}
		}
		when(func() {}, time.Hour, 3, "while a request runs")
		when(func() { cluster.loads = nil }, 50*time.Second, 3, "before the time is up")
		when(func() { cluster.err = errors.New("a head does not tell") }, time.Hour, 3, "while a head does not tell")
		when(func() { cluster.err = nil }, time.Minute, 0, "without work")
		when(func() { cluster.nodes = nil }, time.Hour, 0, "still without")
		when(func() { cluster.loads = map[string]telemetry.Load{"m": {Waiting: 2}} }, 2*time.Second, 1, "when requests wait")
		_, before := nodes.asked()
		when(func() { cluster.nodes = []string{"n"} }, time.Hour, 1, "while there is a node, others rule")
		if _, now := nodes.asked(); now != before {
			t.Errorf("the API was asked %d times for nothing", now-before)
		}
		when(func() { cluster.loads, cluster.follow = nil, true }, time.Hour, 1, "who does not lead, does nothing")
		stop()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}
