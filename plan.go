//go:build !windows

package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"manta/parallel/shard"
	"manta/runtime/model"
	"manta/runtime/plan"
	"manta/runtime/weights"
)

// planned is what `manta plan` prints with -o json.
type planned struct {
	Model  string       `json:"model"`
	Shapes plan.Shapes  `json:"shapes"`
	Layout shard.Layout `json:"layout"`
	Device string       `json:"device"`
	Budget plan.Budget  `json:"budget"`
	Fits   bool         `json:"fits"`
	Lacks  string       `json:"lacks,omitempty"`
	Fit    plan.Fit     `json:"fit"`
	Ranks  []plan.Need  `json:"ranks"`
	// Seconds of a full step on each stage of processors, where speeds were given.
	Seconds []float64    `json:"stage_seconds,omitempty"`
	Traffic plan.Traffic `json:"traffic_per_token"`
	At      []atLength   `json:"concurrency"`
}

type atLength struct {
	Tokens    int     `json:"tokens"`
	Sequences float64 `json:"sequences"`
	// Step is how long a step of all of them takes on each stage of GPUs, in seconds,
	// where speeds were given.
	Step []float64 `json:"step_seconds,omitempty"`
}

// steps says how long a step of all sequences takes, stage by stage.
func (a atLength) steps() string {
	var times []string
	for _, seconds := range a.Step {
		times = append(times, fmt.Sprintf("%.3g", 1e3*seconds))
	}
	if len(times) == 0 {
		return ""
	}
	return ", a step of which takes " + strings.Join(times, " + ") + " ms"
}

// errNoFit ends `manta plan` with a failure; what is missing has been printed.
var errNoFit = errors.New("it does not fit")

func planCommand() *cobra.Command {
	var from library
	var kvCache, dtype, output string
	var memory []string
	var utilization float64
	var lengths []int
	var speeds []float64
	p := planned{}
	command := &cobra.Command{
		Use: "plan MODEL", Short: "Say whether a model fits, how much it serves at once, and what its links carry", Args: cobra.ExactArgs(1),
		Long: `Say, without any device, whether a model fits on devices of some memory: what each rank
holds, how many blocks and sequences there is room for, and how many bytes a token costs
on each link. It is the computation by which heads place replicas. MODEL may be a folder
that holds config.json alone. It fails when the model does not fit.`,
		RunE: func(command *cobra.Command, args []string) (err error) {
			each, err := p.memories(memory)
			if err != nil {
				return fmt.Errorf("--gpu-memory: %w", err)
			}
			if !(utilization > 0 && utilization <= 1) {
				return fmt.Errorf("--gpu-memory-utilization must be in (0, 1], got %v", utilization)
			}
			for _, n := range lengths {
				if n < 1 {
					return fmt.Errorf("--context-len must be positive, got %d", n)
				}
			}
			if p.Device != "cuda" && p.Device != "cpu" {
				return fmt.Errorf("--device must be cuda or cpu, got %q", p.Device)
			}
			if output != "" && output != "json" {
				return fmt.Errorf("--output must be json, got %q", output)
			}
			if err := plan.CheckDType(dtype); err != nil {
				return err
			}
			if p.Shapes, err = shapesOf(command, from, args[0]); err != nil {
				return err
			}
			p.Model = args[0]
			p.Budget.Memory = int64(utilization * float64(slices.Min(each)))
			if len(each) > 1 {
				for _, memory := range each {
					p.Budget.Stages = append(p.Budget.Stages, int64(utilization*float64(memory)))
				}
			}
			if p.Budget.Speeds, err = p.speeds(speeds); err != nil {
				return fmt.Errorf("--gpu-speed: %w", err)
			}
			p.Budget = p.Budget.Defaults(p.Device, slices.Min(each))
			if p.Budget.KVType, err = p.Shapes.CacheType(p.Device, kvCache, dtype); err != nil {
				return err
			}
			if err := p.compute(lengths); err != nil {
				return err
			}
			if output == "json" {
				encoder := json.NewEncoder(command.OutOrStdout())
				encoder.SetIndent("", "    ")
				err = encoder.Encode(p)
			} else {
				err = p.write(command.OutOrStdout(), each, utilization)
			}
			if err == nil && !p.Fits {
				return errNoFit
			}
			return err
		},
	}
	from.register(command)
	f := command.Flags()
	f.IntVar(&p.Layout.Tensor, "tensor-parallel-size", 1, "tensor ranks (--tp)")
	f.IntVar(&p.Layout.Pipeline, "pipeline-parallel-size", 1, "pipeline stages (--pp)")
	f.StringSliceVar(&memory, "gpu-memory", []string{"80GiB"}, "memory of each device; several, by commas: of the devices of each stage")
	f.Float64SliceVar(&speeds, "gpu-speed", nil, "speed of the devices of each stage, by commas, in H200s: layers are cut by it too")
	f.Float64Var(&utilization, "gpu-memory-utilization", 0.9, "part of it to use")
	f.IntVar(&p.Budget.MaxLen, "max-model-len", 0, "most tokens of one sequence; what fits by default")
	f.IntVar(&p.Budget.MaxSequences, "max-num-seqs", 0, "most sequences that run at once; by default 1024 on GPUs of 70 GiB and more, 256 on smaller ones, 64 on a CPU")
	f.IntVar(&p.Budget.MaxRows, "max-num-batched-tokens", 0, "most tokens of one step")
	f.StringVar(&kvCache, "kv-cache-dtype", "auto", "type of stored keys and values: auto, float32, float16 or bfloat16")
	f.StringVar(&dtype, "dtype", "auto", "type of activations on a CPU")
	f.StringVar(&p.Device, "device", "cuda", "kind of the devices: cuda or cpu")
	f.IntSliceVar(&lengths, "context-len", nil, "context lengths to tell the concurrency at")
	f.StringVarP(&output, "output", "o", "", "json; a table by default")
	f.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		return pflag.NormalizedName(cmp.Or(map[string]string{"tp": "tensor-parallel-size", "pp": "pipeline-parallel-size"}[name], name))
	})
	return command
}

