package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"manta/head/api"
)

func statusCommand() *cobra.Command {
	var at server
	var asJSON bool
	command := &cobra.Command{
		Use: "status", Short: "Show heads, nodes, deployments and their replicas", Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			c := at.client()
			defer c.Close()
			state, err := c.Cluster(command.Context())
			if err != nil {
				return err
			}
			if asJSON {
				encoder := json.NewEncoder(command.OutOrStdout())
				encoder.SetIndent("", "  ")
				return encoder.Encode(state)
			}
			return writeStatus(command.OutOrStdout(), state)
		},
	}
	at.register(command)
	command.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return command
}

func writeStatus(out io.Writer, state *api.ClusterState) error {
	table := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintf(table, "HEAD\tAPI\n")
	for _, head := range state.Heads {
		fmt.Fprintf(table, "%s\t%s\n", head.Name, head.API)
	}
	fmt.Fprintf(table, "\nNODE\tDEVICE\tKIND\tMEMORY\n")
	for _, node := range state.Nodes {
		name := node.ID
		if node.Drained {
			name += " (drained)"
		}
		for _, device := range node.Devices {
			fmt.Fprintf(table, "%s\t%s %s\t%s\t%.1f GiB\n", name, device.ID, device.Name, device.Kind, float64(device.Memory)/(1<<30))
		}
	}
	fmt.Fprintf(table, "\nDEPLOYMENT\tMODEL\tREADY\tWAITING\tMAX LENGTH\tREPLICA\tEPOCH\tPHASE\tSHARDS\n")
	for _, d := range state.Deployments {
		line := fmt.Sprintf("%s\t%s\t%d/%d\t%d\t%d", d.Name, d.Model, d.Ready, d.Wanted, d.Waiting, d.MaxModelLen)
		for _, replica := range d.Replicas {
			phase := replica.Phase
			if replica.Reason != "" {
				phase += ": " + replica.Reason
			}
			fmt.Fprintf(table, "%s\t%s\t%d\t%s\t%s\n", line, replica.ID, replica.Epoch, phase, strings.Join(replica.Shards, ", "))
			line = "\t\t\t\t"
		}
		if len(d.Replicas) == 0 {
			fmt.Fprintf(table, "%s\t-\t-\tnot placed\t-\n", line)
		}
	}
	return table.Flush()
}
