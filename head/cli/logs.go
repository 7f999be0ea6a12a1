package cli

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"manta/head/api"
	"manta/node/wire"
)

// followEvery is between two looks at a log that is followed.
const followEvery = 500 * time.Millisecond

func memberLogsCommand() *cobra.Command {
	var at server
	var lines int
	var follow bool
	command := &cobra.Command{
		Use: "logs NODE|HEAD|REPLICA", Short: "Print the newest lines that a node, a head or a replica's nodes logged", Args: cobra.ExactArgs(1),
		RunE: func(command *cobra.Command, args []string) error {
			c := at.client()
			defer c.Close()
			read := func(ctx context.Context, lines int) (string, error) {
				return c.Text(ctx, fmt.Sprintf("/api/cluster/logs/%s?tail=%d", url.PathEscape(args[0]), lines))
			}
			text, err := read(command.Context(), lines)
			if err != nil {
				return err
			}
			if _, err = io.WriteString(command.OutOrStdout(), text); err != nil || !follow {
				return err
			}
			ticker := time.NewTicker(followEvery)
			defer ticker.Stop()
			seen := followed{}
			seen.fresh(text)
			for {
				select {
				case <-command.Context().Done():
					return nil
				case <-ticker.C:
				}
				text, err := read(command.Context(), wire.MaxLogLines)
				if command.Context().Err() != nil {
					return nil
				} else if err != nil {
					return err
				}
				for _, line := range seen.fresh(text) {
					if _, err := fmt.Fprintln(command.OutOrStdout(), line); err != nil {
						return err
					}
				}
			}
		},
	}
	at.register(command)
	command.Flags().IntVar(&lines, "tail", 200, "most lines of each process")
	command.Flags().BoolVarP(&follow, "follow", "f", false, "go on printing what is logged")
	return command
}

// followed are the lines of each process, by its name, that an answer last had.
type followed map[string][]string

// fresh gives the lines of an answer, one process after the other, that the last one
// did not have. Lines bear their time, so one that is found again is the same.
func (f followed) fresh(text string) []string {
	now := map[string][]string{}
	var order []string
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		process, _, _ := strings.Cut(line, ": ")
		if now[process] == nil {
			order = append(order, process)
		}
		now[process] = append(now[process], line)
	}
	var fresh []string
	for _, process := range order {
		lines := now[process]
		from := 0
		for _, known := range slices.Backward(f[process]) {
			if at := slices.Index(lines, known); at >= 0 {
				from = at + 1 // what follows the newest line that both have
				break
			}
		}
		fresh = append(fresh, lines[from:]...)
		if !strings.HasPrefix(lines[0], process+": "+api.NoAnswer) {
			f[process] = lines
		} else if from == 0 {
			f[process] = append(f[process], lines...) // what was before is known still
		}
	}
	return fresh
}
