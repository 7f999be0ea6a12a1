package cli

import (
	"fmt"
	"io"
	"net/url"

	"github.com/spf13/cobra"
)

func memberLogsCommand() *cobra.Command {
	var at server
	var lines int
	command := &cobra.Command{
		Use: "logs NODE|HEAD|REPLICA", Short: "Print the newest lines that a node, a head or a replica's nodes logged", Args: cobra.ExactArgs(1),
		RunE: func(command *cobra.Command, args []string) error {
			c := at.client()
			defer c.Close()
			text, err := c.Text(command.Context(), fmt.Sprintf("/api/cluster/logs/%s?tail=%d", url.PathEscape(args[0]), lines))
			if err == nil {
				_, err = io.WriteString(command.OutOrStdout(), text)
			}
			return err
		},
	}
	at.register(command)
	command.Flags().IntVar(&lines, "tail", 200, "most lines of each process")
	return command
}
