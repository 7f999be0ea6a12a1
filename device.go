//go:build !windows

package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"manta/node"
	"manta/node/device"
	"manta/node/serve"
	"manta/runtime/weights"
)

// offer is what a node offers, and where its ranks run.
type offer struct{ devices, processes string }

func (o *offer) flags(f *pflag.FlagSet) {
	f.StringVar(&o.devices, "devices", "auto", "devices to offer: auto (GPUs if there are any), cuda, cpu, cpu:N, cpu:N@PART (others leave that part of its speed), sim:N or sim:N@SPEED (simulated H200s: they compute nothing)")
	f.StringVar(&o.processes, "device-processes", "auto", "run a replica's ranks in a process of their own: auto (on GPUs), always or never")
}

// open finds the devices.
func (o *offer) open(downloads, traces string) ([]serve.Kind, *node.Processes, error) {
	kinds, err := node.Devices(o.devices)
	if err != nil {
		return nil, nil, err
	}
	processes, err := node.NewProcesses(o.processes, kinds)
	if processes != nil {
		processes.Devices, processes.Downloads, processes.Traces = o.devices, downloads, traces
	}
	return kinds, processes, err
}

// models opens a folder of models, by default the node's own.
func models(downloads string) func(string) *weights.Library {
	return func(dir string) *weights.Library {
		if dir == "" {
			dir = downloads
		}
		return weights.NewLibrary(dir)
	}
}

// deviceCommand is what a node starts, not a user.
func deviceCommand() *cobra.Command {
	return &cobra.Command{
		Use: device.Command, Short: "Run a replica's ranks for the node at standard input", Hidden: true, Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			signal.Ignore(os.Interrupt) // a terminal's; the node says when to end
			ctx, stop := signal.NotifyContext(context.WithoutCancel(command.Context()), syscall.SIGTERM)
			defer stop()
			return device.Run(ctx, device.Config{Input: os.Stdin, Logs: os.Stderr, Kinds: node.Devices, Library: models})
		},
	}
}
