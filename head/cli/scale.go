package cli

import (
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"manta/head/api"
	"manta/head/client"
)

func scaleCommand() *cobra.Command {
	var at server
	var replicas string
	command := &cobra.Command{
		Use: "scale NAME --replicas N|auto", Short: "Change how many replicas a deployment has", Args: cobra.ExactArgs(1),
		RunE: func(command *cobra.Command, args []string) error {
			count, err := replicaCount(replicas)
			if err != nil {
				return err
			}
			c := at.client()
			defer c.Close()
			var d api.Deployment
			body := map[string]any{"replicas": count}
			if err := c.Patch(command.Context(), client.DeploymentPath(args[0]), body, &d); err != nil {
				return err
			}
			_, err = fmt.Fprintf(command.OutOrStdout(), "deployment %s scaled to %s\n", d.Name, replicas)
			return err
		},
	}
	at.register(command)
	command.Flags().StringVar(&replicas, "replicas", "", "a number, or auto: as many as fit")
	return command
}

// replicaCount gives JSON for a flag's value.
func replicaCount(text string) (json.RawMessage, error) {
	if text == "auto" {
		return json.RawMessage(`"auto"`), nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		return nil, fmt.Errorf("--replicas must be a number or auto, got %q", text)
	}
	return json.RawMessage(strconv.Itoa(n)), nil
}
