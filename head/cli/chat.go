package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"manta/head/client"
)

// chatCommand talks with a model. On a terminal it has line editing and history,
// and Ctrl-C stops one answer; else each line of the input is a turn.
func chatCommand() *cobra.Command {
	var at server
	var how sampling
	var system string
	var stats bool
	command := &cobra.Command{
		Use: "chat", Short: "Chat with a model", Args: cobra.NoArgs,
		Long: "Chat with a model. Ctrl-C stops an answer, Ctrl-D or /bye ends the chat, /help lists the commands.\n" +
			"When the input is not a terminal, each of its lines is a turn.",
		RunE: func(command *cobra.Command, _ []string) error {
			c := at.client()
			defer c.Close()
			t := &talk{
				client: c, model: how.model, options: how.options(command), out: command.OutOrStdout(), stats: stats,
			}
			t.setSystem(system)
			if isTerminal(command.InOrStdin()) && isTerminal(command.OutOrStdout()) {
				return t.interactive(command.Context(), command.InOrStdin().(*os.File), command.OutOrStdout().(*os.File))
			}
			return t.plain(command.Context(), command.InOrStdin())
		},
	}
	at.register(command)
	how.register(command)
	command.Flags().StringVar(&system, "system", "", "system message")
	command.Flags().BoolVar(&stats, "stats", false, "print tokens and time after each answer")
	return command
}

// talk is a chat in progress. One goroutine has it.
type talk struct {
	client   *client.Client
	model    string
	options  client.Options
	messages []client.Message
	out      io.Writer
	stats    bool
}

// errBye ends the chat.
var errBye = errors.New("bye")

func (t *talk) setSystem(text string) {
	if len(t.messages) > 0 && t.messages[0].Role == "system" {
		t.messages = t.messages[1:]
	}
	if text != "" {
		t.messages = append([]client.Message{{Role: "system", Content: text}}, t.messages...)
	}
}

// clear forgets all turns but the system message.
func (t *talk) clear() {
	if len(t.messages) > 0 && t.messages[0].Role == "system" {
		t.messages = t.messages[:1]
		return
	}
	t.messages = nil
}

// plain reads turns from lines. An error ends it: no one is there to try again.
func (t *talk) plain(ctx context.Context, in io.Reader) error {
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line == "" {
			continue
		}
		if err := t.turn(ctx, line); err != nil {
			if errors.Is(err, errBye) {
				return nil
			}
			return err
		}
	}
	return lines.Err()
}

// interactive reads turns from a person. Errors are shown, and the chat goes on.
// Ctrl-C has a meaning of its own here, so parent, which it ends, is left behind.
func (t *talk) interactive(parent context.Context, in, out *os.File) error {
	ctx, stop := signal.NotifyContext(context.WithoutCancel(parent), syscall.SIGTERM)
	defer stop()
	reader := newLineReader(in, out)
	fmt.Fprintln(out, "Ctrl-C stops an answer, Ctrl-D or /bye ends, /help lists the commands.")
	for {
		line, err := reader.read(ctx)
		switch {
		case errors.Is(err, io.EOF):
			fmt.Fprintln(out)
			return nil
		case errors.Is(err, errInterrupted):
			fmt.Fprintln(out, "Ctrl-D or /bye ends the chat.")
			continue
		case err != nil:
			return err
		}
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		answer, release := signal.NotifyContext(ctx, os.Interrupt)
		err = t.turn(answer, line)
		stopped := answer.Err() != nil
		release()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, errBye):
			return nil
		case stopped:
			fmt.Fprintln(out, "[stopped]")
		case err != nil:
			fmt.Fprintln(out, "error:", err)
		}
	}
}

// turn does a command or asks the model. What was answered before an error or a
// stop stays in the chat, so that one can ask to go on.
func (t *talk) turn(ctx context.Context, line string) error {
	if strings.HasPrefix(line, "/") {
		return t.command(ctx, line)
	}
	messages := append(t.messages, client.Message{Role: "user", Content: line})
	var answer strings.Builder
	start := time.Now()
	var first time.Duration
	used, err := t.client.Chat(ctx, t.model, messages, t.options, func(p client.Piece) error {
		if first == 0 && p.Text != "" {
			first = time.Since(start)
		}
		answer.WriteString(p.Text)
		_, err := io.WriteString(t.out, p.Text)
		return err
	})
	if answer.Len() > 0 {
		t.messages = append(messages, client.Message{Role: "assistant", Content: answer.String()})
		fmt.Fprintln(t.out)
	}
	if t.stats && err == nil {
		took := time.Since(start)
		rate := 0.0
		if used.CompletionTokens > 1 {
			rate = float64(used.CompletionTokens-1) / (took - first).Seconds()
		}
		fmt.Fprintf(t.out, "[%d + %d tokens, first after %d ms, %.1f tokens/s]\n",
			used.PromptTokens, used.CompletionTokens, first.Milliseconds(), rate)
	}
	return err
}

const help = `/clear           forget the chat, keep the system message
/system [TEXT]   set the system message; without a text, take it away
/model [NAME]    ask another model; without a name, list them
/set NAME VALUE  temperature, top_p, top_k, max_tokens or seed
/show            show the chat so far
/stats           print tokens and time after each answer, or no longer
/bye             end (also /exit, /quit, Ctrl-D)`
