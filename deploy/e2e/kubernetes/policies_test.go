//go:build kubernetes && linux

package kubernetes

import (
	"net"
	"strings"
	"sync"
	"testing"
)

// With the chart's NetworkPolicies enforced everything works that did, and members'
// ports are closed to all but members: raft to all but heads, the API to nodes.
func TestPolicies(t *testing.T) {
	t.Cleanup(func() { report(t, namespace) })
	c := installed(t)
	podsReady(t, namespace, nodePods, 1)
	if err := cluster.Apply(t.Context(), stranger); err != nil {
		t.Fatal(err)
	}
	defer kubectl(t, "-n", namespace, "delete", "pod/stranger", "secret/stranger", "--grace-period=1")
	kubectl(t, "-n", namespace, "wait", "--for=jsonpath={.status.phase}=Running", "pod/stranger", "--timeout=150s")
	if err := cluster.EnforcePolicies(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := cluster.IgnorePolicies(); err != nil {
			t.Error(err)
		}
	}()
	head := kubectl(t, "-n", namespace, "get", "pod", "manta-head-0", "-o", "jsonpath={.status.podIP}")
	var all sync.WaitGroup
	for pod, opens := range map[string]string{"stranger": "8000 9090", "manta-node-0": "7946 7948", "manta-head-1": "7946 7947 7948"} {
		pid := processOf(t, pod)
		for _, port := range []string{"7946", "7947", "7948", "8000", "9090"} {
			all.Go(func() {
				err := knockFrom(t.Context(), pid, net.JoinHostPort(head, port), plain)
				if want := strings.Contains(opens, port); (err == nil) != want {
					t.Errorf("a head's port %s from %s: want open %v: %v", port, pod, want, err)
				}
			})
		}
	}
	all.Wait()
	l := startLoad(t, 2)
	defer l.end()
	l.through("policies enforced: scale nodes 1 to 2", func(t *testing.T) {
		scale(t, 2)
		replicasReady(t, c, 2)
	})
	l.through("policies enforced: delete the leader's pod", func(t *testing.T) {
		deletePods(t, leader(t))
		podsReady(t, namespace, headPods, headsOf)
		replicasReady(t, c, 2)
	})
	scale(t, 1)
}
