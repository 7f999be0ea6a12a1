//go:build e2e && unix

package cluster

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"manta/head/api"
	"manta/head/client"
	"manta/internal/processtest"
)

// write asks one head for a deployment of no replica.
func (b *bench) write(head int, name string) {
	b.t.Helper()
	c := client.New("", "http://"+b.API[head])
	defer c.Close()
	body := map[string]any{"model": "smollm2", "name": name, "replicas": 0, "max_model_len": 512}
	if err := c.Post(b.t.Context(), "/api/cluster/deployments", body, nil); err != nil {
		b.t.Fatalf("%s at head %d: %v", name, head, err)
	}
}

// knows fails the test unless a head knows a deployment, at once.
func (b *bench) knows(head int, name string) {
	b.t.Helper()
	c := client.New("", "http://"+b.API[head])
	defer c.Close()
	if err := c.Get(b.t.Context(), "/api/cluster/deployments/"+name, nil); err != nil {
		b.t.Errorf("head %d does not know of %s: %v", head, name, err)
	}
}

func (b *bench) names(prefix string) (names []string) {
	for i := range headCount {
		names = append(names, fmt.Sprint(prefix, i))
	}
	return names
}

// Whatever heads go through, what was accepted is there: a read after a write sees
// it on any head; a head that stops hands its leadership over; one with an empty
// disk takes its old place; all come back with other addresses; and of a quorum
// that is lost for good one head's disk is enough.
func TestHeads(t *testing.T) {
	b := newBench(t)
	b.whole()

	t.Run("a read after a write, on any head", func(t *testing.T) {
		for i := range 20 {
			name := fmt.Sprint("read-", i)
			b.write(i%headCount, name)
			b.knows((i+1)%headCount, name)
			b.knows((i+2)%headCount, name)
		}
	})

	t.Run("SIGTERM of the leading head", func(t *testing.T) {
		leader, _ := b.leader()
		since := time.Now()
		b.signal(leader, syscall.SIGTERM)
		<-b.Member(leader).Ended
		took := b.newLeader(leader, since)
		t.Logf("another leads %v after the signal", took.Round(time.Millisecond))
		b.Start(leader)
		b.whole()
	})

	t.Run("an empty disk", func(t *testing.T) {
		b.kill("head2")
		if err := os.RemoveAll(b.Data("head2")); err != nil {
			t.Fatal(err)
		}
		before := b.until("three heads", func(s *api.ClusterState) bool { return len(s.Heads) == headCount })
		b.Start("head2")
		b.until("the new head alone", func(s *api.ClusterState) bool {
			for _, old := range before.Heads {
				if nameOf(old.ID) != "head2" {
					continue
				}
				for _, h := range s.Heads {
					if h.ID == old.ID {
						return false
					}
				}
			}
			return len(s.Heads) == headCount
		})
		b.knows(2, "read-0")
		// It votes: with it and one other head there is a quorum.
		var mend func()
		b.until("a quorum with the new head", func(*api.ClusterState) bool {
			if mend == nil {
				mend = b.kill("head1")
			}
			s, err := b.stateOf(2, 2*time.Second)
			return err == nil && !s.Stale
		})
		b.write(2, "with-the-new-head")
		mend()
		b.whole()
		b.knows(1, "with-the-new-head")
	})

	t.Run("no quorum", func(t *testing.T) {
		c := client.New("", "http://"+b.API[0])
		defer c.Close()
		body := map[string]any{"model": "smollm2", "name": "answers", "max_model_len": 512}
		if err := c.Post(t.Context(), "/api/cluster/deployments", body, nil); err != nil {
			t.Fatal(err)
		}
		running := func(s *api.ClusterState) bool {
			return slices.ContainsFunc(s.Deployments, func(d api.Deployment) bool { return d.Name == "answers" && d.Ready == 1 })
		}
		b.until("a ready replica", running)
		b.untilReady(0)
		b.kill("head1")
		b.kill("head2")
		alone := func() (*api.ClusterState, error) { return b.stateOf(0, patience) } // it asks for a leader first
		b.await("no leader", alone, func(s *api.ClusterState) bool { return s.Leader == "" && running(s) })
		if err := c.Get(t.Context(), "/readyz", nil); err != nil {
			t.Errorf("a head that answers is not ready: %v", err)
		}
		few := 4
		if _, err := c.Complete(t.Context(), "answers", "x", client.Options{MaxTokens: &few}, func(client.Piece) error { return nil }); err != nil {
			t.Errorf("without a leader: %v", err)
		}
		b.kill("head0")
		b.Start("head0") // it is not back until it has met a leader
		b.await("an answer", alone, func(s *api.ClusterState) bool { return s.Stale })
		if err := c.Get(t.Context(), "/readyz", nil); err == nil {
			t.Error("a head that has not found its cluster is ready")
		}
		b.Start("head1")
		b.Start("head2")
		b.whole()
		b.untilReady(0)
		if err := c.Delete(t.Context(), client.DeploymentPath("answers")); err != nil {
			t.Error(err)
		}
	})

	t.Run("other addresses", func(t *testing.T) {
		for _, name := range b.names("head") {
			b.kill(name)
		}
		free, err := processtest.Addresses(2 * headCount)
		if err != nil {
			t.Fatal(err)
		}
		b.Gossip, b.API = free[:headCount], free[headCount:]
		b.meet()
		for i := range headCount {
			b.Head(i)
		}
		b.whole()
		for i := range headCount {
			b.knows(i, "with-the-new-head")
		}
		b.write(0, "at-other-addresses") // a node resolves it: they found the heads again
	})

	t.Run("a lost quorum", func(t *testing.T) {
		for _, name := range b.names("head") {
			b.kill(name)
		}
		for _, name := range []string{"head1", "head2"} {
			if err := os.RemoveAll(b.Data(name)); err != nil {
				t.Fatal(err)
			}
		}
		out, err := b.run("recover", "--data-dir", b.Data("head0"))
		if err != nil || !strings.Contains(out, "only voter") {
			t.Fatalf("%v: %s", err, out)
		}
		b.Start("head0")
		b.untilOf(0, "a leader alone", func(s *api.ClusterState) bool { return !s.Stale && nameOf(s.Leader) == "head0" })
		b.knows(0, "at-other-addresses")
		b.Start("head1")
		b.Start("head2")
		b.whole()
		for i := range headCount {
			b.knows(i, "at-other-addresses")
		}
		b.write(1, "after-the-recovery")
		b.kill("head0") // the newcomers vote: two of three
		b.until("a quorum of newcomers", func(s *api.ClusterState) bool { return s.Leader != "" && nameOf(s.Leader) != "head0" })
		b.knows(2, "after-the-recovery")
	})
}
