//go:build e2e && upgrade && unix

package cluster

import (
	"os"
	"syscall"
	"testing"

	"manta/head/api"
)

// renew ends a member in order and starts it as another program.
func (b *bench) renew(name, binary string) {
	b.t.Helper()
	b.signal(name, syscall.SIGTERM)
	<-b.Member(name).Ended
	b.binary = binary
	b.Start(name)
}

// A cluster of an earlier program is upgraded member by member while streams run,
// heads first or nodes first: none fails, each gives the tokens of the undisturbed
// run, and what was written before is there. MANTA_BASE_BINARY names the earlier
// program; make e2e-upgrade builds it.
func TestUpgrade(t *testing.T) {
	old, now := os.Getenv("MANTA_BASE_BINARY"), binary(t)
	if old == "" {
		t.Fatal("MANTA_BASE_BINARY is not set: make e2e-upgrade")
	}
	heads, nodes := []string{"head0", "head1", "head2"}, []string{"node0", "node1", "node2", "node3"}
	for _, order := range []struct {
		name  string
		first []string
		then  []string
	}{{"heads first", heads, nodes}, {"nodes first", nodes, heads}} {
		t.Run(order.name, func(t *testing.T) {
			t.Setenv("MANTA_BINARY", old)
			b := newBench(t)
			// What "auto" stands for may change from one program to the next.
			b.deployWith(map[string]any{"dtype": "float32"})
			undisturbed := b.all(func() {})
			b.write(0, "of-the-old-program")
			for _, name := range append(order.first, order.then...) {
				stories := b.all(func() { b.renew(name, now) })
				for i, s := range stories {
					if s.err != nil {
						t.Errorf("%s: stream %d: %v", name, i, s.err)
					} else if s.text != undisturbed[i].text {
						t.Errorf("%s: stream %d: %q, undisturbed %q", name, i, s.text, undisturbed[i].text)
					}
				}
				b.settle()
				b.until("a ready replica", func(s *api.ClusterState) bool { d := ofModel(s); return d != nil && d.Ready == 1 })
			}
			for i := range headCount {
				b.knows(i, "of-the-old-program")
			}
			b.write(1, "of-the-new-program")
			b.knows(2, "of-the-new-program")
		})
	}
}
