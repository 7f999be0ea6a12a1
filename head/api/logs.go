package api

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"manta/head/state"
	"manta/internal/trust"
	"manta/node/wire"
)

// tailByDefault is how many lines are given when ?tail= is not.
const tailByDefault = 200

// NoAnswer begins the line that stands for the log of a member that can't be reached.
const NoAnswer = "no answer: "

// source is a member whose log is read, and what of it.
type source struct {
	role       trust.Role
	id         string
	containing string
}

// readLogs gives the newest lines of a node's, a head's or a replica's log: of a
// replica those in which its nodes name it. Several members' lines follow each
// other, each begun with its id.
func (s *Server) readLogs(w http.ResponseWriter, r *http.Request) (any, error) {
	name := r.PathValue("name")
	lines := tailByDefault
	if text := r.URL.Query().Get("tail"); text != "" {
		var err error
		if lines, err = strconv.Atoi(text); err != nil || lines < 1 || lines > wire.MaxLogLines {
			return nil, badField("tail", "tail must be a number from 1 to %d, got %q", wire.MaxLogLines, text)
		}
	}
	sources := sourcesOf(s.views.View(), name)
	if len(sources) == 0 || s.logs == nil {
		return nil, &Error{
			Status: http.StatusNotFound, Type: "NotFoundError", Param: "name",
			Message: fmt.Sprintf("there is no node, head or replica %q", name),
		}
	}
	var text strings.Builder
	for _, from := range sources {
		found, err := s.logs.Logs(r.Context(), from.role, from.id, lines, from.containing)
		if err != nil {
			found = []string{NoAnswer + err.Error()}
		}
		for _, line := range found {
			fmt.Fprintf(&text, "%s: %s\n", from.id, line)
		}
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	s.extend(w)
	_, _ = w.Write([]byte(text.String())) // the client may be gone
	return nil, nil
}

func sourcesOf(view *state.View, name string) []source {
	if node, ok := view.FindNode(name); ok {
		return []source{{trust.Node, node.ID, ""}}
	}
	for id, head := range view.Heads {
		if id == name || head.Name == name {
			return []source{{trust.Head, id, ""}}
		}
	}
	var sources []source
	for _, node := range view.Replicas[name].Nodes() {
		sources = append(sources, source{trust.Node, node, name})
	}
	return sources
}