// memories reads the sizes of devices: one for all, or one a stage.
func (p *planned) memories(texts []string) ([]int64, error) {
	if len(texts) != 1 && len(texts) != p.Layout.Pipeline {
		return nil, fmt.Errorf("%d sizes for %d stages: give one for all, or one for each", len(texts), p.Layout.Pipeline)
	}
	var sizes []int64
	for _, text := range texts {
		size, err := plan.ParseBytes(text)
		if err != nil {
			return nil, err
		}
		sizes = append(sizes, size)
	}
	return sizes, nil
}

// speeds makes those of each stage's devices: none, one for all, or one for each.
func (p *planned) speeds(parts []float64) (speeds []plan.Speed, err error) {
	if len(parts) == 1 {
		parts = slices.Repeat(parts, p.Layout.Pipeline)
	}
	if len(parts) > 0 && len(parts) != p.Layout.Pipeline {
		return nil, fmt.Errorf("%d speeds for %d stages: give one for all, or one for each", len(parts), p.Layout.Pipeline)
	}
	for _, part := range parts {
		if !(part > 0 && part <= 1e6) {
			return nil, fmt.Errorf("a speed must be more than 0, got %v", part)
		}
		speeds = append(speeds, plan.H200.Times(part))
	}
	return speeds, nil
}

