package api

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"manta/head/place"
	"manta/head/state"
	"manta/internal/version"
	"manta/parallel/shard"
)

// freshTimeout bounds how long a read waits for the leader.
const freshTimeout = 2 * time.Second

// newest gives a View that holds every write acknowledged so far, on any head. In a
// cluster without a leader it is what this head knows, and the answer says so.
func (s *Server) newest(w http.ResponseWriter, r *http.Request) (view *state.View, stale bool) {
	ctx, stop := context.WithTimeout(r.Context(), freshTimeout)
	defer stop()
	if err := s.cluster.Fresh(ctx); err != nil {
		w.Header().Set("X-Manta-Stale", "true")
		stale = true
	}
	return s.views.View(), stale
}

func (s *Server) clusterState(w http.ResponseWriter, r *http.Request) (any, error) {
	view, stale := s.newest(w, r)
	answer := ClusterState{
		Index: view.Index, Stale: stale, Version: version.String(), Leader: s.cluster.Leader(),
		Heads: []Head{}, Nodes: s.describeNodes(view), Warnings: []Event{}, Deployments: s.describeAll(view),
	}
	for _, head := range view.Heads {
		answer.Heads = append(answer.Heads, Head{ID: head.ID, Name: head.Name, API: head.API, Lost: s.heard != nil && !s.heard.Lives(head.ID)})
	}
	slices.SortFunc(answer.Heads, func(a, b Head) int { return cmp.Compare(a.ID, b.ID) })
	var err error
	if answer.Pending, err = s.cluster.Waiting(r.Context()); err != nil {
		s.log.Info("what waits is not known", "error", err) // the rest is worth telling
	}
	for _, e := range view.Events {
		if e.Warning {
			answer.Warnings = append(answer.Warnings, describeEvent(e))
		}
	}
	answer.Warnings = answer.Warnings[max(0, len(answer.Warnings)-maxWarnings):]
	return answer, nil
}

// maxWarnings bounds those that the whole state shows.
const maxWarnings = 5

func (s *Server) describeAll(view *state.View) []Deployment {
	list := []Deployment{}
	for _, deployment := range sorted(view) {
		list = append(list, s.describeDeployment(view, deployment))
	}
	return list
}

func (s *Server) describeDeployment(view *state.View, d state.Deployment) Deployment {
	out := Deployment{
		Name: d.Name, Aliases: d.Aliases, Model: d.Model, Revision: d.Revision,
		Tensor: d.Layout.Tensor, Pipeline: d.Layout.Pipeline, Wanted: d.Replicas, Auto: d.Auto,
		Waiting: s.dispatch.Waiting(d.Name), MaxModelLen: maxLength(view, d), Created: d.Created, Replicas: []Replica{},
	}
	for _, replica := range view.Replicas {
		if replica.Deployment != d.Name {
			continue
		}
		entry := Replica{
			ID: replica.ID, Outdated: replica.Version != d.Version, Epoch: replica.Epoch, Phase: string(replica.Phase), Reason: replica.Reason,
			Blocks: replica.Blocks, Nodes: replica.Nodes(), Shards: []string{},
		}
		seconds := place.StageSeconds(view, d, replica)
		for _, at := range replica.Shards {
			text := describeShard(d, replica, at)
			if seconds != nil {
				text += fmt.Sprintf(", %.3g ms a full step", 1e3*seconds[at.Stage])
			}
			entry.Shards = append(entry.Shards, text)
		}
		if replica.Phase == state.Ready {
			out.Ready++
		}
		if s.heard != nil {
			s.told(replica, &entry)
		}
		out.Replicas = append(out.Replicas, entry)
	}
	slices.SortFunc(out.Replicas, func(a, b Replica) int { return cmp.Compare(a.ID, b.ID) })
	if d.Auto { // as many as there is room for, which is what stands
		out.Wanted = max(1, len(out.Replicas))
	}
	return out
}

