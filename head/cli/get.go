package cli

import (
	"bytes"
	"cmp"
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
}

type row struct {
	name, line, wide string
	data             any    // what -o json shows of it
	news             string // what of it is worth showing again; "": line and wide
}

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
			show := func() ([]part, error) {
				l, err := list(command.Context(), c)
				if err != nil {
					return nil, err
				}
				return l.print(output, name)
			}
			if watch {
				return watched(command.Context(), command.OutOrStdout(), show)
			}
			parts, err := show()
			for _, p := range parts {
				if _, err := io.WriteString(command.OutOrStdout(), p.text); err != nil {
					return err
				}
			}
			return err
		},
	}
	at.register(command)
	command.Flags().StringVarP(&output, "output", "o", "", "json, yaml or wide")
	command.Flags().BoolVarP(&watch, "watch", "w", false, "show again whenever it changes")
	return command
}

// A part of what is shown is shown again when its news is another.
type part struct{ text, news string }

// watched prints what has changed, until it is interrupted.
func watched(ctx context.Context, out io.Writer, show func() ([]part, error)) error {
	ticker := time.NewTicker(watchEvery)
	defer ticker.Stop()
	was := map[string]bool{}
	for {
		parts, err := show()
		if err != nil && !unanswered(err) {
			return err
		}
		now := map[string]bool{}
		for _, p := range parts {
			if now[p.news] = true; !was[p.news] {
				if _, err := io.WriteString(out, p.text); err != nil {
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

// print gives what is shown of all rows, or of those with a name: a part each as a
// table, one as data.
func (l listing) print(output, name string) ([]part, error) {
	rows := []row{}
	for _, r := range l.rows {
		if name == "" || r.name == name || strings.HasPrefix(r.name, name+"-") || strings.HasPrefix(r.name, name+"/") {
			rows = append(rows, r)
		}
	}
	if name != "" && len(rows) == 0 {
		return nil, fmt.Errorf("there is no %q", name)
	}
	switch output {
	case "json", "yaml":
		text, err := encoded(output, rows)
		return []part{{text, text}}, err
	case "", "wide":
	default:
		return nil, fmt.Errorf("--output must be json, yaml or wide, got %q", output)
	}
	var text strings.Builder
	table := tabwriter.NewWriter(&text, 0, 4, 3, ' ', 0)
	var parts []part
	for _, r := range append([]row{{line: l.head, wide: l.wide}}, rows...) {
		line := r.line
		if output == "wide" && r.wide != "" {
			line += "\t" + r.wide
		}
		line = strings.ReplaceAll(line, "\n", " ")
		fmt.Fprintln(table, line)
		parts = append(parts, part{news: cmp.Or(r.news, line)})
	}
	if err := table.Flush(); err != nil {
		return nil, err
	}
	i := 0
	for line := range strings.Lines(text.String()) {
		parts[i].text = line
		i++
	}
	return parts, nil
}

// encoded gives rows as data.
func encoded(output string, rows []row) (string, error) {
	list := make([]any, len(rows))
	for i, r := range rows {
		list[i] = r.data
	}
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetIndent("", "    ")
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(list); err != nil || output == "json" {
		return text.String(), err
	}
	var plain any // by way of JSON, so that both have the same names
	if err := yaml.Unmarshal(text.Bytes(), &plain); err != nil {
		return "", err
	}
	data, err := yaml.Marshal(plain)
	return string(data), err
}

func nodes(ctx context.Context, c *client.Client) (listing, error) {
	var answer struct {
		Nodes []api.Node `json:"nodes"`
	}
	err := c.Get(ctx, "/api/cluster/nodes", &answer)
	l := listing{head: "NAME\tSTATUS\tDEVICES\tMEMORY\tREPLICAS", wide: "LABELS\tHARDWARE"}
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
			name: n.ID, data: n,
			line: fmt.Sprintf("%s\t%s\t%d\t%.1f GiB\t%d", n.ID, n.Status, len(n.Devices), gib(memory), len(n.Replicas)),
			wide: orNone(strings.Join(labels, ",")) + "\t" + orNone(strings.Join(kinds, ", ")),
		})
	}
	return l, err
}

func deployments(ctx context.Context, c *client.Client) (listing, error) {
	all, err := allDeployments(ctx, c)
	l := listing{head: "NAME\tREADY\tUP-TO-DATE\tWAITING\tAGE", wide: "MODEL\tREVISION\tTP\tPP\tMAX-MODEL-LEN"}
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
		line := fmt.Sprintf("%s\t%s\t%d\t%d\t", d.Name, ready, current, d.Waiting)
		wide := fmt.Sprintf("%s\t%s\t%d\t%d\t%d", d.Model, orNone(d.Revision), d.Tensor, d.Pipeline, d.MaxModelLen)
		l.rows = append(l.rows, row{name: d.Name, data: d, line: line + age(d.Created), wide: wide, news: line + wide})
	}
	return l, err
}

func replicas(ctx context.Context, c *client.Client) (listing, error) {
	all, err := allDeployments(ctx, c)
	l := listing{head: "NAME\tSTATUS\tEPOCH\tNODES", wide: "BLOCKS\tSHARDS"}
	for _, d := range all {
		for _, r := range d.Replicas {
			status := state(r)
			if r.Outdated {
				status += " (outdated)"
			}
			l.rows = append(l.rows, row{
				name: r.ID, data: r,
				line: fmt.Sprintf("%s\t%s\t%d\t%s", r.ID, status, r.Epoch, strings.Join(r.Nodes, ",")),
				wide: fmt.Sprintf("%v\t%s", r.Blocks, strings.Join(r.Shards, "; ")),
			})
		}
	}
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
	l := listing{head: "NAME\tROLE\tAPI"}
	for _, h := range s.Heads {
		l.rows = append(l.rows, row{name: h.ID, data: h, line: fmt.Sprintf("%s\t%s\t%s", h.ID, role(s, h), h.API)})
	}
	return l, nil
}

func role(s *api.ClusterState, h api.Head) string {
	switch {
	case h.Lost:
		return "lost"
	case s.Leader == h.ID:
		return "leader"
	}
	return "follower"
}

func events(ctx context.Context, c *client.Client) (listing, error) {
	var answer struct {
		Events []api.Event `json:"events"`
	}
	err := c.Get(ctx, "/api/cluster/events", &answer)
	l := listing{head: eventColumns}
	for _, e := range answer.Events {
		_, name, _ := strings.Cut(e.Object, "/")
		l.rows = append(l.rows, row{
			name: name, data: e, line: eventLine(e),
			news: strings.Join([]string{e.At.String(), e.Reason, e.Object, e.Message}, "\t"),
		})
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
