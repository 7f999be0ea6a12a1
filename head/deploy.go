package head

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"manta/head/api"
	"manta/head/state"
	"manta/internal/trust"
	"manta/node/wire"
	"manta/parallel/link"
)

// resolveTimeout bounds how long a model reference is asked about: a node may have to
// ask a hub.
const resolveTimeout = 2 * time.Minute

// Leader implements api.Cluster.
func (c *control) Leader() string { return c.head.raft.Leader() }

// Fresh implements api.Cluster.
func (c *control) Fresh(ctx context.Context) error { return c.head.Fresh(ctx) }

// Change commits what the API decided on.
func (c *control) Change(ctx context.Context, change state.Change) error {
	return c.head.apply(ctx, change)
}

// Deploy accepts a deployment: a node resolves the model once, what heads need of
// it goes to the store, and the deployment to raft.
func (c *control) Deploy(ctx context.Context, d state.Deployment) (state.Deployment, error) {
	node, answer, err := c.resolve(ctx, d)
	if err != nil {
		return state.Deployment{}, err
	}
	d.Model, d.Revision, d.Shapes = answer.Model, answer.Revision, answer.Shapes
	d.Name = cmp.Or(d.Name, answer.Model)
	g := answer.Generation
	d.Generation = state.Generation{
		EndTokens: g.EndTokens, Temperature: g.Temperature, TopP: g.TopP, TopK: g.TopK, MinP: g.MinP, RepetitionPenalty: g.RepetitionPenalty,
	}
	if d.Revision == "" { // a local path: others are asked whether they have it
		d.Homes, d.Weights = []string{node}, answer.Weights
	}
	if err := check(d); err != nil {
		return state.Deployment{}, err
	}
	if d.Tokenizer, err = c.head.store.PutBlob(ctx, answer.Tokenizer); err != nil {
		return state.Deployment{}, err
	}
	if answer.Template != "" {
		if d.Template, err = c.head.store.PutBlob(ctx, []byte(answer.Template)); err != nil {
			return state.Deployment{}, err
		}
	}
	if err := c.head.apply(ctx, state.Change{PutDeployment: &d}); err != nil {
		return state.Deployment{}, err
	}
	c.head.metrics.Known(d.Name)
	return c.head.raft.View().Deployments[d.Name], nil
}

// resolve asks a node; the next one where that can't be reached.
func (c *control) resolve(ctx context.Context, d state.Deployment) (string, wire.Resolved, error) {
	ctx, stop := context.WithTimeout(ctx, resolveTimeout)
	defer stop()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	failure := errors.New("no node is ready")
	for {
		for _, node := range c.nodes() {
			answer, err := c.ask(ctx, node, d)
			var unresolved *Unresolved
			if err == nil || errors.As(err, &unresolved) || errors.Is(err, link.ErrRemote) {
				return node, answer, err
			}
			failure = err
		}
		select {
		case <-ctx.Done():
			return "", wire.Resolved{}, &api.Error{
				Status: http.StatusServiceUnavailable, Type: "ServiceUnavailableError", RetryAfter: 5,
				Message: fmt.Sprintf("no node can be asked what %q is: %v", d.Model, failure),
			}
		case <-ticker.C:
		}
	}
}

// ask asks one node what a deployment's model stands for.
func (c *control) ask(ctx context.Context, node string, d state.Deployment) (wire.Resolved, error) {
	question, err := wire.Marshal(wire.Resolve{Version: wire.Version, Model: d.Model, DownloadDir: d.Settings.DownloadDir, LoadFormat: d.Settings.LoadFormat})
	if err != nil {
		return wire.Resolved{}, err
	}
	data, err := c.head.link.Call(ctx, trust.Identity{Role: trust.Node, ID: node}, wire.KindResolve, question)
	if err != nil {
		return wire.Resolved{}, err
	}
	var answer wire.Resolved
	if err := wire.Unmarshal(data, &answer); err != nil {
		return wire.Resolved{}, err
	}
	if answer.Err != "" {
		return wire.Resolved{}, &Unresolved{Model: d.Model, Reason: answer.Err}
	}
	return answer, nil
}

// Unresolved says that a model reference stands for nothing that can be served.
type Unresolved struct{ Model, Reason string }

func (u *Unresolved) Error() string { return u.Reason }

// Unwrap gives what an API client sees: the reference is its to mend.
func (u *Unresolved) Unwrap() error {
	return &api.Error{Status: http.StatusBadRequest, Type: "BadRequestError", Param: "model", Message: u.Reason}
}
