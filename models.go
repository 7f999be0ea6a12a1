package main

import (
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"manta/runtime/plan"
	"manta/runtime/weights"
)

// defaultModel is what runs when the user names none.
const defaultModel = "smollm2"

// library are the flags of the download folder.
type library struct{ dir string }

func (l *library) register(command *cobra.Command) {
	command.Flags().StringVar(&l.dir, "download-dir", os.Getenv("MANTA_DOWNLOAD_DIR"),
		"folder of downloaded models; the machine's caches by default (MANTA_DOWNLOAD_DIR)")
}

func (l *library) open(out io.Writer) *weights.Library {
	return weights.NewLibrary(l.dir, weights.WithWaiting(func(what string) {
		fmt.Fprintf(out, "another process is pulling %s; waiting for it\n", what)
	}))
}

// pullCommand brings a model to the download folder.
func pullCommand() *cobra.Command {
	var from library
	command := &cobra.Command{
		Use: "pull [MODEL]", Short: "Download a model", Args: cobra.MaximumNArgs(1),
		RunE: func(command *cobra.Command, args []string) error {
			name := defaultModel
			if len(args) > 0 {
				name = args[0]
			}
			reference, err := weights.ParseReference(name)
			if err != nil {
				return err
			}
			bar := newBar(command.ErrOrStderr())
			pulled, err := from.open(command.ErrOrStderr()).Pull(command.Context(), reference, bar.show)
			bar.end()
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(command.OutOrStdout(), "%s\t%s\t%s\n", pulled.Name, plan.Bytes(pulled.Bytes), pulled.Path)
			return err
		},
	}
	from.register(command)
	return command
}

// listCommand shows the download folder.
func listCommand() *cobra.Command {
	var from library
	command := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List downloaded models", Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			all, err := from.open(command.ErrOrStderr()).List()
			if err != nil {
				return err
			}
			table := tabwriter.NewWriter(command.OutOrStdout(), 0, 4, 2, ' ', 0)
			fmt.Fprintln(table, "MODEL\tREVISION\tSIZE\tPATH")
			for _, p := range all {
				fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", p.Name, p.Revision, plan.Bytes(p.Bytes), p.Path)
			}
			return table.Flush()
		},
	}
	from.register(command)
	return command
}

// removeCommand takes models from the download folder.
func removeCommand() *cobra.Command {
	var from library
	command := &cobra.Command{
		Use: "rm MODEL…", Short: "Remove downloaded models", Args: cobra.MinimumNArgs(1),
		RunE: func(command *cobra.Command, args []string) error {
			for _, name := range args {
				reference, err := weights.ParseReference(name)
				if err != nil {
					return err
				}
				if err := from.open(command.ErrOrStderr()).Remove(reference); err != nil {
					return err
				}
				fmt.Fprintln(command.OutOrStdout(), "removed", reference)
			}
			return nil
		},
	}
	from.register(command)
	return command
}

// bar shows a download: one line kept up to date on a terminal, else a line now
// and then.
type bar struct {
	out      io.Writer
	terminal bool
	start    time.Time
	last     time.Time
	file     string
	from     int64 // bytes that were here when the file began
	width    int
}

func newBar(out io.Writer) *bar {
	file, ok := out.(*os.File)
	return &bar{out: out, terminal: ok && term.IsTerminal(int(file.Fd()))}
}

// show takes the state of the download; its calls never overlap.
func (b *bar) show(p weights.Progress) {
	now := time.Now()
	if p.File != b.file {
		b.end()
		b.file, b.start, b.last, b.from = p.File, now, time.Time{}, p.Done
	}
	every := 5 * time.Second
	if b.terminal {
		every = 100 * time.Millisecond
	}
	if done := p.Total > 0 && p.Done >= p.Total; now.Sub(b.last) < every && !done {
		return
	}
	b.last = now
	line := b.line(p, now)
	if !b.terminal {
		fmt.Fprintln(b.out, line)
		return
	}
	fmt.Fprintf(b.out, "\r%-*s", b.width, line)
	b.width = len(line)
}

func (b *bar) line(p weights.Progress, now time.Time) string {
	speed := "" // of nothing is not known
	if rate := float64(p.Done-b.from) / max(now.Sub(b.start).Seconds(), 1e-3); rate > 0 {
		speed = fmt.Sprintf("  %s/s", plan.Bytes(int64(rate)))
		if p.Done < p.Total {
			speed += fmt.Sprintf("  %s left", time.Duration(float64(p.Total-p.Done)/rate)*time.Second)
		}
	}
	if p.Total <= 0 {
		return fmt.Sprintf("%s  %s%s", p.File, plan.Bytes(p.Done), speed)
	}
	return fmt.Sprintf("%s  %3d%%  %s of %s%s", p.File, p.Done*100/p.Total, plan.Bytes(p.Done), plan.Bytes(p.Total), speed)
}

// end leaves the line for what comes next.
func (b *bar) end() {
	if b.terminal && b.width > 0 {
		fmt.Fprintln(b.out)
		b.width = 0
	}
}
