package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"
)

// command does a line that begins with a slash.
func (t *talk) command(ctx context.Context, line string) error {
	name, rest, _ := strings.Cut(line, " ")
	rest = strings.TrimSpace(rest)
	switch name {
	case "/bye", "/exit", "/quit":
		return errBye
	case "/help", "/?":
		fmt.Fprintln(t.out, help)
	case "/clear":
		t.clear()
	case "/system":
		t.setSystem(rest)
	case "/stats":
		t.stats = !t.stats
	case "/show":
		for _, m := range t.messages {
			fmt.Fprintf(t.out, "%s: %s\n", m.Role, m.Content)
		}
	case "/model":
		return t.setModel(ctx, rest)
	case "/set":
		return t.set(rest)
	default:
		return fmt.Errorf("there is no command %s; /help lists them", name)
	}
	return nil
}

func (t *talk) setModel(ctx context.Context, name string) error {
	models, err := t.client.Models(ctx)
	if err != nil {
		return err
	}
	for _, model := range models {
		if name == "" {
			fmt.Fprintln(t.out, model)
		} else if model == name {
			t.model = name
			return nil
		}
	}
	if name != "" {
		return fmt.Errorf("no model %s is served; /model lists them", name)
	}
	return nil
}

func (t *talk) set(rest string) error {
	name, value, _ := strings.Cut(rest, " ")
	number, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
	if err != nil {
		return fmt.Errorf("/set %s needs a number", name)
	}
	whole := int(number)
	switch name {
	case "temperature":
		t.options.Temperature = &number
	case "top_p":
		t.options.TopP = &number
	case "top_k":
		t.options.TopK = &whole
	case "max_tokens":
		t.options.MaxTokens = &whole
	case "seed":
		seed := int64(number)
		t.options.Seed = &seed
	default:
		return fmt.Errorf("/set knows temperature, top_p, top_k, max_tokens and seed, not %q", name)
	}
	return nil
}