// describeShard says where a shard is, of several stages which layers it has, and of
// tensor ranks with unlike parts how many heads.
func describeShard(d state.Deployment, r state.Replica, at state.Placement) string {
	text := fmt.Sprintf("%d.%d on %s %s", at.Stage, at.Rank, at.Node, at.Device)
	if r.Layout.Pipeline < 2 && r.Layout.TensorShares == nil {
		return text
	}
	slice, err := shard.Cut(r.Layout, d.Shapes.Shape(), at.Stage, at.Rank)
	if err != nil { // of an earlier version, whose model was another
		return text
	}
	if r.Layout.Pipeline > 1 {
		text = fmt.Sprintf("%s layers %d-%d", text, slice.Layers.Lo, slice.Layers.Hi-1)
	}
	if r.Layout.TensorShares != nil {
		text = fmt.Sprintf("%s, %d of %d heads", text, slice.Heads.Len(), d.Shapes.Heads)
	}
	return text
}

// told adds what a replica's nodes told last: how much of its files the slowest has
// while they come, and then what its driver has done.
func (s *Server) told(r state.Replica, entry *Replica) {
	for _, shard := range r.Shards {
		report, _ := s.heard.Report(shard.Node)
		for _, told := range report.Replicas {
			if told.Replica != r.ID || told.Epoch != r.Epoch {
				continue
			}
			if r.Phase != state.Ready && told.Total > 0 && (entry.Whole == 0 || told.Done < entry.Pulled) {
				entry.Pulled, entry.Whole = told.Done, told.Total
			}
			if e := told.Engine; r.Phase == state.Ready && shard.Stage == 0 && shard.Rank == 0 {
				entry.Running, entry.Prompt, entry.Cached, entry.Output = e.Running, e.PromptTokens, e.PrefixHits, e.OutputTokens
			}
		}
	}
}

func (s *Server) listDeployments(w http.ResponseWriter, r *http.Request) (any, error) {
	view, _ := s.newest(w, r)
	return struct {
		Deployments []Deployment `json:"deployments"`
	}{s.describeAll(view)}, nil
}

func (s *Server) getDeployment(w http.ResponseWriter, r *http.Request) (any, error) {
	view, _ := s.newest(w, r)
	deployment, ok := view.Deployments[r.PathValue("name")]
	if !ok {
		return nil, noDeployment(r.PathValue("name"))
	}
	return s.describeDeployment(view, deployment), nil
}

func (s *Server) createDeployment(w http.ResponseWriter, r *http.Request) (any, error) {
	var request deploymentRequest
	if err := s.read(w, r, &request); err != nil {
		return nil, err
	}
	deployment, err := request.deployment()
	if err != nil {
		return nil, err
	}
	accepted, err := s.cluster.Deploy(r.Context(), deployment)
	if err != nil {
		return nil, err
	}
	return created{s.describeDeployment(s.views.View(), accepted)}, nil
}

// patchDeployment changes the number of replicas, and nothing else.
func (s *Server) patchDeployment(w http.ResponseWriter, r *http.Request) (any, error) {
	name := r.PathValue("name")
	var request struct {
		Replicas json.RawMessage `json:"replicas"`
	}
	if err := s.read(w, r, &request); err != nil {
		return nil, err
	}
	if absent(request.Replicas) {
		return nil, badField("replicas", "replicas must be given: it is what can be changed of a deployment; to change the rest, post it again")
	}
	replicas, auto, err := replicaCount(request.Replicas)
	if err != nil {
		return nil, err
	}
	scale := &state.Scale{Deployment: name, Replicas: replicas, Auto: auto}
	if err := s.cluster.Change(r.Context(), state.Change{Scale: scale}); err != nil {
		if errors.Is(err, state.ErrUnknown) {
			err = noDeployment(name)
		}
		return nil, err
	}
	view := s.views.View()
	return s.describeDeployment(view, view.Deployments[name]), nil
}

func (s *Server) deleteDeployment(w http.ResponseWriter, r *http.Request) (any, error) {
	name := r.PathValue("name")
	err := s.cluster.Change(r.Context(), state.Change{DeleteDeployment: name})
	if errors.Is(err, state.ErrUnknown) {
		err = noDeployment(name)
	}
	if err != nil {
		return nil, err
	}
	return struct {
		Deleted string `json:"deleted"`
	}{name}, nil
}

func noDeployment(name string) *Error {
	return &Error{
		Status: http.StatusNotFound, Type: "NotFoundError", Param: "name",
		Message: fmt.Sprintf("there is no deployment %q", name),
	}
}
