// Package jobs runs the work that users submit: batches of requests, and
// deployments that a job keeps. Whoever leads runs them; what they have got done is
// in raft and in the store, so that the next leader goes on where the last one was.
//
// A head owns one Runner. The package never talks HTTP: requests of a batch go
// through the same door as everyone's (Lines).
package jobs

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"manta/head/state"
)

// ErrEntrypoint is wrapped by what is wrong with an entrypoint.
var ErrEntrypoint = errors.New("entrypoint")

// Entrypoint is a `manta` command that a job runs.
type Entrypoint struct {
	Kind state.JobKind
	// Serve is the body of a POST to /api/cluster/deployments.
	Serve map[string]any
	Batch state.BatchJob
}

const (
	maxEntrypoint = 4096
	// harmless are the characters beside letters and digits that a word may have. A
	// shell has a meaning for most of the others; here nothing has.
	harmless = "-._/:=,@+%"
)

// ParseEntrypoint reads an entrypoint. No shell ever sees it: it is cut at spaces,
// must be `manta serve` or `manta batch`, and its flags are those of that command.
func ParseEntrypoint(text string) (Entrypoint, error) {
	if len(text) > maxEntrypoint {
		return Entrypoint{}, bad("it has %d bytes, at most %d", len(text), maxEntrypoint)
	}
	for _, c := range text {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == ' ', strings.ContainsRune(harmless, c):
		default:
			return Entrypoint{}, bad("the character %q is not taken: an entrypoint is a manta command, it is given to no shell and has no quotes", c)
		}
	}
	words := strings.Fields(text)
	if len(words) == 0 {
		return Entrypoint{}, bad("it must be given: manta serve MODEL …, or manta batch --input FILE_ID …")
	}
	if words[0] != "manta" {
		return Entrypoint{}, bad("%q is not run here: only manta serve MODEL … and manta batch --input FILE_ID … are", words[0])
	}
	if len(words) < 2 {
		return Entrypoint{}, bad("manta alone does nothing: manta serve MODEL …, or manta batch --input FILE_ID …")
	}
	switch words[1] {
	case "serve":
		return parseServe(words[2:])
	case "batch":
		return parseBatch(words[2:])
	}
	return Entrypoint{}, bad("manta %s is no job: only manta serve and manta batch are", words[1])
}

func bad(format string, a ...any) error {
	return fmt.Errorf("%w: %s", ErrEntrypoint, fmt.Sprintf(format, a...))
}

// flagSet is one that says nothing by itself.
func flagSet(name string) *pflag.FlagSet {
	f := pflag.NewFlagSet(name, pflag.ContinueOnError)
	f.SortFlags, f.Usage = false, func() {}
	return f
}

func parseServe(words []string) (Entrypoint, error) {
	f := flagSet("manta serve")
	ServeFlags(f)
	if err := f.Parse(words); err != nil {
		return Entrypoint{}, bad("manta serve: %v", err)
	}
	if f.NArg() != 1 {
		return Entrypoint{}, bad("manta serve takes one MODEL, got %d: %q", f.NArg(), f.Args())
	}
	body, err := ServeBody(f, f.Arg(0))
	return Entrypoint{Kind: state.Serve, Serve: body}, err
}

// ServeFlags adds the flags of `manta serve`, in vLLM's words. Zero is the default.
func ServeFlags(f *pflag.FlagSet) {
	f.StringSlice("served-model-name", nil, "names that the API serves the model under; the first is the deployment's")
	f.Int("tensor-parallel-size", 0, "tensor ranks; 1 by default")
	f.Int("pipeline-parallel-size", 0, "pipeline stages; 1 by default")
	f.Int("max-model-len", 0, "most tokens of one sequence; what fits by default")
	f.Int("max-num-seqs", 0, "most sequences that run at once; by default 1024 on GPUs of 70 GiB and more, 256 on smaller ones, 64 on a CPU")
	f.Int("max-num-batched-tokens", 0, "most tokens of one step")
	f.String("dtype", "", "type of activations: auto, float32, int16 or int8 on a CPU; auto, bfloat16, float16 or float32 on a GPU")
	f.String("kv-cache-dtype", "", "type of stored keys and values: auto, float32, float16 or bfloat16")
	f.String("strategy", "", "pack: a replica on one node if it fits there (the default); spread: its stages on many")
	f.String("replicas", "", "a number (1 by default), or auto: as many as fit")
	f.StringToString("node-selector", nil, "labels that a node must have, KEY=VALUE")
	f.Uint64("seed", 0, "seed of requests that give none")
	f.Float64("gpu-memory-utilization", 0, "part of a device's memory to use; 0.9 by default")
	f.Bool("no-enable-prefix-caching", false, "compute every prompt from its first token")
}

// ServeBody gives the body of a POST to /api/cluster/deployments for parsed flags;
// others than those of ServeFlags are left alone.
func ServeBody(f *pflag.FlagSet, model string) (map[string]any, error) {
	ours := flagSet("")
	ServeFlags(ours)
	body := map[string]any{"model": model}
	var failure error
	f.Visit(func(flag *pflag.Flag) {
		if ours.Lookup(flag.Name) == nil {
			return
		}
		field := strings.ReplaceAll(flag.Name, "-", "_")
		switch flag.Value.Type() {
		case "stringSlice":
			names, err := f.GetStringSlice(flag.Name)
			if err != nil || len(names) == 0 {
				failure = bad("manta serve: --%s needs a name", flag.Name)
				return
			}
			body["name"], body["aliases"] = names[0], names[1:]
		case "stringToString":
			labels, err := f.GetStringToString(flag.Name)
			body[field], failure = labels, errors.Join(failure, err)
		case "bool":
			off, err := f.GetBool(flag.Name)
			body["enable_prefix_caching"], failure = !off, errors.Join(failure, err)
		case "string":
			body[field] = flag.Value.String()
		default:
			body[field] = number(flag.Value.String())
		}
	})
	if replicas, ok := body["replicas"].(string); ok && replicas != "auto" {
		if _, err := strconv.Atoi(replicas); err != nil {
			return nil, bad("manta serve: --replicas must be a number or auto, got %q", replicas)
		}
		body["replicas"] = number(replicas)
	}
	return body, failure
}

// number is a flag's value as it stands in JSON.
type number string

// MarshalJSON implements json.Marshaler.
func (n number) MarshalJSON() ([]byte, error) { return []byte(n), nil }

func parseBatch(words []string) (Entrypoint, error) {
	f := flagSet("manta batch")
	var b state.BatchJob
	f.StringVar(&b.Input, "input", "", "")
	f.StringVar(&b.Output, "output", "", "")
	f.StringVar(&b.Endpoint, "endpoint", "", "")
	f.DurationVar(&b.Window, "completion-window", DefaultWindow, "")
	if err := f.Parse(words); err != nil {
		return Entrypoint{}, bad("manta batch: %v", err)
	}
	if f.NArg() > 0 {
		return Entrypoint{}, bad("manta batch takes flags alone, got %q", f.Args())
	}
	if b.Input == "" {
		return Entrypoint{}, bad("manta batch needs --input FILE_ID: upload the file with POST /v1/files first")
	}
	if b.Window <= 0 || b.Window > MaxWindow {
		return Entrypoint{}, bad("manta batch: --completion-window must be between 0 and %s, got %s", MaxWindow, b.Window)
	}
	if err := CheckEndpoint(b.Endpoint); err != nil && b.Endpoint != "" {
		return Entrypoint{}, bad("manta batch: --endpoint: %v", err)
	}
	return Entrypoint{Kind: state.Batch, Batch: b}, nil
}