// shapesOf reads a model's shapes: of its weights, or of config.json alone.
func shapesOf(command *cobra.Command, from library, name string) (_ plan.Shapes, err error) {
	reference, err := weights.ParseReference(name)
	if err != nil {
		return plan.Shapes{}, err
	}
	path := reference.Path
	if reference.Kind != weights.Local {
		bar := newBar(command.ErrOrStderr())
		pulled, err := from.open(command.ErrOrStderr()).Pull(command.Context(), reference, bar.show)
		bar.end()
		if err != nil {
			return plan.Shapes{}, err
		}
		path = pulled.Path
	}
	w, opened, err := model.Open(path, "auto")
	if err != nil {
		var alone error
		if w, opened, alone = model.Open(path, "dummy"); alone != nil {
			return plan.Shapes{}, errors.Join(err, alone)
		}
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	spec, err := model.Describe(opened)
	if err != nil {
		return plan.Shapes{}, err
	}
	return spec.Shapes(), nil
}

// compute fills in what follows from shapes, layout and budget.
func (p *planned) compute(lengths []int) error {
	if err := p.Layout.Check(p.Shapes.Shape()); err != nil {
		return err
	}
	var err error
	var lacks *plan.NoRoom
	p.Layout, p.Fit, err = plan.Stages(p.Shapes, p.Layout, p.Budget)
	switch {
	case errors.As(err, &lacks):
		p.Lacks = lacks.Error()
	case err != nil:
		return err
	}
	p.Fits = err == nil
	if p.Device != "cuda" {
		p.Seconds = plan.StageSeconds(p.Shapes, p.Layout, p.Budget)
	}
	if p.Ranks, err = plan.Needs(p.Shapes, p.Layout, p.Budget, p.Fit.Blocks); err != nil {
		return err
	}
	if p.Traffic, err = plan.TrafficOf(p.Shapes, p.Layout); err != nil {
		return err
	}
	if !p.Fits {
		return nil
	}
	for _, n := range append(lengths, p.Fit.MaxLen) {
		if n <= p.Fit.MaxLen {
			at := atLength{Tokens: n, Sequences: p.Fit.Concurrent(p.Shapes, p.Budget, n)}
			if p.Device == "cuda" {
				at.Step = plan.StepSeconds(p.Shapes, p.Layout, p.Budget, max(1, int(at.Sequences)), n)
			}
			p.At = append(p.At, at)
		}
	}
	return nil
}

// sizes prints the memory of the devices of each stage.
func sizes(each []int64) string {
	var texts []string
	for _, size := range each {
		texts = append(texts, plan.Bytes(size))
	}
	return strings.Join(texts, ", ")
}

func (p *planned) write(out io.Writer, each []int64, utilization float64) error {
	s := p.Shapes
	fmt.Fprintf(out, "%s: %s, %d layers, hidden %d, %d heads over %d, vocabulary %d, context %d, weights in %v\n", p.Model, s.Architecture,
		s.Layers, s.Hidden, s.Heads, s.KVHeads, s.Vocab, s.Context, s.WeightType)
	fmt.Fprintf(out, "tensor %d x pipeline %d on %d %s devices of %s, of which %.0f%% are used\n\n", p.Layout.Tensor, p.Layout.Pipeline,
		p.Layout.Ranks(), p.Device, sizes(each), 100*utilization)
	table := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintf(table, "STAGE\tRANK\tLAYERS\tHEADS\tKV HEADS\tWEIGHTS\tSCRATCH\tKV CACHE\tIN ALL\n")
	for _, n := range p.Ranks {
		l := n.Slice
		fmt.Fprintf(table, "%d\t%d\t%d-%d\t%d\t%d\t%s\t%s\t%s\t%s\n", l.Stage, l.Rank, l.Layers.Lo, l.Layers.Hi-1, l.Heads.Len(), l.KVHeads.Len(),
			plan.Bytes(n.Weights), plan.Bytes(n.Scratch), plan.Bytes(n.KV), plan.Bytes(n.Weights+n.Scratch+n.KV))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for stage, seconds := range p.Seconds {
		fmt.Fprintf(out, "stage %d takes %.3g ms for a step of %d rows\n", stage, 1e3*seconds, p.Budget.MaxSequences)
	}
	fmt.Fprintln(out)
	if !p.Fits {
		fmt.Fprintf(out, "it does not fit: %s\n", p.Lacks)
	} else {
		fmt.Fprintf(out, "it fits: %v blocks of 16 tokens, sequences of up to %d tokens\n", p.Fit.Blocks, p.Fit.MaxLen)
		for _, a := range p.At {
			fmt.Fprintf(out, "  %.1f sequences of %d tokens at once (at most %d run)%s\n", a.Sequences, a.Tokens, p.Budget.MaxSequences, a.steps())
		}
	}
	if p.Layout.Ranks() == 1 {
		return nil
	}
	fmt.Fprintf(out, "\nbytes a token costs:\n")
	if p.Layout.Pipeline > 1 {
		fmt.Fprintf(out, "  %s from each stage to the next, of all its ranks\n", plan.Bytes(p.Traffic.Stage))
	}
	if p.Layout.Tensor > 1 {
		for stage, bytes := range p.Traffic.Tensor {
			fmt.Fprintf(out, "  %s from each tensor rank of stage %d to its fellows, in two sums a layer\n", plan.Bytes(bytes), stage)
		}
		fmt.Fprintf(out, "  %s to tensor rank 0 of the last stage from each other, for a token that is drawn\n", plan.Bytes(p.Traffic.Logits))
	}
	return nil
}
