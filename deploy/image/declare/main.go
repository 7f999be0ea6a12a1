// Manta-declare puts one deployment to the heads' HTTP API and, if told, waits
// until it answers. The chart's Job runs it: what is wanted stands in a JSON file
// and in the environment variables MODEL_NAME, TENSOR_PARALLEL_SIZE and
// GPU_MEMORY_UTILIZATION. The heads take the same deployment twice as once, so it
// may run any number of times. It imports nothing of the program: it is a client.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Getenv, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "manta-declare:", err)
		os.Exit(1)
	}
}

// run is the program, apart from the process that it is.
func run(ctx context.Context, args []string, lookup func(string) string, out io.Writer) error {
	flags := flag.NewFlagSet("manta-declare", flag.ContinueOnError)
	file := flags.String("file", "", "JSON body of POST /api/cluster/deployments; the environment adds to it")
	url := flags.String("url", "http://127.0.0.1:8000", "address of the API")
	keyFile := flags.String("api-key-file", "", "file with API keys, the first of which is sent")
	timeout := flags.Duration("timeout", time.Hour, "give up after this")
	wait := flags.Bool("wait", false, "wait until a replica is ready")
	if err := flags.Parse(args); err != nil {
		return err
	}
	body, name, err := deployment(*file, lookup)
	if err != nil {
		return err
	}
	c := &client{base: strings.TrimRight(*url, "/"), pause: 2 * time.Second, out: out}
	if *keyFile != "" {
		if c.key, err = firstLine(*keyFile); err != nil {
			return err
		}
	}
	ctx, stop := context.WithTimeout(ctx, *timeout)
	defer stop()
	if err := c.declare(ctx, body); err != nil {
		return err
	}
	fmt.Fprintln(out, "accepted:", name)
	if !*wait {
		return nil
	}
	if err := c.ready(ctx, name); err != nil {
		return err
	}
	fmt.Fprintln(out, "ready:", name)
	return nil
}

// firstLine gives the first line of a file that is neither empty nor a comment.
func firstLine(path string) (string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("--api-key-file: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			return line, nil
		}
	}
	return "", fmt.Errorf("--api-key-file: %s has no key", path)
}
