package cli

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"manta/head/api"
)

func statusCommand() *cobra.Command {
	var at server
	var asJSON bool
	command := &cobra.Command{
		Use: "status", Short: "Show heads, nodes, deployments, and what waits and why", Args: cobra.NoArgs,
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

// writeStatus prints the cluster so that it fits one screen: a line a head, a node
// and a replica.
func writeStatus(out io.Writer, s *api.ClusterState) error {
	if s.Stale {
		text := "no head leads: this is what one knows, and nothing is placed"
		if len(s.Heads) == 0 {
			text = "this head belongs to no cluster yet: it founds one with --bootstrap-expect heads, or one takes it in"
		}
		fmt.Fprintln(out, text)
	}
	table := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintf(table, "HEAD\tROLE\tAPI\n")
	for _, head := range s.Heads {
		fmt.Fprintf(table, "%s\t%s\t%s\n", head.ID, role(s, head), head.API)
	}
	fmt.Fprintf(table, "\nNODE\tSTATUS\tDEVICES\tMEMORY\tREPLICAS\n")
	for _, node := range s.Nodes {
		kinds := map[string]int{}
		var memory int64
		for _, d := range node.Devices {
			kinds[d.Kind+" "+d.Name]++
			memory += d.Memory
		}
		var devices []string
		for _, kind := range sortedKeys(kinds) {
			devices = append(devices, fmt.Sprintf("%dx %s", kinds[kind], kind))
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%.1f GiB\t%s\n", node.ID, node.Status, orNone(strings.Join(devices, ", ")), gib(memory), orNone(strings.Join(node.Replicas, ", ")))
	}
	fmt.Fprintf(table, "\nDEPLOYMENT\tMODEL\tREADY\tWAITING\tMAX LENGTH\tREPLICA\tEPOCH\tPHASE\tNODES\n")
	for _, d := range s.Deployments {
		line := fmt.Sprintf("%s\t%s\t%d/%s\t%d\t%d", d.Name, d.Model, d.Ready, wanted(d), d.Waiting, d.MaxModelLen)
		for _, replica := range d.Replicas {
			fmt.Fprintf(table, "%s\t%s\t%d\t%s\t%s\n", line, replica.ID, replica.Epoch, state(replica), strings.Join(replica.Nodes, ", "))
			line = "\t\t\t\t"
		}
		if len(d.Replicas) == 0 {
			fmt.Fprintf(table, "%s\t-\t-\tnot placed\t-\n", line)
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, w := range s.Pending {
		fmt.Fprintf(out, "\n%s: no place for %d of its replicas (manta explain %s)\n", w.Deployment, w.Missing, w.Deployment)
		lines := w.Lines()
		for _, line := range lines[:min(len(lines), maxStatusReasons)] {
			fmt.Fprintf(out, "  %s\n", line)
		}
	}
	if len(s.Warnings) > 0 {
		fmt.Fprintln(out)
		return writeEvents(out, s.Warnings)
	}
	return nil
}

// maxStatusReasons bounds the reasons that status gives for one deployment.
const maxStatusReasons = 4

func gib(bytes int64) float64 { return float64(bytes) / (1 << 30) }

func orNone(text string) string { return cmp.Or(text, "<none>") }

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// age is how long ago something was, as kubectl has it.
func age(at time.Time) string {
	d := time.Since(at)
	switch {
	case at.IsZero():
		return "<unknown>"
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}
