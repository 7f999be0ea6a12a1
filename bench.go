//go:build !windows

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"manta/kernels"
	"manta/kernels/cpu"
	"manta/node/serve"
	"manta/runtime/measure"
	"manta/runtime/model"
	"manta/runtime/weights"
)

// benchmarks are the subcommands of bench that need no server.
func benchmarks() []*cobra.Command {
	return []*cobra.Command{benchEngine(), benchLoad(), benchAccuracy()}
}

// processorFlags choose how the processor computes.
type processorFlags struct {
	dtype, cache string
	threads      int
}

func (p *processorFlags) register(command *cobra.Command) {
	f := command.Flags()
	f.StringVar(&p.dtype, "dtype", "auto", "type of activations: auto, float32, int16 or int8")
	f.StringVar(&p.cache, "kv-cache-dtype", "auto", "type of stored keys and values: auto, float32, float16 or bfloat16")
	f.IntVar(&p.threads, "threads", 0, "cores; all by default")
}

// device is the processor as the flags want it for a model.
func (p *processorFlags) device(path string) (measure.Device, error) {
	w, err := weights.Open(path)
	if err != nil {
		return measure.Device{}, err
	}
	spec, err := model.Describe(w)
	if err != nil {
		return measure.Device{}, errors.Join(err, w.Close())
	}
	cache, err := spec.Shapes().CacheType("cpu", p.cache, p.dtype)
	return measure.Device{Cache: cache, Open: func() (kernels.Ops, error) {
		return serve.CPU{Count: 1, Threads: p.threads}.Open("cpu:0", serve.Want{DType: p.dtype})
	}}, errors.Join(err, w.Close())
}

// pulled is where a model that the user names lies.
func pulled(ctx context.Context, errs io.Writer, args []string) (string, error) {
	name := defaultModel
	if len(args) > 0 {
		name = args[0]
	}
	reference, err := weights.ParseReference(name)
	if err != nil {
		return "", err
	}
	bar := newBar(errs)
	defer bar.end()
	found, err := (&library{os.Getenv("MANTA_DOWNLOAD_DIR")}).open(errs).Pull(ctx, reference, bar.show)
	return found.Path, err
}

// printed writes what was measured as JSON, or as a table.
func printed(out io.Writer, asJSON bool, v any, table func(w io.Writer)) error {
	if asJSON {
		return json.NewEncoder(out).Encode(v)
	}
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	table(w)
	return w.Flush()
}

// benchEngine measures one stream without head, node or HTTP.
func benchEngine() *cobra.Command {
	var p processorFlags
	var work measure.Work
	var asJSON bool
	command := &cobra.Command{
		Use: "engine [MODEL]", Short: "Measure the engine on this processor, without a server", Args: cobra.MaximumNArgs(1),
		RunE: func(command *cobra.Command, args []string) error {
			path, err := pulled(command.Context(), command.ErrOrStderr(), args)
			if err != nil {
				return err
			}
			d, err := p.device(path)
			if err != nil {
				return err
			}
			if work.Prompt < 1 || work.Output < 1 || work.Rounds < 1 {
				return fmt.Errorf("--input-len, --output-len and --rounds must be at least 1")
			}
			speeds, err := measure.EngineSpeed(command.Context(), path, d, work)
			if err != nil {
				return err
			}
			read, err := cpu.ReadBandwidth(p.threads)
			if err != nil {
				return err
			}
			type row struct {
				measure.Speed
				Read float64 `json:"read_bytes_per_second"`
			}
			rows := make([]row, len(speeds))
			for i, s := range speeds {
				rows[i] = row{s, read}
			}
			return printed(command.OutOrStdout(), asJSON, rows, func(w io.Writer) {
				fmt.Fprintf(w, "prompt of %d: tokens/s\tone stream: tokens/s\tof what %.1f GB/s allow\tload: s\n", work.Prompt, read/1e9)
				for _, s := range speeds {
					fmt.Fprintf(w, "%.0f\t%.1f\t%.0f%%\t%.2f\n", s.PromptPerSecond, s.DecodePerSecond, 100*s.DecodePerSecond*s.BytesPerToken/read, s.LoadSeconds)
				}
			})
		},
	}
	p.register(command)
	f := command.Flags()
	f.IntVar(&work.Prompt, "input-len", 512, "tokens of the prompt")
	f.IntVar(&work.Output, "output-len", 128, "tokens of the answer to a prompt of one token")
	f.IntVar(&work.Rounds, "rounds", 5, "measurements, after one to warm up")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return command
}

// benchAccuracy compares a way of computing with float32.
func benchAccuracy() *cobra.Command {
	var p processorFlags
	var file string
	var most, window int
	var asJSON bool
	command := &cobra.Command{
		Use: "accuracy [MODEL]", Short: "Measure how far fast products are from float32 ones", Args: cobra.MaximumNArgs(1),
		Long: "Compute a text twice on this processor, with --dtype and with float32, and print the Kullback-Leibler\n" +
			"divergence of float32's distribution from the other over the vocabulary, at every position of windows\n" +
			"that begin anew; and at the second half of each window, as llama-perplexity --kl-divergence counts.",
		RunE: func(command *cobra.Command, args []string) error {
			path, err := pulled(command.Context(), command.ErrOrStderr(), args)
			if err != nil {
				return err
			}
			text, err := firstBytes(file, most)
			if err != nil {
				return err
			}
			fast, err := p.device(path)
			if err != nil {
				return err
			}
			exact, err := (&processorFlags{dtype: "float32", cache: "float32", threads: p.threads}).device(path)
			if err != nil {
				return err
			}
			a, err := measure.CompareDevices(command.Context(), path, exact, fast, measure.Text{Text: text, Window: window})
			if err != nil {
				return err
			}
			return printed(command.OutOrStdout(), asJSON, a, func(w io.Writer) {
				fmt.Fprintf(w, "%s: the first %d bytes, %d tokens, windows of %d; --dtype %s against float32\n\n", file, len(text), a.Tokens, window, p.dtype)
				fmt.Fprintln(w, "positions\tnumber\tmean KLD\t99.9% under\thighest\tsame top token")
				for _, row := range []struct {
					name string
					d    measure.Divergence
				}{{"all", a.All}, {"second half of each window", a.Second}} {
					fmt.Fprintf(w, "%s\t%d\t%.6f\t%.4f\t%.4f\t%.2f%%\n", row.name, row.d.Positions, row.d.Mean, row.d.P999, row.d.Max, 100*row.d.SameTop)
				}
			})
		},
	}
	p.register(command)
	f := command.Flags()
	f.StringVar(&file, "text", "/usr/share/common-licenses/GPL-3", "file of the text; Debian and Ubuntu have this one")
	f.IntVar(&most, "bytes", 24000, "how much of the file is used")
	f.IntVar(&window, "window", 512, "tokens of a window")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return command
}

// firstBytes reads the beginning of a file.
func firstBytes(path string, most int) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("--text: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, int64(most)))
	if err != nil {
		return "", fmt.Errorf("--text: %w", err)
	}
	return string(data), nil
}
