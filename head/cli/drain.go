package cli

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"manta/head/api"
	"manta/head/client"
)

// lookEvery is between two looks at what a command waits for.
const lookEvery = 250 * time.Millisecond

// place are the flags that say which member is meant.
type place struct {
	self    bool
	dataDir string
	timeout time.Duration
}

func (p *place) register(command *cobra.Command) {
	flags := command.Flags()
	flags.BoolVar(&p.self, "self", false, "the node that runs on this machine, without the API")
	flags.StringVar(&p.dataDir, "data-dir", "", "of that node (MANTA_DATA_DIR)")
}

func (p *place) waits(command *cobra.Command) {
	command.Flags().DurationVar(&p.timeout, "timeout", 0, "most time to wait; 0: no limit")
}

func (p place) within(ctx context.Context) (context.Context, context.CancelFunc) {
	if p.timeout > 0 {
		return context.WithTimeout(ctx, p.timeout)
	}
	return context.WithCancel(ctx)
}

// named takes either a node's name or --self.
func (p *place) named(args []string) error {
	if p.self == (len(args) == 1) {
		return errors.New("give the name of a node, or --self")
	}
	return nil
}

func drainCommand(local Local) *cobra.Command {
	var at server
	var p place
	var force bool
	command := &cobra.Command{
		Use: "drain NODE", Short: "Move a node's shards elsewhere; it takes none until undrain", Args: cobra.MaximumNArgs(1),
		Long: `Move a node's shards elsewhere, and wait until it has none. A replica goes once its
successor is ready; streams go on. What finds no other place stays, and the command
says why; with --force it goes too, and its streams wait until there is a place. With
--self, on the node's own machine, the node asks for it by itself.`,
		RunE: func(command *cobra.Command, args []string) error {
			if err := p.named(args); err != nil {
				return err
			}
			ctx, stop := p.within(command.Context())
			defer stop()
			if p.self && force {
				return errors.New("--force goes through the API: give the name of the node instead of --self")
			}
			say := func(line string) { fmt.Fprintln(command.ErrOrStderr(), line) }
			if p.self {
				err := local(ctx, p.dataDir, "drain")
				if err == nil {
					say("this node has no shards, and takes none until it starts again or manta undrain --self")
				}
				return err
			}
			c := at.client()
			defer c.Close()
			var node api.Node
			path := nodePath(args[0]) + "/drain"
			if force {
				path += "?force=true"
			}
			if err := c.Post(ctx, path, nil, &node); err != nil {
				return err
			}
			return emptied(ctx, c, node, say)
		},
	}
	at.register(command)
	p.register(command)
	p.waits(command)
	command.Flags().BoolVar(&force, "force", false, "move what finds no other place too: it stops and waits")
	return command
}

func nodePath(name string) string { return "/api/cluster/nodes/" + url.PathEscape(name) }

// emptied waits until a node has no shards, and says what keeps those that it has.
func emptied(ctx context.Context, c *client.Client, node api.Node, say func(string)) error {
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	said := ""
	for len(node.Replicas) > 0 {
		line := fmt.Sprintf("%s still has shards of %s", node.ID, strings.Join(node.Replicas, ", "))
		if line != said {
			say(line)
			said = line
		}
		select {
		case <-ctx.Done():
			return why(c, node, late(ctx))
		case <-ticker.C:
		}
		if err := c.Get(ctx, nodePath(node.ID), &node); err != nil && ctx.Err() == nil {
			return err
		}
	}
	say(node.ID + " has no shards")
	return nil
}

// late is why a wait ended.
func late(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return errors.New("not within --timeout")
	}
	return ctx.Err()
}

// why adds to the end of a wait what the cluster says of it.
func why(c *client.Client, node api.Node, cause error) error {
	ctx, stop := context.WithTimeout(context.Background(), 2*time.Second)
	defer stop()
	state, err := c.Cluster(ctx)
	if err != nil {
		return cause
	}
	for _, w := range state.Pending {
		for _, id := range node.Replicas {
			if strings.HasPrefix(id, w.Deployment+"/") {
				return fmt.Errorf("%w: %s finds no other place: %s", cause, w.Deployment, strings.Join(w.Lines(), "; "))
			}
		}
	}
	return cause
}

func undrainCommand(local Local) *cobra.Command {
	var at server
	var p place
	command := &cobra.Command{
		Use: "undrain NODE", Short: "Let a drained node take shards again", Args: cobra.MaximumNArgs(1),
		RunE: func(command *cobra.Command, args []string) error {
			if err := p.named(args); err != nil {
				return err
			}
			say := func(line string) { fmt.Fprintln(command.ErrOrStderr(), line) }
			if p.self {
				err := local(command.Context(), p.dataDir, "undrain")
				if err == nil {
					say("this node takes shards")
				}
				return err
			}
			c := at.client()
			defer c.Close()
			var node api.Node
			if err := c.Post(command.Context(), nodePath(args[0])+"/undrain", nil, &node); err != nil {
				return err
			}
			if strings.Contains(node.Status, "Stopping") {
				say(node.ID + " takes none yet: it drains by itself, until it starts again or manta undrain --self on its machine")
				return nil
			}
			say(node.ID + " takes shards")
			return nil
		},
	}
	at.register(command)
	p.register(command)
	return command
}

func leaveCommand(local Local) *cobra.Command {
	var p place
	command := &cobra.Command{
		Use: "leave", Short: "Take the head or node on this machine out of the cluster for good", Args: cobra.NoArgs,
		Long: `Take the head or node that runs on this machine out of the cluster for good, and end
it. A node's shards move first, then the cluster forgets it. A head ends its requests,
then it is no voter any more: one that only stops remains one. Made for scaling down.`,
		RunE: func(command *cobra.Command, _ []string) error {
			ctx, stop := p.within(command.Context())
			defer stop()
			return local(ctx, p.dataDir, "leave")
		},
	}
	command.Flags().StringVar(&p.dataDir, "data-dir", "", "of the head or node (MANTA_DATA_DIR)")
	p.waits(command)
	return command
}
