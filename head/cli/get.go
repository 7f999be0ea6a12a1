package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"manta/head/api"
	"manta/head/client"
)

// watchEvery is between two looks of get -w.
const watchEvery = time.Second

// listing is what `manta get` shows: a table of one kind, or the same as data.
type listing struct {
	head string // columns, with tabs
	wide string // further ones of -o wide
	rows []row
	data any
}

type row struct{ name, line, wide string }

// listings are the kinds that can be got, by kubectl's way to name them.
var listings = map[string]func(context.Context, *client.Client) (listing, error){
	"nodes": nodes, "deployments": deployments, "replicas": replicas, "heads": heads, "events": events,
}

func getCommand() *cobra.Command {
	var at server
	var output string
	var watch bool
	command := &cobra.Command{
		Use: "get nodes|deployments|replicas|heads|events [NAME]", Short: "List what the cluster has",
		Args: cobra.RangeArgs(1, 2), ValidArgs: []string{"nodes", "deployments", "replicas", "heads", "events"},
		RunE: func(command *cobra.Command, args []string) error {
			list, ok := listings[strings.TrimSuffix(args[0], "s")+"s"]
			if !ok {
				return fmt.Errorf("get what? nodes, deployments, replicas, heads or events, not %q", args[0])
			}
			name := ""
			if len(args) == 2 {
				name = args[1]
			}
			c := at.client()
			defer c.Close()
			show := func() (string, error) {
				l, err := list(command.Context(), c)
				if err != nil {
					return "", err
				}
				return l.print(output, name)
			}
			if watch {
				return watched(command.Context(), command.OutOrStdout(), show)
			}
			text, err := show()
			if err == nil {
				_, err = io.WriteString(command.OutOrStdout(), text)
			}
			return err
		},
	}
	at.register(command)
	command.Flags().StringVarP(&output, "output", "o", "", "json, yaml or wide")
	command.Flags().BoolVarP(&watch, "watch", "w", false, "show again whenever it changes")
	return command
}

