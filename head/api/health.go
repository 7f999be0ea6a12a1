package api

import (
	"net/http"

	"manta/head/state"
	"manta/internal/version"
)

// health says whether a deployment can generate: every rank has answered a real
// step. With ?model= it says so of that one, else of the first by name.
func (s *Server) health(w http.ResponseWriter, r *http.Request) (any, error) {
	view := s.views.View()
	name := r.URL.Query().Get("model")
	if name == "" {
		if all := sorted(view); len(all) > 0 {
			name = all[0].Name
		}
	}
	answer := struct {
		Status string `json:"status"`
		Model  string `json:"model"`
		Reason string `json:"reason,omitempty"`
	}{"healthy", name, ""}
	status := http.StatusOK
	if ok, why := generating(view, name); !ok || s.dispatch.Draining() {
		if ok {
			why = "this head is shutting down"
		}
		status, answer.Status, answer.Reason = http.StatusServiceUnavailable, "unhealthy", why
	}
	s.reply(w, status, answer)
	return nil, nil
}

// generating reports whether a deployment has a ready replica, or why not.
func generating(view *state.View, name string) (ok bool, why string) {
	d, ok := view.Deployments[name]
	switch {
	case !ok && name == "":
		return false, "no model is deployed"
	case !ok:
		return false, "no such model is deployed"
	case d.Replicas == 0 && !d.Auto:
		why = "it is scaled to 0 replicas"
	default:
		why = "no replica is placed yet"
	}
	for _, replica := range view.Replicas {
		if replica.Deployment != name {
			continue
		}
		if replica.Phase == state.Ready {
			return true, ""
		}
		why = "the replica is " + string(replica.Phase)
		if replica.Reason != "" {
			why += ": " + replica.Reason
		}
	}
	return false, why
}

// live never depends on other machines: a process that answers is alive.
func (s *Server) live(w http.ResponseWriter, r *http.Request) (any, error) {
	return struct {
		Status string `json:"status"`
	}{"alive"}, nil
}

// ready says whether this head can queue.
func (s *Server) ready(w http.ResponseWriter, r *http.Request) (any, error) {
	answer := struct {
		Status string `json:"status"`
		Reason string `json:"reason,omitempty"`
	}{Status: "ready"}
	status := http.StatusOK
	if s.dispatch.Draining() {
		status, answer.Status, answer.Reason = http.StatusServiceUnavailable, "draining", "this head is shutting down"
	} else if s.canQueue != nil {
		if err := s.canQueue(); err != nil {
			status, answer.Status, answer.Reason = http.StatusServiceUnavailable, "unready", err.Error()
		}
	}
	s.reply(w, status, answer)
	return nil, nil
}

func (s *Server) version(w http.ResponseWriter, r *http.Request) (any, error) {
	return struct {
		Version string `json:"version"`
	}{version.String()}, nil
}
