//go:build !windows

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"manta/head/state"
)

// recoverCommand is for the day on which most heads are lost for good.
func recoverCommand() *cobra.Command {
	p := &process{}
	command := &cobra.Command{
		Use: "recover", Short: "Make a stopped head the only voter, after most heads are lost for good", Args: cobra.NoArgs,
		Long: "When most heads have lost their disks, the others can't elect a leader. recover makes one of\n" +
			"them the only voter, with all that its disk holds. Stop every head first, run it on the one\n" +
			"with the greatest index, start that, then start the others with empty data directories: they\n" +
			"join as new. A head that ran on its old disk again would go on with a cluster of its own.",
		RunE: func(command *cobra.Command, _ []string) error {
			if err := p.complete(command.Flags()); err != nil {
				return err
			}
			return p.alone(command.Context(), command.ErrOrStderr(), func(context.Context) error {
				dir := filepath.Join(p.dataDir, "head")
				digits, err := os.ReadFile(filepath.Join(dir, "id"))
				if err != nil {
					return fmt.Errorf("%s holds no head: give its --data-dir: %w", p.dataDir, err)
				}
				r, err := state.Recover(filepath.Join(dir, "raft"), strings.TrimSpace(string(digits)), p.logger)
				if err != nil {
					return err
				}
				fmt.Fprintf(command.OutOrStdout(), "%s is the only voter now (of %s), at index %d, deployments: %d; start it, then the others with empty data directories\n",
					r.ID, strings.Join(r.Were, ", "), r.View.Index, len(r.View.Deployments))
				return nil
			})
		},
	}
	p.dirFlags(command.Flags())
	return command
}
