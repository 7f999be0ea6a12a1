package cli

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"manta/head/cli/load"
	"manta/head/client"
)

// benchCommand puts load on any OpenAI-compatible server.
func benchCommand() *cobra.Command {
	var at server
	var file, jsonFile string
	var requests, input, output, vocabulary int
	var spread, temperature float64
	var prefixes, prefixTokens, turns int
	var goodput []string
	var compare string
	var itself bool
	config := load.Config{}
	command := &cobra.Command{
		Use: "bench", Short: "Measure a server under load",
		Long: "Measure any OpenAI-compatible server under load: throughput, time to first token, inter-token\n" +
			"latency and whole requests. Prompts are random token ids; the same seed gives the same work.\n" +
			"Several addresses in --url are asked in turn.\n" +
			"With --self, what follows -- goes to `manta up`.",
		Args: func(command *cobra.Command, args []string) error {
			if !itself {
				return cobra.NoArgs(command, args)
			}
			return nil
		},
		RunE: func(command *cobra.Command, args []string) error {
			if itself && file == "" {
				return selfBench(command.Context(), command.OutOrStdout(), config.Model, args, selfTable)
			}
			switch {
			case requests < 1 || input < 1 || output < 1:
				return fmt.Errorf("--num-prompts, --random-input-len and --random-output-len must be at least 1, got %d, %d and %d", requests, input, output)
			case !(spread >= 0 && spread <= 1):
				return fmt.Errorf("--random-range-ratio must be between 0 and 1, got %v", spread)
			case !(config.Burstiness > 0) || !(config.Rate >= 0):
				return fmt.Errorf("--burstiness must be above 0 and --request-rate not negative, got %v and %v", config.Burstiness, config.Rate)
			case vocabulary < 10 || config.Concurrency < 1:
				return fmt.Errorf("--vocab-size must be at least 10 and --max-concurrency at least 1, got %d and %d", vocabulary, config.Concurrency)
			}
			config.Work = load.RandomWork(requests, input, output, spread, config.Seed)
			if file != "" {
				work, err := load.ReadWork(file)
				if err != nil {
					return err
				}
				if command.Flags().Changed("num-prompts") && requests < len(work) {
					work = work[:requests]
				}
				config.Work = work
			}
			if err := shape(&config, prefixes, prefixTokens, turns, goodput); err != nil {
				return err
			}
			if config.Rate > 0 && !command.Flags().Changed("max-concurrency") {
				config.Concurrency = len(config.Work)
			}
			var before *load.Report
			if compare != "" {
				var err error
				if before, err = load.ReadReport(compare); err != nil {
					return err
				}
			}
			config.Vocabulary = [2]int{vocabulary / 10, vocabulary}
			if command.Flags().Changed("temperature") {
				config.Temperature = &temperature
			}
			if isTerminal(command.ErrOrStderr()) {
				config.Done = progress(command.ErrOrStderr(), len(config.Work))
			}
			measure := func(ctx context.Context, out io.Writer, c *client.Client, _ string) error {
				if config.Clients = []*client.Client{c}; !itself {
					config.Clients = at.each()
				}
				for _, one := range config.Clients {
					defer one.Close()
				}
				report, err := load.Run(ctx, config)
				if err != nil {
					return err
				}
				if err := writeReport(out, jsonFile, report); err != nil {
					return err
				}
				if before != nil {
					to := out
					if jsonFile == "-" { // which is for a program
						to = command.ErrOrStderr()
					}
					if err := load.WriteComparison(to, before, report); err != nil {
						return err
					}
				}
				if report.Failed == report.Requests {
					return fmt.Errorf("all %d requests failed", report.Failed)
				}
				return nil
			}
			if itself {
				model := config.Model
				config.Model = "" // the only one that is served
				return selfBench(command.Context(), command.OutOrStdout(), model, args, measure)
			}
			return measure(command.Context(), command.OutOrStdout(), nil, "")
		},
	}
	at.register(command)
	flags := command.Flags()
	flags.StringVarP(&config.Model, "model", "m", "", "model to ask; the only one served by default")
	flags.IntVar(&config.Concurrency, "max-concurrency", 16, "requests at once")
	flags.Float64Var(&config.Rate, "request-rate", 0, "requests (or conversations) that begin a second, whatever is answered; 0: --max-concurrency at once")
	flags.Float64Var(&config.Burstiness, "burstiness", 1, "of the gaps between them: 1 as Poisson's, less in bursts, more evenly")
	flags.StringSliceVar(&goodput, "goodput", nil, "count the requests within ttft:MS, tpot:MS and e2el:MS")
	flags.IntVar(&prefixes, "prefix-repetition-num-prefixes", 0, "prefixes that prompts share; 0: none")
	flags.IntVar(&prefixTokens, "prefix-repetition-prefix-len", 256, "tokens of such a prefix")
	flags.IntVar(&turns, "multi-turn-num-turns", 0, "chats of so many turns, of the requests in order; 0: none")
	flags.StringVar(&compare, "compare", "", "a report of --json to set this run beside")
	flags.IntVar(&requests, "num-prompts", 100, "requests; with --workload, the first so many of the file")
	flags.IntVar(&input, "random-input-len", 128, "mean input tokens")
	flags.IntVar(&output, "random-output-len", 128, "mean output tokens")
	flags.Float64Var(&spread, "random-range-ratio", 0, "lengths are drawn from mean × (1 ± this)")
	flags.StringVar(&file, "workload", "", "file of [[input tokens, output tokens], …]")
	flags.Uint64Var(&config.Seed, "seed", 0, "of lengths and prompts")
	flags.IntVar(&vocabulary, "vocab-size", 10000, "prompts are drawn from the upper nine tenths of so many token ids")
	flags.BoolVar(&config.IgnoreEOS, "ignore-eos", true, "go on past the model's end token")
	flags.Float64Var(&temperature, "temperature", 0, "the model's own default when not given")
	flags.BoolVar(&itself, "self", false, "start this program's own server, on --model, and measure it with --workload, or with 1, 4 and 16 streams")
	flags.StringVar(&jsonFile, "json", "", "write JSON to this file; - prints it instead of the table")
	return command
}

