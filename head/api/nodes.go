package api

import (
	"errors"
	"fmt"
	"net/http"
	"slices"

	"manta/head/state"
)

// describeNode tells of a node and the replicas that have shards on it.
func describeNode(view *state.View, node state.Node) Node {
	entry := Node{ID: node.ID, Drained: node.Drained, Labels: node.Labels, Devices: []Device{}, Replicas: []string{}}
	for _, device := range node.Devices {
		entry.Devices = append(entry.Devices, Device{ID: device.ID, Kind: device.Kind, Name: device.Name, Memory: device.Memory})
	}
	for id, replica := range view.Replicas {
		if slices.ContainsFunc(replica.Shards, func(s state.Placement) bool { return s.Node == node.ID }) {
			entry.Replicas = append(entry.Replicas, id)
		}
	}
	slices.Sort(entry.Replicas)
	return entry
}

// node finds the node that a request's path names, or answers that there is none.
func (s *Server) node(w http.ResponseWriter, r *http.Request) (*state.View, state.Node, bool) {
	view, _ := s.newest(w, r)
	node, ok := view.FindNode(r.PathValue("name"))
	if !ok {
		s.fail(w, r, noNode(r.PathValue("name")))
	}
	return view, node, ok
}

func noNode(name string) *Error {
	return &Error{
		Status: http.StatusNotFound, Type: "NotFoundError", Param: "name",
		Message: fmt.Sprintf("there is no node %q, or several have that name: give one's whole id", name),
	}
}

func (s *Server) getNode(w http.ResponseWriter, r *http.Request) {
	if view, node, ok := s.node(w, r); ok {
		s.reply(w, http.StatusOK, describeNode(view, node))
	}
}

// drainNode makes a node take no shards; those it has move where there is room.
func (s *Server) drainNode(w http.ResponseWriter, r *http.Request) { s.setDrained(w, r, true) }

// undrainNode lets it take shards again.
func (s *Server) undrainNode(w http.ResponseWriter, r *http.Request) { s.setDrained(w, r, false) }

func (s *Server) setDrained(w http.ResponseWriter, r *http.Request, drained bool) {
	_, node, ok := s.node(w, r)
	if !ok {
		return
	}
	change := state.Change{DrainNode: &state.DrainNode{ID: node.ID, Drained: drained}}
	if err := s.changeNode(r, node, change); err != nil {
		s.fail(w, r, err)
		return
	}
	view := s.views.View()
	s.reply(w, http.StatusOK, describeNode(view, view.Nodes[node.ID]))
}

// deleteNode forgets a node that is gone for good. One that lives comes back with
// its next report.
func (s *Server) deleteNode(w http.ResponseWriter, r *http.Request) {
	view, node, ok := s.node(w, r)
	if !ok {
		return
	}
	if has := describeNode(view, node).Replicas; len(has) > 0 {
		s.fail(w, r, &Error{
			Status: http.StatusConflict, Type: "ConflictError", Param: "name",
			Message: fmt.Sprintf("node %s has shards of %d replicas: drain it first", node.ID, len(has)),
		})
		return
	}
	if err := s.changeNode(r, node, state.Change{DeleteNode: node.ID}); err != nil {
		s.fail(w, r, err)
		return
	}
	s.reply(w, http.StatusOK, struct {
		Deleted string `json:"deleted"`
	}{node.ID})
}

func (s *Server) changeNode(r *http.Request, node state.Node, change state.Change) error {
	err := s.cluster.Change(r.Context(), change)
	if errors.Is(err, state.ErrUnknown) {
		return noNode(node.ID)
	}
	return err
}
