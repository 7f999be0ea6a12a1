//go:build e2e

package cluster

import (
	"context"
	"fmt"
	"os/exec"
	"testing"
	"time"

	"manta/internal/processtest"
	"manta/internal/relay"
)

// relays stand between the members, for users who are not root.
type relays struct {
	t    *testing.T
	mesh *relay.Mesh
}

var _ network = (*relays)(nil)

func newRelays(t *testing.T) network {
	r := &relays{t, relay.NewMesh(gossipPort, raftPort, linkPort, apiPort)}
	t.Cleanup(r.mesh.Close)
	return r
}

func (r *relays) add(member string) {
	r.t.Helper()
	if err := r.mesh.Add(member); err != nil {
		r.t.Fatal(err)
	}
}

func (r *relays) address(member string) string { return r.mesh.Before(member) }
func (r *relays) host(member string) string    { return r.mesh.Behind(member) }

func (r *relays) command(member, binary string, args ...string) *exec.Cmd {
	args = append(args, "--advertise", r.address(member), "--gossip-port", fmt.Sprint(gossipPort), "--link-port", fmt.Sprint(linkPort))
	if args[0] == "head" {
		args = append(args, "--raft-port", fmt.Sprint(raftPort))
	}
	return r.mesh.Command(member, processtest.Command(binary, args...))
}

func (r *relays) isolate(member string) (heal func()) { return r.cut(member, "") }

func (r *relays) cut(a, b string) (heal func()) {
	r.t.Helper()
	ctx, stop := context.WithTimeout(context.Background(), 10*time.Second)
	defer stop()
	heal, err := r.mesh.Cut(ctx, a, b)
	if err != nil {
		r.t.Fatal(err)
	}
	return heal
}
