// Package kube is what a head does for a Kubernetes that it runs in, both off unless
// asked for: it serves external.metrics.k8s.io and custom.metrics.k8s.io, so that
// HorizontalPodAutoscalers need no adapter, and it scales a StatefulSet of nodes to
// zero and back through the scale subresource.
//
// The head's composition root owns the one Metrics and the one Scaler, and tells
// them what all heads have to do. The package decides nothing about replicas, and
// has no client library: it makes three kinds of calls to the Kubernetes API.
package kube

import (
	"context"

	"manta/internal/telemetry"
)

// Cluster is what all heads know together.
type Cluster interface {
	// Loads sums what every head has to do, by model. It fails when a head does not
	// tell: too small a sum would scale down what is needed.
	Loads(ctx context.Context) (map[string]telemetry.Load, error)
	// Nodes are the names of the nodes that are there: of their pods, on Kubernetes.
	Nodes() []string
	// Leading reports whether this head leads.
	Leading() bool
}
