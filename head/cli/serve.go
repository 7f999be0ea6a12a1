package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"manta/head/api"
	"manta/head/client"
	"manta/head/jobs"
)

func serveCommand() *cobra.Command {
	var at server
	var wait bool
	var timeout time.Duration
	command := &cobra.Command{
		Use: "serve MODEL", Short: "Deploy a model on the cluster, or change how it is deployed", Args: cobra.ExactArgs(1),
		Long: `Deploy a model on the cluster, and wait until it answers. A deployment of that name is
changed: its replicas are made anew one after the other, each once its successor is
ready. Flags have vLLM's names.`,
		RunE: func(command *cobra.Command, args []string) error {
			body, err := jobs.ServeBody(command.Flags(), args[0])
			if err != nil {
				return err
			}
			c := at.client()
			defer c.Close()
			var d api.Deployment
			if err := c.Post(command.Context(), "/api/cluster/deployments", body, &d); err != nil {
				return err
			}
			out := command.OutOrStdout()
			fmt.Fprintf(out, "deployment %s: %s, replicas: %s\n", d.Name, d.Model, wanted(d))
			if !wait {
				return nil
			}
			ctx, stop := place{timeout: timeout}.within(command.Context())
			defer stop()
			return served(ctx, c, d.Name, func(line string) { fmt.Fprintln(command.ErrOrStderr(), line) })
		},
	}
	at.register(command)
	jobs.ServeFlags(command.Flags())
	command.Flags().BoolVar(&wait, "wait", true, "wait until every replica answers")
	command.Flags().DurationVar(&timeout, "timeout", 0, "most time to wait; 0: no limit")
	return command
}

func explainPath(name string) string {
	return strings.Replace(client.DeploymentPath(name), "/deployments/", "/explain/", 1)
}

// served waits until all replicas of a deployment's newest version are ready, and
// says what it waits for whenever that changes.
func served(ctx context.Context, c *client.Client, name string, say func(string)) error {
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	said := ""
	for {
		var e api.Explanation
		err := c.Get(ctx, explainPath(name), &e)
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("%s: not ready: %w; last seen: %s", name, late(ctx), said)
		case err != nil && !unanswered(err):
			return err
		case err == nil && e.Deployment.Current() && len(e.Pending) == 0:
			say(name + " answers")
			return nil
		case err == nil:
			if line := waitsFor(e); line != said {
				say(line)
				said = line
			}
		}
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
	}
}

// waitsFor is one line on what a deployment waits for.
func waitsFor(e api.Explanation) string {
	parts := []string{fmt.Sprintf("%s: %d of %d ready", e.Deployment.Name, e.Deployment.Ready, e.Deployment.Wanted)}
	for _, r := range e.Deployment.Replicas {
		if r.Phase != "ready" {
			parts = append(parts, r.ID+" "+state(r))
		}
	}
	for _, w := range e.Pending {
		parts = append(parts, w.Lines()...)
	}
	return strings.Join(parts, "; ")
}

func state(r api.Replica) string {
	text := r.Phase
	if r.Whole > 0 {
		text += fmt.Sprintf(" %d%%", 100*r.Pulled/r.Whole)
	}
	if r.Reason != "" {
		text += ": " + r.Reason
	}
	return text
}

func wanted(d api.Deployment) string {
	if d.Auto {
		return "auto"
	}
	return fmt.Sprint(d.Wanted)
}

func deleteCommand() *cobra.Command {
	var at server
	command := &cobra.Command{
		Use: "delete NAME | delete node NAME", Short: "Take a deployment away, or forget a node that is gone", Args: cobra.RangeArgs(1, 2),
		RunE: func(command *cobra.Command, args []string) error {
			path := client.DeploymentPath(args[len(args)-1])
			if len(args) == 2 {
				switch args[0] {
				case "node", "nodes":
					path = nodePath(args[1])
				case "deployment", "deployments":
				default:
					return fmt.Errorf("delete what? a deployment or a node, not %q", args[0])
				}
			}
			c := at.client()
			defer c.Close()
			if err := c.Delete(command.Context(), path); err != nil {
				return err
			}
			_, err := fmt.Fprintf(command.OutOrStdout(), "%s deleted\n", strings.Join(args, " "))
			return err
		},
	}
	at.register(command)
	return command
}

func explainCommand() *cobra.Command {
	var at server
	command := &cobra.Command{
		Use: "explain NAME", Short: "Say what a deployment waits for: node by node, what is missing", Args: cobra.ExactArgs(1),
		RunE: func(command *cobra.Command, args []string) error {
			c := at.client()
			defer c.Close()
			var e api.Explanation
			if err := c.Get(command.Context(), explainPath(args[0]), &e); err != nil {
				return err
			}
			out := command.OutOrStdout()
			d := e.Deployment
			fmt.Fprintf(out, "%s: %s, tensor %d x pipeline %d, %d of %s replicas ready\n", d.Name, d.Model, d.Tensor, d.Pipeline, d.Ready, wanted(d))
			for _, r := range d.Replicas {
				fmt.Fprintf(out, "  %s: %s; %s\n", r.ID, state(r), strings.Join(r.Shards, "; "))
			}
			for _, w := range e.Pending {
				fmt.Fprintf(out, "\nno place for %d of its replicas:\n", w.Missing)
				for _, line := range w.Lines() {
					fmt.Fprintf(out, "  %s\n", line)
				}
			}
			if len(e.Events) > 0 {
				fmt.Fprintln(out)
				return writeEvents(out, e.Events)
			}
			return nil
		},
	}
	at.register(command)
	return command
}
