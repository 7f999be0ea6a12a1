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
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"manta/head/api"
	"manta/internal/tail"
	"manta/internal/trace"
)

// process are the flags of everything that runs until a signal ends it, and what
// becomes of them.
type process struct {
	host        string
	port        int
	metricsPort int
	dataDir     string
	logLevel    string
	logFormat   string
	grace       time.Duration
	traces      string
	keys        []string
	interval    int

	lock    *os.File // of dataDir
	level   *slog.LevelVar
	tail    *tail.Lines // of the log, for `manta logs`
	logger  *slog.Logger
	apiKeys *api.Keys
	keysOff bool
}

func (p *process) flags(f *pflag.FlagSet, host string) {
	p.nodeFlags(f)
	f.StringVar(&p.host, "host", host, "address of the HTTP API; beyond loopback an API key is demanded")
	f.IntVar(&p.port, "port", 8000, "port of the HTTP API; 0 takes a free one")
	f.IntVar(&p.metricsPort, "metrics-port", 9090, "a second port for /metrics alone; 0: none")
	f.IntVar(&p.interval, "stream-interval", 1, "tokens that go to a client at once, after the first, which goes by itself; more cost the head less")
	f.StringArrayVar(&p.keys, "api-key", nil, "an administrator's key that clients may send beside those of manta keys, or @FILE with a key a line; none turns keys off")
}

// nodeFlags are those that do not concern the API.
func (p *process) nodeFlags(f *pflag.FlagSet) {
	p.dirFlags(f)
	f.StringVar(&p.traces, "otlp-traces-endpoint", "", "URL that takes OpenTelemetry traces, OTLP over HTTP: http://HOST:4318/v1/traces (OTEL_EXPORTER_OTLP_ENDPOINT and its kin work too); none by default")
	f.DurationVar(&p.grace, "shutdown-timeout", 30*time.Second, "time at SIGTERM for shards to move to other nodes and requests in progress to end")
}

// dirFlags are those of whatever works on a data directory.
func (p *process) dirFlags(f *pflag.FlagSet) {
	f.StringVar(&p.dataDir, "data-dir", "", "where state is kept ($XDG_DATA_HOME/manta by default)")
	f.StringVar(&p.logLevel, "log-level", "", "debug, info, warn (the default) or error")
	f.StringVar(&p.logFormat, "log-format", "text", "text or json, an object a line")
}

// ofProcess are the flags of process: they say nothing of a deployment.
var ofProcess = []string{"host", "port", "metrics-port", "data-dir", "log-level", "log-format", "shutdown-timeout", "api-key", "stream-interval", "devices", "device-processes", "otlp-traces-endpoint"}

// ofTwins is what the help of long-running commands says of them.
const ofTwins = "Each flag has an environment twin, MANTA_ and its name in capitals: MANTA_LOG_LEVEL."

// twins are environment variables that set a flag, beside MANTA_<FLAG>.
var twins = map[string][]string{
	"tensor-parallel-size":   {"TENSOR_PARALLEL_SIZE"},
	"gpu-memory-utilization": {"GPU_MEMORY_UTILIZATION"},
}

// complete takes what flags leave open from the environment.
func (p *process) complete(f *pflag.FlagSet) error {
	var bad error
	f.VisitAll(func(flag *pflag.Flag) {
		for _, twin := range append([]string{"MANTA_" + environmentName(flag.Name)}, twins[flag.Name]...) {
			value, set := os.LookupEnv(twin)
			if !set || value == "" || flag.Changed {
				continue
			}
			if err := f.Set(flag.Name, value); err != nil && bad == nil {
				bad = fmt.Errorf("%s: %w", twin, err)
			}
		}
	})
	if f.Lookup("stream-interval") != nil && p.interval < 1 && bad == nil {
		bad = fmt.Errorf("--stream-interval %d: give at least 1", p.interval)
	}
	if bad != nil || p.dataDir != "" {
		return bad
	}
	dir, err := dataHome()
	p.dataDir = dir
	return err
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

// prepare makes the logger and checks the keys.
func (p *process) prepare(errs io.Writer) (err error) {
	p.level = new(slog.LevelVar)
	if err := p.level.UnmarshalText([]byte(cmp.Or(p.logLevel, "warn"))); err != nil {
		return fmt.Errorf("--log-level %s: give debug, info, warn or error", p.logLevel)
	}
	var shown slog.Handler
	options := &slog.HandlerOptions{Level: p.level}
	switch p.logFormat {
	case "", "text":
		shown = slog.NewTextHandler(errs, options)
	case "json":
		shown = slog.NewJSONHandler(errs, options)
	default:
		return fmt.Errorf("--log-format %s: give text or json", p.logFormat)
	}
	p.tail = new(tail.Lines) // for `manta logs`
	p.logger = slog.New(slog.NewMultiHandler(shown, slog.NewTextHandler(p.tail, &slog.HandlerOptions{Level: slog.LevelInfo})))
	keys, off, err := api.NewKeys(p.keys)
	if err != nil {
		return err
	}
	ip := net.ParseIP(p.host)
	if keys == nil && !off && p.host != "" && p.host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return api.ErrNoKey
	}
	p.apiKeys, p.keysOff = keys, off
	return nil
}

// openTracer opens the way of traces, if there is to be one.
func (p *process) openTracer(service, name string) (*trace.Tracer, error) {
	return trace.Open(trace.Config{Endpoint: p.traces, Service: service, Instance: name, Logger: p.logger})
}

// listen opens the ports of the API and of the metrics, if there is one.
func (p *process) listen() (api, metrics net.Listener, err error) {
	if api, err = listen(p.host, p.port, "--port"); err != nil {
		return nil, nil, err
	}
	if p.metricsPort != 0 {
		if metrics, err = listen(p.host, p.metricsPort, "--metrics-port"); err != nil {
			return nil, nil, errors.Join(err, api.Close())
		}
	}
	return api, metrics, nil
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

// sameSignal is the time within which a second signal is taken for the first:
// timeout(1) and terminals send it to the process and to its group.
const sameSignal = 200 * time.Millisecond

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
		first := time.Now()
		for {
			select {
			case s := <-signals:
				if time.Since(first) > sameSignal {
					fmt.Fprintln(errs, "manta: ended by a second", s)
					os.Exit(130)
				}
			case <-done:
				return
			}
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(done)
		cancel()
	}
}
