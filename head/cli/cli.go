// Package cli is the commands built on the head's API: chat, serve, get, jobs, bench and
// the like. Each is a client like any other and needs no more of the cluster than an
// address. The command tree's root, in package main, owns them.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"manta/head/client"
	"manta/internal/version"
)

// Local asks the head or node that runs on a data directory to do something.
type Local func(ctx context.Context, dataDir, action string) error

// Commands gives the commands of this package.
func Commands(local Local) []*cobra.Command {
	all := []*cobra.Command{
		jobsCommand(), batchCommand(),
		chatCommand(), generateCommand(), benchCommand(), statusCommand(), keysCommand(), versionCommand(),
		serveCommand(), deleteCommand(), getCommand(), explainCommand(), memberLogsCommand(), scaleCommand(), drainCommand(local), undrainCommand(local), leaveCommand(local),
	}
	helped(all)
	return all
}

// helped has commands that find nobody at an address say what to do.
func helped(commands []*cobra.Command) {
	for _, command := range commands {
		helped(command.Commands())
		run := command.RunE
		if run == nil || command.Flags().Lookup("url") == nil {
			continue
		}
		command.RunE = func(command *cobra.Command, args []string) error {
			err := run(command, args)
			var dial *net.OpError
			if errors.As(err, &dial) && dial.Op == "dial" && command.Context().Err() == nil {
				return fmt.Errorf("%w: start a server with manta up, or give its address with --url or MANTA_URL", err)
			}
			return err
		}
	}
}

// server are the flags that name the API.
type server struct {
	urls []string
	key  string
}

const defaultURL = "http://127.0.0.1:8000"

func (s *server) register(command *cobra.Command) {
	command.Flags().StringSliceVar(&s.urls, "url", fromEnvironment("MANTA_URL", defaultURL),
		"address of the API; several, with commas, are tried in turn (MANTA_URL)")
	command.Flags().StringVar(&s.key, "api-key", "", "API key (MANTA_API_KEY)")
}

func fromEnvironment(name, otherwise string) []string {
	if value := os.Getenv(name); value != "" {
		return strings.Split(value, ",")
	}
	return []string{otherwise}
}

func (s *server) client() *client.Client {
	key := s.key
	if key == "" {
		key = os.Getenv("MANTA_API_KEY")
	}
	return client.New(key, s.urls...)
}

// each gives a client of every address.
func (s *server) each() []*client.Client {
	var all []*client.Client
	for _, url := range s.urls {
		one := server{urls: []string{url}, key: s.key}
		all = append(all, one.client())
	}
	return all
}

// sampling are the flags of one answer.
type sampling struct {
	model       string
	maxTokens   int
	temperature float64
	topP        float64
	topK        int
	seed        int64
	stop        []string
}

func (s *sampling) register(command *cobra.Command) {
	flags := command.Flags()
	flags.StringVarP(&s.model, "model", "m", "", "model to ask; the only one served by default")
	flags.IntVar(&s.maxTokens, "max-tokens", 0, "most tokens to give; the server's default when 0")
	flags.Float64Var(&s.temperature, "temperature", 0, "the model's own default when not given")
	flags.Float64Var(&s.topP, "top-p", 0, "the model's own default when not given")
	flags.IntVar(&s.topK, "top-k", 0, "the model's own default when not given")
	flags.Int64Var(&s.seed, "seed", 0, "drawn by the server when not given")
	flags.StringSliceVar(&s.stop, "stop", nil, "strings that end the answer")
}

// options gives what the user set, and nothing else.
func (s *sampling) options(command *cobra.Command) client.Options {
	options := client.Options{Stop: s.stop}
	given := command.Flags().Changed
	if s.maxTokens > 0 {
		options.MaxTokens = &s.maxTokens
	}
	if given("temperature") {
		options.Temperature = &s.temperature
	}
	if given("top-p") {
		options.TopP = &s.topP
	}
	if given("top-k") {
		options.TopK = &s.topK
	}
	if given("seed") {
		options.Seed = &s.seed
	}
	return options
}

// isTerminal reports whether a command's stream is a person's.
func isTerminal(stream any) bool {
	file, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(command.OutOrStdout(), "manta", version.String())
			return err
		},
	}
}

// generateCommand continues a prompt.
func generateCommand() *cobra.Command {
	var at server
	var how sampling
	command := &cobra.Command{
		Use: "generate [PROMPT]", Short: "Continue a prompt, from the arguments or standard input",
		RunE: func(command *cobra.Command, args []string) error {
			prompt := strings.Join(args, " ")
			if len(args) == 0 {
				data, err := io.ReadAll(command.InOrStdin())
				if err != nil {
					return fmt.Errorf("the prompt: %w", err)
				}
				prompt = string(data)
			}
			c := at.client()
			defer c.Close()
			options := how.options(command)
			if options.MaxTokens == nil {
				most := 256
				options.MaxTokens = &most
			}
			out := command.OutOrStdout()
			given := false
			_, err := c.Complete(command.Context(), how.model, prompt, options, func(p client.Piece) error {
				given = given || p.Text != ""
				_, err := io.WriteString(out, p.Text)
				return err
			})
			if given {
				fmt.Fprintln(out)
			}
			return err
		},
	}
	at.register(command)
	how.register(command)
	return command
}