// shape gives the work prefixes or turns, and reads the bound.
func shape(config *load.Config, prefixes, prefixTokens, turns int, goodput []string) (err error) {
	switch {
	case prefixes < 0 || prefixTokens < 1 || turns < 0:
		return fmt.Errorf("--prefix-repetition-num-prefixes and --multi-turn-num-turns must not be negative, --prefix-repetition-prefix-len not less than 1")
	case prefixes > 0 && turns > 0:
		return fmt.Errorf("--multi-turn-num-turns and --prefix-repetition-num-prefixes exclude each other")
	case prefixes > 0:
		load.SharePrefixes(config.Work, prefixes, prefixTokens)
	case turns > 0:
		load.Converse(config.Work, turns)
	}
	config.Goodput, err = load.ParseBound(goodput)
	return err
}

// progress keeps one line of a terminal up to date. The workers call it at once.
func progress(out io.Writer, all int) func(done, failed int) {
	return func(done, failed int) {
		fmt.Fprintf(out, "\r%d of %d, %d failed ", done, all, failed)
		if done == all {
			fmt.Fprintln(out)
		}
	}
}

func writeReport(out io.Writer, jsonFile string, report *load.Report) error {
	switch jsonFile {
	case "":
		return load.WriteTable(out, report)
	case "-":
		return load.WriteJSON(out, report)
	}
	file, err := os.Create(jsonFile)
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	if err := load.WriteJSON(file, report); err != nil {
		file.Close()
		return fmt.Errorf("report: %w", err)
	}
	if err := file.Close(); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return load.WriteTable(out, report)
}
