package head

import (
	"context"
	"maps"
	"slices"
	"time"

	"manta/head/state"
)

const (
	homesEvery   = time.Second
	askAgain     = time.Minute
	askForAtMost = 10 * time.Second
)

// homes asks the nodes, on the leader, which of them have the files of local
// paths: those whose weights have the same digest may run shards too.
func (c *control) homes(ctx context.Context) error {
	type question struct{ deployment, node string }
	asked := map[question]time.Time{}
	ticker := time.NewTicker(homesEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
		if !c.head.raft.Leading() {
			continue
		}
		maps.DeleteFunc(asked, func(_ question, at time.Time) bool { return time.Since(at) > askAgain })
		for name, d := range c.head.raft.View().Deployments {
			if len(d.Homes) == 0 {
				continue
			}
			for _, node := range c.nodes() {
				q := question{name, node}
				if _, was := asked[q]; was || slices.Contains(d.Homes, node) {
					continue
				}
				asked[q] = time.Now()
				c.home(ctx, node, d)
			}
		}
	}
}

// home asks one node, and adds it to the deployment's homes if it is one.
func (c *control) home(ctx context.Context, node string, d state.Deployment) {
	ctx, stop := context.WithTimeout(ctx, askForAtMost)
	defer stop()
	answer, err := c.ask(ctx, node, d)
	if err != nil || answer.Weights != d.Weights {
		c.log.Info("no home", "deployment", d.Name, "node", node, "same", err == nil, "error", err)
		return
	}
	if err := c.head.apply(ctx, state.Change{AddHome: &state.AddHome{Deployment: d.Name, Version: d.Version, Node: node}}); err != nil {
		c.log.Warn("home not added", "deployment", d.Name, "node", node, "error", err)
	}
}

// nodes gives the nodes that have reported.
func (c *control) nodes() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Sorted(maps.Keys(c.reports))
}
