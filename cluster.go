//go:build !windows

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"manta/head"
	"manta/head/kube"
	"manta/internal/trace"
	"manta/internal/trust"
	"manta/node"
)

// member are the flags of a process that is one of many.
type member struct {
	name       string
	secretFile string
	bind       string
	advertise  string
	gossipPort int
	linkPort   int
	join       []string
}

func (m *member) flags(f *pflag.FlagSet) {
	f.StringVar(&m.name, "name", "", "stable name of this process; the host's by default")
	f.StringVar(&m.secretFile, "secret-file", "", "file with the cluster's secret, a line each: the first signs, all verify (DATA-DIR/secret by default)")
	f.StringVar(&m.bind, "bind", "0.0.0.0", "address that other members reach this process on")
	f.StringVar(&m.advertise, "advertise", "", "address to tell others, where it differs from --bind")
	f.IntVar(&m.gossipPort, "gossip-port", 7946, "port of the gossip, TCP and UDP; 0 takes a free one")
	f.IntVar(&m.linkPort, "link-port", 7948, "port of the NATS server; 0 takes a free one")
	f.StringSliceVar(&m.join, "join", nil, "gossip addresses of other members: HOST:PORT, where HOST may be a DNS name of many, or @FILE with an address a line")
}

// complete gives the secrets and fills in the name.
func (m *member) complete(dataDir string) (trust.Secrets, error) {
	if m.name == "" {
		host, err := os.Hostname()
		if err != nil {
			return nil, fmt.Errorf("no host name: give --name: %w", err)
		}
		m.name = plainName(host)
	} else if strings.Trim(m.name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return nil, fmt.Errorf("--name %q: it may hold a-z, 0-9 and '-'", m.name)
	}
	if m.secretFile == "" {
		m.secretFile = filepath.Join(dataDir, "secret")
	}
	secrets, err := trust.LoadSecrets(m.secretFile)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: all members of a cluster share one: write it there, or give --secret-file", err)
	}
	return secrets, err
}

// plainName makes an id's name of a host's: a-z, 0-9 and '-'.
func plainName(host string) string {
	host, _, _ = strings.Cut(strings.ToLower(host), ".")
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, host)
	return name[:min(len(name), 50)]
}

func (m *member) address(port int) string { return net.JoinHostPort(m.bind, strconv.Itoa(port)) }

// run builds a member and runs it to its end. What build gives to print goes to out.
func (m *member) run(command *cobra.Command, p *process, service string, build func(trust.Secrets, *trace.Tracer) (who resident, greeting string, err error)) error {
	if err := p.complete(command.Flags()); err != nil {
		return err
	}
	return p.alone(command.Context(), command.ErrOrStderr(), func(ctx context.Context) error {
		secrets, err := m.complete(p.dataDir)
		if err != nil {
			return err
		}
		tracer, err := p.openTracer(service, m.name)
		if err != nil {
			return err
		}
		defer tracer.Close()
		who, greeting, err := build(secrets, tracer)
		if err != nil {
			return err
		}
		fmt.Fprintln(command.OutOrStdout(), greeting)
		return p.attended(ctx, who)
	})
}

func headCommand() *cobra.Command {
	p, m, k := &process{}, &member{}, &kubeFlags{}
	var raftPort, expect int
	command := &cobra.Command{
		Use: "head", Short: "Run a head: the control plane and the HTTP API", Args: cobra.NoArgs,
		Long: `Run a head: the control plane and the HTTP API. Three of them bear the loss of one:

  manta head --bootstrap-expect 3 --join head-0:7946,head-1:7946,head-2:7946 --secret-file secret

The secret is any text of 16 bytes or more, the same for all members.
` + ofTwins,
		RunE: func(command *cobra.Command, _ []string) error {
			return m.run(command, p, "manta-head", func(secrets trust.Secrets, tracer *trace.Tracer) (resident, string, error) {
				listener, metrics, err := p.listen()
				if err != nil {
					return nil, "", err
				}
				kubernetes, err := k.config(p.host)
				if err != nil {
					return nil, "", errors.Join(err, listener.Close())
				}
				h, err := head.New(head.Config{
					Name: m.name, Dir: filepath.Join(p.dataDir, "head"), Secrets: secrets, Advertise: m.advertise,
					Gossip: m.address(m.gossipPort), Raft: m.address(raftPort), Link: m.address(m.linkPort),
					API: listener, Metrics: metrics, Join: m.join, Expect: expect, Grace: p.grace, Keys: p.apiKeys, KeysOff: p.keysOff, StreamInterval: p.interval, Kube: kubernetes, Tracer: tracer, Logger: p.logger, Tail: p.tail,
				})
				if err != nil {
					return nil, "", err
				}
				return h, fmt.Sprintf("head %s: API on %s, gossip on %s", h.ID(), listener.Addr(), h.Gossip()), nil
			})
		},
	}
	p.flags(command.Flags(), "0.0.0.0")
	m.flags(command.Flags())
	k.flags(command.Flags())
	command.Flags().IntVar(&raftPort, "raft-port", 7947, "port of raft; 0 takes a free one")
	command.Flags().IntVar(&expect, "bootstrap-expect", 0, "number of heads that found a new cluster together; 0 joins one")
	return command
}

