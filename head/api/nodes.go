package api

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"manta/head/state"
	"manta/node/wire"
)

// describeNode tells of a node and the replicas that have shards on it.
func (s *Server) describeNode(view *state.View, node state.Node) Node {
	entry := Node{ID: node.ID, Drained: node.Drained, Labels: node.Labels, Devices: []Device{}, Replicas: []string{}}
	for _, device := range node.Devices {
		entry.Devices = append(entry.Devices, Device{
			ID: device.ID, Kind: device.Kind, Name: device.Name, Memory: device.Memory,
			Bandwidth: device.Speed.Bandwidth, Operations: device.Speed.Operations,
		})
	}
	for id, replica := range view.Replicas {
		if slices.ContainsFunc(replica.Shards, func(at state.Placement) bool { return at.Node == node.ID }) {
			entry.Replicas = append(entry.Replicas, id)
		}
	}
	slices.Sort(entry.Replicas)
	entry.Status = "Ready"
	report, heard := wire.Report{}, true
	if s.heard != nil {
		report, heard = s.heard.Report(node.ID)
	}
	switch {
	case !heard:
		entry.Status = "NotReady"
	case report.Draining || report.Leaving:
		entry.Status = "Stopping"
	case node.Drained:
		entry.Status = "Ready,Drained"
	}
	return entry
}

// node finds the node that a request's path names.
func (s *Server) node(w http.ResponseWriter, r *http.Request) (*state.View, state.Node, error) {
	view, _ := s.newest(w, r)
	node, ok := view.FindNode(r.PathValue("name"))
	if !ok {
		return nil, state.Node{}, noNode(r.PathValue("name"))
	}
	return view, node, nil
}

func noNode(name string) *Error {
	return &Error{
		Status: http.StatusNotFound, Type: "NotFoundError", Param: "name",
		Message: fmt.Sprintf("there is no node %q, or several have that name: give one's whole id", name),
	}
}

func (s *Server) listNodes(w http.ResponseWriter, r *http.Request) (any, error) {
	view, _ := s.newest(w, r)
	return struct {
		Nodes []Node `json:"nodes"`
	}{s.describeNodes(view)}, nil
}

func (s *Server) describeNodes(view *state.View) []Node {
	nodes := []Node{}
	for _, id := range slices.Sorted(maps.Keys(view.Nodes)) {
		nodes = append(nodes, s.describeNode(view, view.Nodes[id]))
	}
	return nodes
}

// listEvents gives the newest events, of one thing with ?name=.
func (s *Server) listEvents(w http.ResponseWriter, r *http.Request) (any, error) {
	view, _ := s.newest(w, r)
	events := []Event{}
	for _, e := range view.Events {
		if about(e, r.URL.Query().Get("name")) {
			events = append(events, describeEvent(e))
		}
	}
	return struct {
		Events []Event `json:"events"`
	}{events}, nil
}

// about reports whether an event is of what has a name: of a deployment's replicas
// too, and of a node by its stable name.
func about(e state.Event, name string) bool {
	return name == "" || e.Name == name || e.Kind == "replica" && strings.HasPrefix(e.Name, name+"/") ||
		(e.Kind == "node" || e.Kind == "head") && strings.HasPrefix(e.Name, name+"-")
}

func describeEvent(e state.Event) Event {
	kind := "Normal"
	if e.Warning {
		kind = "Warning"
	}
	return Event{At: e.At, Type: kind, Reason: e.Reason, Object: e.Kind + "/" + e.Name, Message: e.Message}
}

// explainDeployment says what a deployment waits for.
func (s *Server) explainDeployment(w http.ResponseWriter, r *http.Request) (any, error) {
	view, _ := s.newest(w, r)
	name := r.PathValue("name")
	d, ok := view.Deployments[name]
	if !ok {
		return nil, noDeployment(name)
	}
	waiting, err := s.cluster.Waiting(r.Context())
	if err != nil {
		return nil, err
	}
	answer := Explanation{Deployment: s.describeDeployment(view, d), Pending: []Waiting{}, Events: []Event{}}
	for _, entry := range waiting {
		if entry.Deployment == name {
			answer.Pending = append(answer.Pending, entry)
		}
	}
	for _, e := range view.Events {
		if e.Kind != "node" && about(e, name) {
			answer.Events = append(answer.Events, describeEvent(e))
		}
	}
	return answer, nil
}

func (s *Server) getNode(w http.ResponseWriter, r *http.Request) (any, error) {
	view, node, err := s.node(w, r)
	if err != nil {
		return nil, err
	}
	return s.describeNode(view, node), nil
}

// drainNode makes a node take no shards; those it has move where there is room. With
// ?force=true the others go too, and wait for a place.
func (s *Server) drainNode(w http.ResponseWriter, r *http.Request) (any, error) {
	forced := false
	if text := r.URL.Query().Get("force"); text != "" {
		var err error
		if forced, err = strconv.ParseBool(text); err != nil {
			return nil, badField("force", "force must be true or false, got %q", text)
		}
	}
	return s.setDrained(w, r, state.DrainNode{Drained: true, Forced: forced})
}

// undrainNode lets it take shards again.
func (s *Server) undrainNode(w http.ResponseWriter, r *http.Request) (any, error) {
	return s.setDrained(w, r, state.DrainNode{})
}

func (s *Server) setDrained(w http.ResponseWriter, r *http.Request, drain state.DrainNode) (any, error) {
	_, node, err := s.node(w, r)
	if err != nil {
		return nil, err
	}
	drain.ID = node.ID
	if err := s.changeNode(r, node, state.Change{DrainNode: &drain}); err != nil {
		return nil, err
	}
	view := s.views.View()
	return s.describeNode(view, view.Nodes[node.ID]), nil
}

// deleteNode forgets a node that is gone for good. One that lives comes back with
// its next report.
func (s *Server) deleteNode(w http.ResponseWriter, r *http.Request) (any, error) {
	view, node, err := s.node(w, r)
	if err != nil {
		return nil, err
	}
	if has := s.describeNode(view, node).Replicas; len(has) > 0 {
		return nil, &Error{
			Status: http.StatusConflict, Type: "ConflictError", Param: "name",
			Message: fmt.Sprintf("node %s has shards of %d replicas: drain it first", node.ID, len(has)),
		}
	}
	if err := s.changeNode(r, node, state.Change{DeleteNode: node.ID}); err != nil {
		return nil, err
	}
	return struct {
		Deleted string `json:"deleted"`
	}{node.ID}, nil
}

func (s *Server) changeNode(r *http.Request, node state.Node, change state.Change) error {
	err := s.cluster.Change(r.Context(), change)
	if errors.Is(err, state.ErrUnknown) {
		return noNode(node.ID)
	}
	return err
}
