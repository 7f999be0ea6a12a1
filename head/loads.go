package head

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"manta/head/kube"
	"manta/internal/telemetry"
	"manta/internal/trust"
	"manta/node/wire"
	"manta/parallel/link"
)

// kindLoads is a call to another head: nothing → what it has to do, by model.
const kindLoads = "loads"

// loadsTimeout bounds how long another head may take to tell.
const loadsTimeout = time.Second

// fleet is what all heads know together.
type fleet struct{ head *Head }

var _ kube.Cluster = fleet{}

func (h *Head) tellLoads() {
	h.link.HandleCall(kindLoads, maxHeadCalls, func(_ context.Context, m link.Message) ([]byte, error) {
		if m.From.Role != trust.Head {
			return nil, fmt.Errorf("%s may not ask for loads", m.From)
		}
		return wire.Marshal(h.metrics.Loads())
	})
}

// Loads implements kube.Cluster: it asks the other heads.
func (f fleet) Loads(ctx context.Context) (map[string]telemetry.Load, error) {
	ctx, stop := context.WithTimeout(ctx, loadsTimeout)
	defer stop()
	heads := f.head.heads()
	answers := make([]map[string]telemetry.Load, len(heads))
	group, ctx := errgroup.WithContext(ctx)
	for i, m := range heads {
		if m.ID == f.head.id.ID {
			answers[i] = f.head.metrics.Loads()
			continue
		}
		group.Go(func() error {
			data, err := f.head.link.Call(ctx, m.Identity, kindLoads, nil)
			if err != nil {
				return fmt.Errorf("head %s does not tell what it has to do: %w", m.ID, err)
			}
			return wire.Unmarshal(data, &answers[i])
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	sum := map[string]telemetry.Load{}
	for _, loads := range answers {
		for model, load := range loads {
			sum[model] = sum[model].Add(load)
		}
	}
	return sum, nil
}

// Nodes implements kube.Cluster: an id is a name and what its disk adds.
func (f fleet) Nodes() (names []string) {
	for _, m := range f.head.members.Load().Members() {
		if name := m.ID[:max(0, strings.LastIndexByte(m.ID, '-'))]; m.Role == trust.Node && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// Leading implements kube.Cluster.
func (f fleet) Leading() bool { return f.head.raft.Leading() }
