//go:build kubernetes && linux

package kubernetes

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

// patience bounds every wait for the cluster to come to a state.
const patience = 150 * time.Second

// kubectl runs kubectl and gives what it prints; it must succeed.
func kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := cluster.Kubectl(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// helm runs helm and gives all that it prints.
func helm(t *testing.T, args ...string) (string, error) {
	t.Helper()
	out, err := cluster.Command(t.Context(), "helm", args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("helm %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// until waits for something to succeed, and gives the time that it took.
func until(t *testing.T, what string, limit time.Duration, try func(context.Context) error) time.Duration {
	t.Helper()
	start := time.Now()
	ctx, stop := context.WithTimeout(t.Context(), limit)
	defer stop()
	ticker := time.NewTicker(200 * time.Millisecond)
	defer ticker.Stop()
	var last error // before the limit cut one off
	for {
		err := try(ctx)
		if err == nil {
			return time.Since(start)
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not within %v: %v", what, limit, last)
		case <-ticker.C:
		}
	}
}

// pod is what tests read of one.
type pod struct {
	Metadata struct {
		Name     string
		UID      string
		Labels   map[string]string
		Deletion string `json:"deletionTimestamp"`
	}
	Spec   struct{ NodeName string }
	Status struct {
		Phase      string
		PodIP      string
		Conditions []struct{ Type, Status, Message string }
	}
}

func (p *pod) ready() bool {
	for _, c := range p.Status.Conditions {
		if c.Type == "Ready" {
			return c.Status == "True" && p.Metadata.Deletion == ""
		}
	}
	return false
}

// pods lists those of a namespace that a selector matches.
func pods(ctx context.Context, namespace, selector string) ([]pod, error) {
	out, err := cluster.Kubectl(ctx, "-n", namespace, "get", "pods", "-o", "json", "-l", selector)
	if err != nil {
		return nil, err
	}
	var list struct{ Items []pod }
	return list.Items, json.Unmarshal([]byte(out), &list)
}

// podsReady waits until exactly so many pods are there, all of them ready.
func podsReady(t *testing.T, namespace, selector string, count int) time.Duration {
	t.Helper()
	return until(t, fmt.Sprintf("%d pods of %s", count, selector), patience, func(ctx context.Context) error {
		all, err := pods(ctx, namespace, selector)
		if err != nil {
			return err
		}
		ready := 0
		var states []string
		for _, p := range all {
			if p.ready() {
				ready++
			}
			states = append(states, fmt.Sprintf("%s on %s %s", p.Metadata.Name, p.Spec.NodeName, p.Status.Phase))
		}
		if ready != count || len(all) != count {
			return fmt.Errorf("%d ready of %v", ready, states)
		}
		return nil
	})
}

// deletePods asks for pods to end; podsReady, which comes next, waits for others in
// their places. kubectl's own wait was seen to go on when all was long over.
func deletePods(t *testing.T, which ...string) {
	t.Helper()
	kubectl(t, append([]string{"-n", namespace, "delete", "pod", "--wait=false"}, which...)...)
}

// report shows what there is to see when a test has failed.
func report(t *testing.T, namespace string) {
	t.Helper()
	if !t.Failed() {
		return
	}
	ctx, stop := context.WithTimeout(context.Background(), 20*time.Second)
	defer stop()
	for _, args := range [][]string{
		{"get", "pods", "-o", "wide"}, {"get", "events", "--sort-by=.lastTimestamp", "-o", "custom-columns=AT:.lastTimestamp,OF:.involvedObject.name,WHAT:.message"},
		{"logs", "--prefix", "--tail=25", "-l", "app.kubernetes.io/name=manta"},
	} {
		out, err := cluster.Kubectl(ctx, append([]string{"-n", namespace}, args...)...)
		lines := strings.SplitAfter(out, "\n")
		t.Logf("kubectl %v: %v\n%s", args, err, strings.Join(lines[max(0, len(lines)-80):], ""))
	}
}
