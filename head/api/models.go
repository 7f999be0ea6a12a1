package api

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"time"

	"manta/head/state"
)

// served is a deployment that a request may use.
type served struct {
	state.Deployment
	text   *Text
	length int // tokens a sequence may have
}

// find gives the deployment of a name or alias; no name means the only one.
func (s *Server) find(name *string) (state.Deployment, error) {
	view := s.views.View()
	if name == nil || *name == "" {
		deployments := sorted(view)
		if len(deployments) == 0 {
			return state.Deployment{}, &Error{
				Status: http.StatusServiceUnavailable, Type: "ServiceUnavailableError", RetryAfter: 5,
				Message: "no model is deployed yet",
			}
		}
		if len(deployments) > 1 {
			return state.Deployment{}, badField("model", "model must name one of the %d deployments", len(deployments))
		}
		return deployments[0], nil
	}
	if deployment, ok := view.Deployments[*name]; ok {
		return deployment, nil
	}
	for _, deployment := range sorted(view) {
		if slices.Contains(deployment.Aliases, *name) {
			return deployment, nil
		}
	}
	return state.Deployment{}, noModel(*name)
}

// catchUpTimeout bounds how long a request waits for its head to have caught up: a
// head that starts again reads its log and finds the leader in a second or two.
const catchUpTimeout = 10 * time.Second

// catchUp makes sure that this head knows what others have accepted: one that has
// just started may still be reading its log. Requests that come together ask the
// leader once.
func (s *Server) catchUp(ctx context.Context) error {
	arrived := time.Now()
	s.fresh.Lock()
	defer s.fresh.Unlock()
	if s.fresh.asked.After(arrived) {
		return nil
	}
	asked := time.Now()
	ctx, stop := context.WithTimeout(ctx, catchUpTimeout)
	defer stop()
	if err := s.cluster.Fresh(ctx); err != nil {
		return &Error{
			Status: http.StatusServiceUnavailable, Type: "ServiceUnavailableError", RetryAfter: 1,
			Message: "this head has not caught up with the cluster yet: " + err.Error(),
		}
	}
	s.fresh.asked = asked
	return nil
}

// serve finds the deployment and loads its text.
func (s *Server) serve(ctx context.Context, name *string) (*served, error) {
	deployment, err := s.find(name)
	if err != nil {
		if err := s.catchUp(ctx); err != nil {
			return nil, err
		}
		if deployment, err = s.find(name); err != nil {
			return nil, err
		}
	}
	text, err := s.texts.Text(ctx, deployment)
	if err != nil {
		return nil, err
	}
	return &served{Deployment: deployment, text: text, length: maxLength(s.views.View(), deployment)}, nil
}

// maxLength is how many tokens a sequence may have: what every replica can do,
// or before there is one what was asked for.
func maxLength(view *state.View, deployment state.Deployment) int {
	length := 0
	for _, replica := range view.Replicas {
		if replica.Deployment == deployment.Name && replica.MaxLen > 0 && (length == 0 || replica.MaxLen < length) {
			length = replica.MaxLen
		}
	}
	return cmp.Or(length, deployment.Settings.MaxModelLen, deployment.Shapes.Context)
}

func sorted(view *state.View) []state.Deployment {
	var all []state.Deployment
	for _, deployment := range view.Deployments {
		all = append(all, deployment)
	}
	slices.SortFunc(all, func(a, b state.Deployment) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

type modelEntry struct {
	ID          string  `json:"id"`
	Object      string  `json:"object"`
	Created     int64   `json:"created"`
	OwnedBy     string  `json:"owned_by"`
	Root        string  `json:"root"`
	Parent      *string `json:"parent"`
	MaxModelLen int     `json:"max_model_len"`
}

func (s *Server) entries() []modelEntry {
	view := s.views.View()
	list := []modelEntry{}
	for _, deployment := range sorted(view) {
		for _, name := range append([]string{deployment.Name}, deployment.Aliases...) {
			list = append(list, modelEntry{
				ID: name, Object: "model", Created: deployment.Created.Unix(), OwnedBy: "manta",
				Root: deployment.Model, MaxModelLen: maxLength(view, deployment),
			})
		}
	}
	return list
}

func (s *Server) models(w http.ResponseWriter, r *http.Request) (any, error) {
	return struct {
		Object string       `json:"object"`
		Data   []modelEntry `json:"data"`
	}{"list", s.entries()}, nil
}

func (s *Server) model(w http.ResponseWriter, r *http.Request) (any, error) {
	name := r.PathValue("model")
	for _, entry := range s.entries() {
		if entry.ID == name {
			return entry, nil
		}
	}
	return nil, noModel(name)
}