// watched prints what has changed, until it is interrupted.
func watched(ctx context.Context, out io.Writer, show func() (string, error)) error {
	ticker := time.NewTicker(watchEvery)
	defer ticker.Stop()
	was := map[string]bool{}
	for {
		text, err := show()
		if err != nil && !unanswered(err) {
			return err
		}
		now := map[string]bool{}
		for line := range strings.Lines(text) {
			if now[line] = true; !was[line] {
				if _, err := io.WriteString(out, line); err != nil {
					return err
				}
			}
		}
		if err == nil {
			was = now
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// unanswered reports whether no head answered: another try may help.
func unanswered(err error) bool {
	var refused *client.Error
	return !errors.As(err, &refused) || refused.Status == 503
}

func (l listing) print(output, name string) (string, error) {
	var text strings.Builder
	switch output {
	case "json":
		encoder := json.NewEncoder(&text)
		encoder.SetIndent("", "    ")
		encoder.SetEscapeHTML(false)
		err := encoder.Encode(l.data)
		return text.String(), err
	case "yaml":
		// By way of JSON, so that both have the same names.
		data, err := json.Marshal(l.data)
		if err != nil {
			return "", err
		}
		var plain any
		if err := yaml.Unmarshal(data, &plain); err != nil {
			return "", err
		}
		data, err = yaml.Marshal(plain)
		return string(data), err
	case "", "wide":
	default:
		return "", fmt.Errorf("--output must be json, yaml or wide, got %q", output)
	}
	table := tabwriter.NewWriter(&text, 0, 4, 3, ' ', 0)
	line := func(narrow, more string) {
		if output == "wide" && more != "" {
			narrow += "\t" + more
		}
		fmt.Fprintln(table, narrow)
	}
	line(l.head, l.wide)
	found := name == ""
	for _, r := range l.rows {
		if name == "" || r.name == name || strings.HasPrefix(r.name, name+"-") || strings.HasPrefix(r.name, name+"/") {
			line(r.line, r.wide)
			found = true
		}
	}
	if !found {
		return "", fmt.Errorf("there is no %q", name)
	}
	err := table.Flush()
	return text.String(), err
}

func nodes(ctx context.Context, c *client.Client) (listing, error) {
	var answer struct {
		Nodes []api.Node `json:"nodes"`
	}
	err := c.Get(ctx, "/api/cluster/nodes", &answer)
	l := listing{head: "NAME\tSTATUS\tDEVICES\tMEMORY\tREPLICAS", wide: "LABELS\tHARDWARE", data: answer.Nodes}
	for _, n := range answer.Nodes {
		var memory int64
		hardware := map[string]int{}
		for _, d := range n.Devices {
			memory += d.Memory
			hardware[d.Name]++
		}
		var labels, kinds []string
		for _, key := range sortedKeys(n.Labels) {
			labels = append(labels, key+"="+n.Labels[key])
		}
		for _, name := range sortedKeys(hardware) {
			kinds = append(kinds, fmt.Sprintf("%dx %s", hardware[name], name))
		}
		l.rows = append(l.rows, row{
			n.ID,
			fmt.Sprintf("%s\t%s\t%d\t%.1f GiB\t%d", n.ID, n.Status, len(n.Devices), gib(memory), len(n.Replicas)),
			orNone(strings.Join(labels, ",")) + "\t" + orNone(strings.Join(kinds, ", ")),
		})
	}
	return l, err
}

func deployments(ctx context.Context, c *client.Client) (listing, error) {
	all, err := allDeployments(ctx, c)
	l := listing{head: "NAME\tREADY\tUP-TO-DATE\tWAITING\tAGE", wide: "MODEL\tREVISION\tTP\tPP\tMAX-MODEL-LEN", data: all}
	for _, d := range all {
		current := 0
		for _, r := range d.Replicas {
			if !r.Outdated {
				current++
			}
		}
		ready := fmt.Sprintf("%d/%d", d.Ready, d.Wanted)
		if d.Auto {
			ready += " (auto)"
		}
		l.rows = append(l.rows, row{
			d.Name, fmt.Sprintf("%s\t%s\t%d\t%d\t%s", d.Name, ready, current, d.Waiting, age(d.Created)),
			fmt.Sprintf("%s\t%s\t%d\t%d\t%d", d.Model, orNone(d.Revision), d.Tensor, d.Pipeline, d.MaxModelLen),
		})
	}
	return l, err
}

func replicas(ctx context.Context, c *client.Client) (listing, error) {
	all, err := allDeployments(ctx, c)
	l := listing{head: "NAME\tSTATUS\tEPOCH\tNODES", wide: "BLOCKS\tSHARDS"}
	list := []api.Replica{}
	for _, d := range all {
		for _, r := range d.Replicas {
			list = append(list, r)
			status := state(r)
			if r.Outdated {
				status += " (outdated)"
			}
			l.rows = append(l.rows, row{
				r.ID, fmt.Sprintf("%s\t%s\t%d\t%s", r.ID, status, r.Epoch, strings.Join(r.Nodes, ",")),
				fmt.Sprintf("%v\t%s", r.Blocks, strings.Join(r.Shards, ", ")),
			})
		}
	}
	l.data = list
	return l, err
}

func allDeployments(ctx context.Context, c *client.Client) ([]api.Deployment, error) {
	var answer struct {
		Deployments []api.Deployment `json:"deployments"`
	}
	err := c.Get(ctx, "/api/cluster/deployments", &answer)
	return answer.Deployments, err
}

func heads(ctx context.Context, c *client.Client) (listing, error) {
	s, err := c.Cluster(ctx)
	if err != nil {
		return listing{}, err
	}
	l := listing{head: "NAME\tROLE\tAPI", data: s.Heads}
	for _, h := range s.Heads {
		l.rows = append(l.rows, row{h.ID, fmt.Sprintf("%s\t%s\t%s", h.ID, role(s, h), h.API), ""})
	}
	return l, nil
}

func role(s *api.ClusterState, h api.Head) string {
	if s.Leader == h.ID {
		return "leader"
	}
	return "follower"
}

func events(ctx context.Context, c *client.Client) (listing, error) {
	var answer struct {
		Events []api.Event `json:"events"`
	}
	err := c.Get(ctx, "/api/cluster/events", &answer)
	l := listing{head: eventColumns, data: answer.Events}
	for _, e := range answer.Events {
		_, name, _ := strings.Cut(e.Object, "/")
		l.rows = append(l.rows, row{name, eventLine(e), ""})
	}
	return l, err
}

const eventColumns = "LAST SEEN\tTYPE\tREASON\tOBJECT\tMESSAGE"

func eventLine(e api.Event) string {
	return fmt.Sprintf("%s\t%s\t%s\t%s\t%s", age(e.At), e.Type, e.Reason, e.Object, e.Message)
}

func writeEvents(out io.Writer, events []api.Event) error {
	table := tabwriter.NewWriter(out, 0, 4, 3, ' ', 0)
	fmt.Fprintln(table, eventColumns)
	for _, e := range events {
		fmt.Fprintln(table, eventLine(e))
	}
	return table.Flush()
}
