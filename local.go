//go:build !windows

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// localSocket is in the data directory of a running head or node: whoever may
// write there may drain it, or make it leave.
const localSocket = "manta.sock"

// resident is a member as its own machine's operator sees it.
type resident interface {
	Run(ctx context.Context) error
	Close() error
	// Drain moves what the member has elsewhere and returns when that is done.
	Drain(ctx context.Context) error
	Undrain()
	// Leave drains, has the cluster forget the member, and ends Run.
	Leave(ctx context.Context) error
}

// attended runs a member to its end, together with the socket that its operator's
// commands reach it by. Who has it leave hears of that once nothing of it is left: the
// data directory may be used again.
func (p *process) attended(ctx context.Context, who resident) (err error) {
	over := make(chan struct{})
	end := sync.OnceFunc(func() {
		err = errors.Join(err, who.Close(), p.lock.Close())
		close(over)
	})
	defer end()
	path := filepath.Join(p.dataDir, localSocket)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) { // of one that was killed
		return err
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return fmt.Errorf("%s: %w; a socket's path has at most about 100 characters: give a shorter --data-dir", path, err)
	}
	mux := http.NewServeMux()
	for action, do := range map[string]func(context.Context) error{
		"drain": who.Drain,
		"leave": func(ctx context.Context) error {
			if err := who.Leave(ctx); err != nil {
				return err
			}
			select {
			case <-over:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		},
		"undrain": func(context.Context) error { who.Undrain(); return nil },
	} {
		mux.HandleFunc("POST /"+action, func(w http.ResponseWriter, r *http.Request) {
			if err := do(r.Context()); err != nil {
				http.Error(w, err.Error(), http.StatusConflict)
			}
		})
	}
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(listener) // until Shutdown
	}()
	err = who.Run(ctx)
	end()
	// Who asked it to leave hears that it has.
	ending, stop := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer stop()
	if server.Shutdown(ending) != nil {
		_ = server.Close()
	}
	<-served
	return err
}

// tellLocal asks the member that runs on a data directory to do something.
func tellLocal(ctx context.Context, dataDir, action string) error {
	if dataDir == "" {
		dataDir = os.Getenv("MANTA_DATA_DIR")
	}
	if dataDir == "" {
		var err error
		if dataDir, err = dataHome(); err != nil {
			return err
		}
	}
	path := filepath.Join(dataDir, localSocket)
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://local/"+action, nil)
	if err != nil {
		return err
	}
	answer, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("%s: not done in time: %w", action, ctx.Err())
		}
		return fmt.Errorf("no head or node runs on %s: give its --data-dir: %w", dataDir, err)
	}
	defer answer.Body.Close()
	if answer.StatusCode/100 == 2 {
		return nil
	}
	text, err := io.ReadAll(io.LimitReader(answer.Body, 4096))
	if err != nil {
		return err
	}
	return errors.New(strings.TrimSpace(string(text)))
}
