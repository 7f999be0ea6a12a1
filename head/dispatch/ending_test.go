package dispatch_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"manta/head/dispatch"
	"manta/head/state"
)

// A deleted deployment's requests are told: those that wait at once, those that run
// when their replica goes, after which no View need come any more.
func TestDeletedDeployment(t *testing.T) {
	within(t, dispatch.Config{}, func(t *testing.T, b *bench) {
		b.cluster.Step = time.Second
		b.cluster.AddReplica("m", "r1", "n1", 1, 8)
		r := b.request(100)
		r.Deadline = time.Now().Add(time.Minute)
		s := submit(t, b, r)
		if _, err := s.Next(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.cluster.Update(func(v *state.View) { delete(v.Deployments, "m") })
		b.cluster.Kill("n1")
		began := time.Now()
		if _, _, err := read(t, s); !errors.Is(err, dispatch.ErrUnknown) || time.Since(began) > time.Second {
			t.Errorf("after %v: error %v", time.Since(began), err)
		}
	})
	within(t, dispatch.Config{}, func(t *testing.T, b *bench) {
		b.cluster.Update(func(v *state.View) { v.Deployments["m"] = state.Deployment{Name: "m"} })
		s := submit(t, b, b.request(3))
		b.cluster.Update(func(v *state.View) { delete(v.Deployments, "m") })
		if _, _, err := read(t, s); !errors.Is(err, dispatch.ErrUnknown) {
			t.Errorf("error %v", err)
		}
	})
}

// Drain serves what is in progress, refuses what is new, and then ends.
func TestDrain(t *testing.T) {
	within(t, dispatch.Config{}, func(t *testing.T, b *bench) {
		b.cluster.Step = time.Millisecond
		b.cluster.AddReplica("m", "r1", "n1", 1, 8)
		s := submit(t, b, b.request(6))
		drained := make(chan error, 1)
		go func() { drained <- b.Drain(t.Context()) }()
		synctest.Wait()
		if _, err := b.Submit(b.request(6)); !errors.Is(err, dispatch.ErrDraining) {
			t.Errorf("submit while draining: %v", err)
		}
		if texts, _, err := read(t, s); err != nil || texts[0] != "hello " {
			t.Errorf("%q, %v", texts, err)
		}
		if err := <-drained; err != nil {
			t.Errorf("drain: %v", err)
		}
	})
}
