//go:build e2e && unix

package cluster

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"manta/head/api"
)

// serve deploys the small model and waits for so many ready replicas.
func (b *bench) serve(replicas any, ready int) {
	b.t.Helper()
	b.until("heads and nodes", func(s *api.ClusterState) bool { return len(s.Heads) == headCount && len(s.Nodes) == nodeCount })
	c := b.client(0)
	defer c.Close()
	body := map[string]any{"model": "smollm2", "replicas": replicas, "max_model_len": 512, "max_num_seqs": 16, "max_num_batched_tokens": 64}
	if err := c.Post(b.t.Context(), "/api/cluster/deployments", body, nil); err != nil {
		b.t.Fatal(err)
	}
	b.readyReplicas(ready)
}

func (b *bench) readyReplicas(n int) *api.ClusterState {
	b.t.Helper()
	return b.until(fmt.Sprint(n, " ready replicas"), func(s *api.ClusterState) bool {
		return len(s.Deployments) == 1 && s.Deployments[0].Ready == n && len(s.Deployments[0].Replicas) == n
	})
}

// same fails the test for each stream that failed or told another story.
func (b *bench) same(what string, undisturbed, stories []story) {
	b.t.Helper()
	for i, s := range stories {
		if s.err != nil {
			b.t.Errorf("%s: stream %d: %v", what, i, s.err)
		} else if s.text != undisturbed[i].text {
			b.t.Errorf("%s: stream %d: %q, undisturbed %q", what, i, s.text, undisturbed[i].text)
		}
	}
}

// node gives the state of a node by its stable name.
func node(s *api.ClusterState, name string) (api.Node, bool) {
	i := slices.IndexFunc(s.Nodes, func(n api.Node) bool { return strings.HasPrefix(n.ID, name+"-") })
	if i < 0 {
		return api.Node{}, false
	}
	return s.Nodes[i], true
}

// stop sends SIGTERM and waits for a clean end.
func (b *bench) stop(name string) {
	b.t.Helper()
	b.signal(name, syscall.SIGTERM)
	b.ended(name)
}

// leave takes a member out of the cluster for good.
func (b *bench) leave(name string) {
	b.t.Helper()
	b.manta("leave", "--data-dir", b.Data(name))
	b.ended(name)
}

func (b *bench) ended(name string) {
	b.t.Helper()
	m := b.Member(name)
	if code := m.Wait(b.t); code != 0 {
		b.t.Errorf("%s ended with %d", name, code)
	}
}

// manta runs a command of the program to its end.
func (b *bench) manta(args ...string) {
	b.t.Helper()
	if out, err := b.run(args...); err != nil {
		b.t.Fatalf("manta %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// A node that is drained, by its operator or by SIGTERM, first has its replica
// come up elsewhere; streams move at most, and none fails.
func TestDrainUnderLoad(t *testing.T) {
	b := newBench(t)
	b.serve(1, 1)
	undisturbed := b.all(func() {})
	b.same("undisturbed", undisturbed, undisturbed)
	url := "http://" + b.API[0]
	for range *rounds {
		victim := b.rank(0)
		b.same("manta drain", undisturbed, b.all(func() {
			b.manta("drain", victim, "--url", url)
			s := b.readyReplicas(1)
			if n, ok := node(s, victim); !ok || len(n.Replicas) != 0 || !n.Drained {
				t.Errorf("%s after its drain: %+v", victim, n)
			}
		}))
		b.manta("undrain", victim, "--url", url)

		victim = b.rank(0)
		b.same("SIGTERM", undisturbed, b.all(func() { b.stop(victim) }))
		b.Start(victim)
		b.readyReplicas(1)

		victim = b.rank(0)
		b.same("manta leave", undisturbed, b.all(func() { b.leave(victim) }))
		b.until(victim+" forgotten", func(s *api.ClusterState) bool { _, ok := node(s, victim); return !ok })
		b.Start(victim)
		b.until(victim+" back", func(s *api.ClusterState) bool { _, ok := node(s, victim); return ok })
	}
}

// Heads that stop one after the other stay voters; one that leaves is none, and
// comes back as another. No stream fails meanwhile.
func TestHeadsStopAndLeave(t *testing.T) {
	b := newBench(t)
	b.serve(1, 1)
	undisturbed := b.all(func() {})
	for i := range headCount {
		name := fmt.Sprint("head", i)
		b.same("SIGTERM of "+name, undisturbed, b.all(func() { b.stop(name) }))
		if s := b.until("the others", func(s *api.ClusterState) bool { return !s.Stale }); len(s.Heads) != headCount {
			t.Errorf("after %s stopped: %+v", name, s.Heads)
		}
		b.Start(name)
		b.untilReady(i)
	}
	before := b.until("heads", func(s *api.ClusterState) bool { return len(s.Heads) == headCount })
	b.same("head0 leaves", undisturbed, b.all(func() { b.leave("head0") }))
	b.until("two heads", func(s *api.ClusterState) bool { return !s.Stale && len(s.Heads) == headCount-1 })
	b.Start("head0")
	s := b.until("three heads", func(s *api.ClusterState) bool { return !s.Stale && len(s.Heads) == headCount })
	if slices.Equal(s.Heads, before.Heads) {
		t.Errorf("head0 came back with its old id: %+v", s.Heads)
	}
}
