package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"manta/head/api"
)

func keysCommand() *cobra.Command {
	command := &cobra.Command{
		Use: "keys", Short: "Make, list and revoke API keys", Args: cobra.NoArgs, RunE: overview,
		Long: "Make, list and revoke API keys. The cluster keeps their hashes: a key is shown once, when it\n" +
			"is made. Only administrators' keys may do this, as only they may change deployments and nodes;\n" +
			"where no key exists yet, anybody may make the first, which must be an administrator's.",
	}
	command.AddCommand(createKeyCommand(), listKeysCommand(), revokeKeyCommand())
	return command
}

func createKeyCommand() *cobra.Command {
	var at server
	var asJSON bool
	var key struct {
		Name              string  `json:"name"`
		Admin             bool    `json:"admin"`
		RequestsPerSecond float64 `json:"requests_per_second"`
		TokensPerMinute   int     `json:"tokens_per_minute"`
		Weight            float64 `json:"weight"`
		Priority          int     `json:"priority"`
	}
	command := &cobra.Command{
		Use: "create NAME", Short: "Make a key and print it, once", Args: cobra.ExactArgs(1),
		RunE: func(command *cobra.Command, args []string) error {
			key.Name = args[0]
			c := at.client()
			defer c.Close()
			var made api.Key
			if err := c.Post(command.Context(), "/api/keys", key, &made); err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(command.OutOrStdout()).Encode(made)
			}
			_, err := fmt.Fprintln(command.OutOrStdout(), made.Key)
			return err
		},
	}
	at.register(command)
	flags := command.Flags()
	flags.BoolVar(&key.Admin, "admin", false, "it may make and revoke keys")
	flags.Float64Var(&key.RequestsPerSecond, "requests-per-second", 0, "most requests a second, over all heads; 0: no limit")
	flags.IntVar(&key.TokensPerMinute, "tokens-per-minute", 0, "most tokens a minute, of prompts and answers together; 0: no limit")
	flags.Float64Var(&key.Weight, "weight", 1, "its part of a busy deployment beside other keys'")
	flags.IntVar(&key.Priority, "priority", 0, "the most urgent priority of its requests; lower runs first")
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	return command
}

func listKeysCommand() *cobra.Command {
	var at server
	var asJSON bool
	command := &cobra.Command{
		Use: "list", Short: "List the keys and their limits", Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			c := at.client()
			defer c.Close()
			var list struct {
				Keys []api.Key `json:"keys"`
			}
			if err := c.Get(command.Context(), "/api/keys", &list); err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(command.OutOrStdout()).Encode(list)
			}
			return writeKeys(command.OutOrStdout(), list.Keys)
		},
	}
	at.register(command)
	command.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return command
}

func writeKeys(out io.Writer, keys []api.Key) error {
	table := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(table, "NAME\tROLE\tREQUESTS/S\tTOKENS/MIN\tWEIGHT\tPRIORITY\tCREATED")
	limit := func(text string) string {
		if text == "0" {
			return "-"
		}
		return text
	}
	for _, k := range keys {
		role := "user"
		if k.Admin {
			role = "admin"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%v\t%d\t%s\n", k.Name, role, limit(strconv.FormatFloat(k.RequestsPerSecond, 'g', -1, 64)),
			limit(strconv.Itoa(k.TokensPerMinute)), k.Weight, k.Priority, k.Created.Local().Format(time.DateTime))
	}
	return table.Flush()
}

func revokeKeyCommand() *cobra.Command {
	var at server
	command := &cobra.Command{
		Use: "revoke NAME", Short: "Revoke a key: from now on it opens nothing", Args: cobra.ExactArgs(1),
		RunE: func(command *cobra.Command, args []string) error {
			c := at.client()
			defer c.Close()
			return c.Delete(command.Context(), "/api/keys/"+url.PathEscape(args[0]))
		},
	}
	at.register(command)
	return command
}
