//go:build !windows

package main

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"manta/head/cli/load"
	"manta/kernels"
	"manta/node/serve"
	"manta/runtime/measure"
)

// benchLoad measures the engine alone, in this process.
func benchLoad() *cobra.Command {
	var o offer
	var cfg measure.LoadConfig
	var utilization float64
	var workloads, shapes []string
	command := &cobra.Command{
		Use: "load [MODEL]", Short: "Measure the engine under load, without a server", Args: cobra.MaximumNArgs(1),
		Long: "Measure the engine under load, without a server, on this machine's devices, which ranks take in turn: each of --streams (N×IN×OUT: so many equal\n" +
			"requests at once) and each --workload, all of it handed over at once, in order.",
		RunE: func(command *cobra.Command, args []string) error {
			ctx, out := command.Context(), command.OutOrStdout()
			kinds, _, err := o.open("", "")
			if err != nil {
				return err
			}
			if cfg.Path, err = pulled(ctx, command.ErrOrStderr(), args); err != nil {
				return err
			}
			kind, devices := kinds[0], kinds[0].Devices()
			if cfg.Layout.Tensor < 1 || cfg.Layout.Pipeline < 1 || len(devices) == 0 {
				return fmt.Errorf("--tensor-parallel-size %d, --pipeline-parallel-size %d: each must be at least 1; this machine has %d devices", cfg.Layout.Tensor, cfg.Layout.Pipeline, len(devices))
			}
			each := (cfg.Layout.Ranks() + len(devices) - 1) / len(devices)
			cfg.Kind, cfg.Budget.Memory = kind.Name(), int64(utilization*float64(devices[0].Memory))/int64(each)
			cfg.Budget = cfg.Budget.Defaults(cfg.Kind, devices[0].Memory)
			cfg.Open = func(stage, rank int) (kernels.Ops, error) {
				d := devices[(stage*cfg.Layout.Tensor+rank)%len(devices)]
				return kind.Open(d.ID, serve.Want{DType: cfg.DType, Seats: cfg.Budget.MaxSequences})
			}
			e, err := measure.Start(ctx, cfg)
			if err != nil {
				return err
			}
			fmt.Fprintf(out, "loaded, first step done: %.2f s; %v blocks, sequences of up to %d tokens\n\n", e.Loaded.Seconds(), e.Fit.Blocks, e.Fit.MaxLen)
			const row = "%-20s %14v %10v %16v %18v %16v %8v %13v %8v\n"
			fmt.Fprintf(out, row, "work", "tokens/s out", "seconds", "first token ms", "decode ms a step", "decode tokens/s", "steps", "processor s", "host %")
			figure := func(value float64, digits int) string { return strconv.FormatFloat(value, 'f', digits, 64) }
			all, err := workOf(shapes, workloads)
			for i := 0; i < len(all) && err == nil; i++ {
				var r measure.Result
				if r, err = e.Do(all[i].work); err == nil {
					share := "-"
					if r.HostShare >= 0 {
						share = figure(100*r.HostShare, 2)
					}
					fmt.Fprintf(out, row, filepath.Base(all[i].name), figure(float64(r.Output)/r.Seconds, 1), figure(r.Seconds, 2), figure(1000*r.FirstToken, 1),
						figure(1000*r.DecodeSeconds/float64(max(1, r.DecodeSteps)), 3), figure(float64(r.DecodeOutput)/r.DecodeSeconds, 1), r.Steps, figure(r.ProcessSeconds, 2), share)
				}
			}
			if closing := e.Close(); err == nil {
				err = closing
			}
			return err
		},
	}
	o.flags(command.Flags())
	f := command.Flags()
	f.StringVar(&cfg.LoadFormat, "load-format", "auto", "auto reads the model's weights; dummy makes some up from its config.json")
	f.StringVar(&cfg.DType, "dtype", "auto", "type of activations")
	f.StringVar(&cfg.KVCache, "kv-cache-dtype", "auto", "type of stored keys and values")
	f.Float64Var(&utilization, "gpu-memory-utilization", 0.9, "part of the device's memory to use")
	f.IntVar(&cfg.Budget.MaxLen, "max-model-len", 0, "most tokens of one sequence; what fits by default")
	f.IntVar(&cfg.Budget.MaxSequences, "max-num-seqs", 0, "most sequences that run at once; by default 1024 on GPUs of 70 GiB and more, 256 on smaller ones, 64 on a CPU")
	f.IntVar(&cfg.Budget.MaxRows, "max-num-batched-tokens", 0, "most tokens of one step")
	f.IntVar(&cfg.Layout.Tensor, "tensor-parallel-size", 1, "tensor ranks")
	f.IntVar(&cfg.Layout.Pipeline, "pipeline-parallel-size", 1, "pipeline stages")
	f.StringSliceVar(&shapes, "streams", nil, "equal requests at once, N×IN×OUT (an x will do)")
	f.StringSliceVar(&workloads, "workload", nil, "files of [[input tokens, output tokens], …]")
	return command
}

// named is some work under the name it was asked for by.
type named struct {
	name string
	work []measure.Request
}

func workOf(shapes, files []string) ([]named, error) {
	var all []named
	for _, shape := range shapes {
		part := strings.Split(strings.ReplaceAll(shape, "×", "x"), "x")
		var n [3]int
		for i := range n {
			value, err := strconv.Atoi(part[min(i, len(part)-1)])
			if err != nil || value < 1 || len(part) != len(n) {
				return nil, fmt.Errorf("--streams %s: give N×IN×OUT, each at least 1", shape)
			}
			n[i] = value
		}
		w := named{name: shape}
		for range n[0] {
			w.work = append(w.work, measure.Request{Input: n[1], Output: n[2]})
		}
		all = append(all, w)
	}
	for _, file := range files {
		lengths, err := load.ReadWork(file)
		if err != nil {
			return nil, err
		}
		w := named{name: file}
		for _, l := range lengths {
			w.work = append(w.work, measure.Request{Input: l.Input, Output: l.Output})
		}
		all = append(all, w)
	}
	return all, nil
}