func nodeCommand() *cobra.Command {
	p, m := &process{}, &member{}
	var downloadDir string
	offer := &offer{}
	var labels map[string]string
	command := &cobra.Command{
		Use: "node", Short: "Run a node: the devices that shards run on", Args: cobra.NoArgs,
		Long: `Run a node: the devices that shards run on. It needs the address of any head:

  manta node --join head-0:7946,head-1:7946,head-2:7946 --secret-file secret

` + ofTwins,
		RunE: func(command *cobra.Command, _ []string) error {
			return m.run(command, p, "manta-node", func(secrets trust.Secrets, tracer *trace.Tracer) (resident, string, error) {
				kinds, processes, err := offer.open(downloadDir, p.traces)
				if err != nil {
					return nil, "", err
				}
				if err := node.CheckLabels(labels); err != nil {
					return nil, "", err
				}
				health, err := listenHealth(p.metricsPort)
				if err != nil {
					return nil, "", err
				}
				n, err := node.New(node.Config{
					Name: m.name, Dir: filepath.Join(p.dataDir, "node"), Secrets: secrets, Advertise: m.advertise,
					Gossip: m.address(m.gossipPort), Link: m.address(m.linkPort), Join: m.join, Devices: kinds, Labels: labels,
					Processes: processes, Library: models(downloadDir), Health: health, Grace: p.grace, Tracer: tracer, Logger: p.logger, Tail: p.tail,
				})
				if err != nil {
					return nil, "", err
				}
				return n, fmt.Sprintf("node %s: gossip on %s", n.ID(), n.Gossip()), nil
			})
		},
	}
	p.nodeFlags(command.Flags())
	command.Flags().IntVar(&p.metricsPort, "metrics-port", 0, "port of /livez, /readyz and /metrics; 0: none")
	m.flags(command.Flags())
	offer.flags(command.Flags())
	command.Flags().StringToStringVar(&labels, "node-labels", nil, "labels that deployments may select by, KEY=VALUE; topology.kubernetes.io/zone names the zone")
	command.Flags().StringVar(&downloadDir, "download-dir", "", "where models are kept; the hub's cache and the user's cache by default")
	return command
}

// listenHealth opens a node's port for probes, if it is to have one.
func listenHealth(port int) (net.Listener, error) {
	if port == 0 {
		return nil, nil
	}
	return listen("", port, "--metrics-port")
}

// kubeFlags say what a head does for the Kubernetes that it runs in.
type kubeFlags struct {
	port        int
	certDir     string
	statefulSet string
	idle        time.Duration
}

func (k *kubeFlags) flags(f *pflag.FlagSet) {
	f.IntVar(&k.port, "kube-metrics-port", 0, "port of external.metrics.k8s.io and custom.metrics.k8s.io; 0: none")
	f.StringVar(&k.certDir, "kube-metrics-cert-dir", "", "folder with tls.crt and tls.key of that port")
	f.StringVar(&k.statefulSet, "kube-scale", "", "StatefulSet of nodes to scale to zero when idle and back when a request waits")
	f.DurationVar(&k.idle, "kube-scale-idle", 10*time.Minute, "time without requests until --kube-scale goes to zero")
}

func (k *kubeFlags) config(host string) (kube.Config, error) {
	c := kube.Config{StatefulSet: k.statefulSet, Idle: k.idle}
	if k.statefulSet != "" && k.idle < time.Second {
		return c, fmt.Errorf("--kube-scale-idle must be at least 1s, got %v", k.idle)
	}
	if k.port == 0 {
		return c, nil
	}
	if k.certDir == "" {
		return c, errors.New("--kube-metrics-port needs --kube-metrics-cert-dir")
	}
	c.CertFile, c.KeyFile = filepath.Join(k.certDir, "tls.crt"), filepath.Join(k.certDir, "tls.key")
	if _, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile); err != nil {
		return c, fmt.Errorf("--kube-metrics-cert-dir: %w", err)
	}
	var err error
	c.Metrics, err = listen(host, k.port, "--kube-metrics-port")
	return c, err
}

// alone runs something with the data directory to itself, until a signal.
func (p *process) alone(ctx context.Context, errs io.Writer, run func(context.Context) error) error {
	ctx, stop := untilSignal(ctx, errs)
	defer stop()
	if err := p.prepare(errs); err != nil {
		return err
	}
	var err error
	if p.lock, err = lockDir(p.dataDir); err != nil {
		return err
	}
	defer p.lock.Close()
	return run(ctx)
}
