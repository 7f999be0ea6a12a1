//go:build !windows

// Manta serves large language models on a cluster. This package is the command
// tree: up.go runs head and node in one process, models.go keeps the download
// folder, and head/cli has the commands that are clients of the API.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"manta/head/cli"
	"manta/internal/version"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := root().ExecuteContext(ctx)
	stop()
	if err != nil {
		if !errors.Is(err, context.Canceled) {
			fmt.Fprintln(os.Stderr, "manta:", err)
		}
		os.Exit(1)
	}
}

func root() *cobra.Command {
	command := &cobra.Command{
		Use: "manta", Short: "Serve large language models on one machine or many",
		Version: version.String(), SilenceErrors: true, SilenceUsage: true,
	}
	command.AddCommand(upCommand(), headCommand(), nodeCommand(), recoverCommand(), deviceCommand(), planCommand(), pullCommand(), listCommand(), removeCommand())
	command.AddCommand(cli.Commands(tellLocal)...)
	if bench, _, err := command.Find([]string{"bench"}); err == nil {
		bench.AddCommand(benchmarks()...)
	}
	return command
}
