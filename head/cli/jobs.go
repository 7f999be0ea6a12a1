package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"manta/head/client"
)

func jobsCommand() *cobra.Command {
	command := &cobra.Command{
		Use: "jobs", Short: "Submit, list, follow and stop jobs", Args: cobra.NoArgs, RunE: overview,
		Long: "Submit, list, follow and stop jobs: `manta serve …` and `manta batch …` as entrypoints, which the\n" +
			"leading head runs. The same REST is Ray's Jobs.",
	}
	command.AddCommand(submitCommand(), listJobsCommand(), jobStatusCommand(), logsCommand(), stopCommand(), deleteJobCommand())
	return command
}

// overview is what a command does that has others below it: cobra would print it for a word
// that names none of them, too, and call that a success.
func overview(command *cobra.Command, _ []string) error { return command.Help() }

func submitCommand() *cobra.Command {
	var at server
	command := &cobra.Command{
		Use: "submit [flags] -- manta serve MODEL …", Short: "Submit a job and print its id", Args: cobra.MinimumNArgs(1),
		RunE: func(command *cobra.Command, args []string) error {
			c := at.client()
			defer c.Close()
			id, err := c.Submit(command.Context(), strings.Join(args, " "))
			if err == nil {
				_, err = fmt.Fprintln(command.OutOrStdout(), id)
			}
			return err
		},
	}
	at.register(command)
	command.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return fmt.Errorf("%w: put -- before the entrypoint, or quotes around it, so that its flags are its own", err)
	})
	return command
}

func listJobsCommand() *cobra.Command {
	var at server
	command := &cobra.Command{
		Use: "list", Short: "List jobs, the newest first", Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			c := at.client()
			defer c.Close()
			all, err := c.Jobs(command.Context())
			if err != nil {
				return err
			}
			table := tabwriter.NewWriter(command.OutOrStdout(), 0, 4, 2, ' ', 0)
			fmt.Fprintln(table, "JOB\tSTATUS\tSTARTED\tLINES\tMESSAGE\tENTRYPOINT")
			for _, j := range all {
				lines := "-"
				if j.Lines > 0 {
					lines = fmt.Sprintf("%d/%d", j.Completed+j.Failed, j.Lines)
				}
				fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", j.ID, j.Status, time.UnixMilli(j.Started).Format(time.DateTime), lines, j.Message, j.Entrypoint)
			}
			return table.Flush()
		},
	}
	at.register(command)
	return command
}

func logsCommand() *cobra.Command {
	var at server
	var follow bool
	command := &cobra.Command{
		Use: "logs JOB", Short: "Print a job's log", Args: cobra.ExactArgs(1),
		RunE: func(command *cobra.Command, args []string) error {
			c := at.client()
			defer c.Close()
			if !follow {
				text, err := c.JobLogs(command.Context(), args[0])
				if err == nil {
					_, err = io.WriteString(command.OutOrStdout(), text)
				}
				return err
			}
			_, err := followJob(command.Context(), c, args[0], command.OutOrStdout())
			return err
		},
	}
	at.register(command)
	command.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the job is over")
	return command
}

func jobStatusCommand() *cobra.Command {
	return onJob("status JOB", "Print a job as JSON", func(command *cobra.Command, c *client.Client, id string) error {
		all, err := c.JobDetails(command.Context(), id)
		if err == nil {
			_, err = fmt.Fprintln(command.OutOrStdout(), all)
		}
		return err
	})
}

func stopCommand() *cobra.Command {
	return onJob("stop JOB", "Stop a job; what it has got done stays", func(command *cobra.Command, c *client.Client, id string) error {
		return c.StopJob(command.Context(), id)
	})
}

func deleteJobCommand() *cobra.Command {
	return onJob("delete JOB", "Forget a job that is over, and its log; files of results stay", func(command *cobra.Command, c *client.Client, id string) error {
		return c.DeleteJob(command.Context(), id)
	})
}

// onJob makes a command that does one thing with one job.
func onJob(use, short string, do func(command *cobra.Command, c *client.Client, id string) error) *cobra.Command {
	var at server
	command := &cobra.Command{
		Use: use, Short: short, Args: cobra.ExactArgs(1),
		RunE: func(command *cobra.Command, args []string) error {
			c := at.client()
			defer c.Close()
			return do(command, c, args[0])
		},
	}
	at.register(command)
	return command
}

// followJob prints a job's log as it grows, until the job is over. A head that
// goes away is asked again, or another one.
func followJob(ctx context.Context, c *client.Client, id string, out io.Writer) (client.Job, error) {
	printed := 0
	ticker := time.NewTicker(500 * time.Millisecond)
	defer ticker.Stop()
	for {
		j, err := c.Job(ctx, id)
		var refused *client.Error
		if errors.As(err, &refused) && refused.Status == 404 || ctx.Err() != nil {
			return j, err
		}
		if err == nil {
			text, err := c.JobLogs(ctx, id)
			if err == nil && len(text) > printed {
				if _, err := io.WriteString(out, text[printed:]); err != nil {
					return j, err
				}
				printed = len(text)
			}
			if err == nil && j.Over() {
				return j, nil
			}
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return j, ctx.Err()
		}
	}
}

func batchCommand() *cobra.Command {
	var at server
	var input, output string
	command := &cobra.Command{
		Use: "batch --input FILE --output FILE", Short: "Answer a file of requests, in OpenAI's batch form", Args: cobra.NoArgs,
		Long: "Answer a file of requests, in OpenAI's batch form: upload it, run it as a job, follow that, and fetch the\n" +
			"answers; what failed goes to FILE.errors. The job goes on when this command, a head or a node dies.",
		RunE: func(command *cobra.Command, _ []string) error {
			if input == "" || output == "" {
				return errors.New("--input and --output must be given")
			}
			c := at.client()
			defer c.Close()
			return runBatch(command.Context(), c, input, output, command.ErrOrStderr())
		},
	}
	at.register(command)
	command.Flags().StringVar(&input, "input", "", "file of requests, a JSON object a line")
	command.Flags().StringVar(&output, "output", "", "where the answers go")
	return command
}

func runBatch(ctx context.Context, c *client.Client, input, output string, progress io.Writer) error {
	from, err := os.Open(input)
	if err != nil {
		return err
	}
	defer from.Close()
	file, err := c.Upload(ctx, filepath.Base(input), from)
	if err != nil {
		return err
	}
	id, err := c.Submit(ctx, "manta batch --input "+file)
	if err != nil {
		return err
	}
	fmt.Fprintf(progress, "job %s; manta jobs logs -f %s follows it\n", id, id)
	j, err := followJob(ctx, c, id, progress)
	if err != nil {
		return err
	}
	for name, id := range map[string]string{output: j.Output, output + ".errors": j.Errors} {
		if id == "" {
			continue
		}
		if err := fetch(ctx, c, id, name); err != nil {
			return err
		}
	}
	if j.Status != "SUCCEEDED" {
		return fmt.Errorf("job %s: %s: %s", id, j.Status, j.Message)
	}
	return nil
}

// fetch writes a file whole, or not at all.
func fetch(ctx context.Context, c *client.Client, id, name string) error {
	to, err := os.CreateTemp(filepath.Dir(name), ".manta-*")
	if err != nil {
		return err
	}
	defer os.Remove(to.Name()) // does nothing once renamed
	if err := errors.Join(c.Download(ctx, id, to), to.Close()); err != nil {
		return err
	}
	return os.Rename(to.Name(), name)
}
