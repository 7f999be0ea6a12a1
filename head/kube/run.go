package kube

import (
	"context"
	"log/slog"
	"net"
	"time"

	"golang.org/x/sync/errgroup"
)

// Config says what a head does for Kubernetes. The zero value: nothing.
type Config struct {
	// Metrics is where the metrics APIs are served; nil: nowhere. CertFile and
	// KeyFile are its certificate.
	Metrics           net.Listener
	CertFile, KeyFile string
	// StatefulSet of nodes to take to zero after Idle without work, and back when a
	// request waits; empty: none.
	StatefulSet string
	Idle        time.Duration
}

// Run does it until ctx ends.
func Run(ctx context.Context, cfg Config, cluster Cluster, log *slog.Logger) error {
	if cfg.Metrics == nil && cfg.StatefulSet == "" {
		return nil
	}
	api, err := Inside()
	if err != nil {
		return err
	}
	defer api.Close()
	group, ctx := errgroup.WithContext(ctx)
	if cfg.Metrics != nil {
		port := &Port{Listener: cfg.Metrics, CertFile: cfg.CertFile, KeyFile: cfg.KeyFile, FrontProxy: api.FrontProxy, Log: log}
		group.Go(func() error { return port.Serve(ctx, NewMetrics(cluster)) })
	}
	if cfg.StatefulSet != "" {
		scaler := &Scaler{API: api, Cluster: cluster, StatefulSet: cfg.StatefulSet, Idle: cfg.Idle, Log: log}
		group.Go(func() error { return scaler.Run(ctx) })
	}
	return group.Wait()
}
