package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"manta/internal/telemetry"
	"manta/internal/trust"
	"manta/node/member"
)

// serveHealth answers /livez, /readyz and /metrics on the node's port, if it has
// one, until ctx ends. Nothing else of a node speaks HTTP.
func (n *Node) serveHealth(ctx context.Context) error {
	if n.cfg.Health == nil {
		return nil
	}
	mux := http.NewServeMux()
	// Alive: the process answers, whatever becomes of other machines.
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "alive") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := n.ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	})
	mux.Handle("GET /metrics", telemetry.Plain())
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute}
	served := make(chan error, 1)
	go func() { served <- server.Serve(n.cfg.Health) }()
	select {
	case err := <-served:
		return fmt.Errorf("node: HTTP: %w", err)
	case <-ctx.Done():
	}
	err := server.Close()
	<-served
	return err
}

var (
	errNoHead   = errors.New("no head has been met")
	errNoDevice = errors.New("no device is healthy")
	errDraining = errors.New("draining")
)

// ready tells whether heads may place shards here: the node has joined, its devices
// are healthy, and it is to stay.
func (n *Node) ready() error {
	report := n.server.Report()
	switch {
	case report.Draining || report.Leaving:
		return errDraining
	case len(report.Devices) == 0:
		return errNoDevice
	case !slices.ContainsFunc(n.members.Load().Members(), func(m member.Member) bool { return m.Role == trust.Head }):
		return errNoHead
	}
	return nil
}
