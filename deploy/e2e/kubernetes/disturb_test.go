//go:build kubernetes && linux

package kubernetes

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"manta/head/api"
	"manta/head/client"
)

const (
	headPods = "app.kubernetes.io/name=manta,app.kubernetes.io/component=head"
	nodePods = "app.kubernetes.io/name=manta,app.kubernetes.io/component=node"
	headsOf  = 3
)

// Whatever Kubernetes does to the pods, no stream fails, and each gives the tokens
// of the undisturbed run.
func TestNoStreamIsDropped(t *testing.T) {
	c := installed(t)
	l := startLoad(t, 4)
	defer l.end()
	l.through("nothing", func(*testing.T) {})
	l.through("scale nodes 1 to 3", func(t *testing.T) {
		scale(t, 3)
		replicasReady(t, c, 3)
	})
	l.through("delete the leader's pod", func(t *testing.T) {
		deletePods(t, leader(t))
		podsReady(t, namespace, headPods, headsOf)
	})
	l.through("delete a node's pod", func(t *testing.T) {
		deletePods(t, "manta-node-0")
		podsReady(t, namespace, nodePods, 3)
		replicasReady(t, c, 3)
	})
	to := func(image string) func(t *testing.T) {
		return func(t *testing.T) {
			_, tag, _ := strings.Cut(image, ":")
			upgrade(t, "--set-string", "image.tag="+tag, "--set", "node.replicas=3")
			podsReady(t, namespace, headPods, headsOf)
			replicasReady(t, c, 3)
		}
	}
	if fileThere(cluster.Image(filepath.Base(baseImage) + ".tar")) {
		l.through("back to an earlier commit's image", to(baseImage))
		l.through("helm upgrade from there, heads and nodes", to(newImage))
	} else {
		l.through("helm upgrade to another image, heads and nodes", to(newImage))
	}
	l.through("delete all heads at once", func(t *testing.T) {
		deletePods(t, "-l", headPods)
		podsReady(t, namespace, headPods, headsOf)
		replicasReady(t, c, 3)
	})
	l.through("cordon and drain a Kubernetes node", func(t *testing.T) {
		kubectl(t, "drain", "n2", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=150s")
		podsReady(t, namespace, headPods, headsOf)
		podsReady(t, namespace, nodePods, 3)
		replicasReady(t, c, 3)
	})
	kubectl(t, "uncordon", "n2")
	spread(t)
	replicasReady(t, c, 3)
	l.through("crash of a Kubernetes node", func(t *testing.T) {
		if err := cluster.CrashNode(t.Context(), "n2"); err != nil {
			t.Fatal(err)
		}
		until(t, "a living replica", patience, func(ctx context.Context) error {
			return has(ctx, c, func(s *api.ClusterState) bool { return s.Deployments[0].Ready >= 1 })
		})
		l.round(t.Context())
		until(t, "Kubernetes to notice", patience, func(ctx context.Context) error { // else what it says below is of before
			out, err := cluster.Kubectl(ctx, "get", "node", "n2", "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
			if err == nil && out == "True" {
				err = fmt.Errorf("n2 is ready")
			}
			return err
		})
		if err := cluster.StartNode(t.Context(), "n2"); err != nil {
			t.Fatal(err)
		}
		if err := cluster.NodesReady(t.Context()); err != nil {
			t.Fatal(err)
		}
		podsReady(t, namespace, headPods, headsOf)
		podsReady(t, namespace, nodePods, 3)
		replicasReady(t, c, 3)
	})
	tracesOver(t)
	l.through("scale nodes 3 to 1", func(t *testing.T) {
		scale(t, 1)
		replicasReady(t, c, 1)
	})
}

// scale does what the guide's reader does.
func scale(t *testing.T, nodes int) {
	t.Helper()
	kubectl(t, "-n", namespace, "scale", "statefulset/manta-node", fmt.Sprint("--replicas=", nodes))
	podsReady(t, namespace, nodePods, nodes)
}

// spread gives n2 one head and two nodes again: a drain leaves all pods where they
// went.
func spread(t *testing.T) {
	t.Helper()
	deletePods(t, "manta-head-2", "manta-node-1", "manta-node-2")
	podsReady(t, namespace, headPods, headsOf)
	podsReady(t, namespace, nodePods, 3)
}

// leader gives the name of the pod whose head leads.
func leader(t *testing.T) (name string) {
	t.Helper()
	until(t, "a leader", patience, func(ctx context.Context) error {
		all, err := pods(ctx, namespace, headPods)
		if err != nil {
			return err
		}
		for _, p := range all {
			metrics, err := get(ctx, "http://"+p.Status.PodIP+":9090/metrics")
			if err != nil {
				return err
			}
			if strings.Contains(metrics, "\nmanta_head_leading 1\n") {
				name = p.Metadata.Name
				return nil
			}
		}
		return fmt.Errorf("none of %d heads leads", len(all))
	})
	return name
}

// has asks whether the cluster is in a state.
func has(ctx context.Context, c *client.Client, ok func(*api.ClusterState) bool) error {
	s, err := state(ctx, c)
	if err != nil {
		return err
	}
	if len(s.Deployments) != 1 || !ok(s) {
		return fmt.Errorf("deployments %+v, nodes %+v", s.Deployments, s.Nodes)
	}
	return nil
}
