package cli

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"

	"manta/head/cli/load"
	"manta/head/client"
)

// selfBench starts this program's own `up` on a free port, with a data directory
// of its own, and measures what a client sees, from the start on.
func selfBench(ctx context.Context, out io.Writer, model string, args []string,
	measure func(ctx context.Context, out io.Writer, c *client.Client, url string) error) (failure error) {
	child, err := startSelf(ctx, model, args)
	if err != nil {
		return err
	}
	defer func() { failure = errors.Join(failure, child.stop()) }()
	c := client.New("", child.url)
	defer c.Close()
	one := 1
	for {
		_, err := c.Complete(ctx, "", []int{1}, client.Options{MaxTokens: &one}, func(client.Piece) error { return nil })
		if err == nil {
			break
		}
		if err := child.wait(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "start to first token: %.2f s\n\n", time.Since(child.started).Seconds())
	if err := measure(ctx, out, c, child.url); err != nil {
		return err
	}
	memory := gauges(child.url)["process_resident_memory_bytes"]
	_, err = fmt.Fprintf(out, "\nmemory: %.0f MB\n", memory/1e6)
	return err
}

// selfTable measures 1, 4 and 16 streams.
func selfTable(ctx context.Context, out io.Writer, c *client.Client, url string) error {
	table := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(table, "streams\tin\tout\ttokens/s out\ttokens/s in all\tfirst token p50\tp99 ms\tinter-token p50\tp99 ms\tKV slots unused")
	for _, streams := range []int{1, 4, 16} {
		waste := watchWaste(url)
		report, err := load.Run(ctx, load.Config{
			Clients: []*client.Client{c}, Work: load.RandomWork(2*streams, 128, 128, 0, 1), Concurrency: streams, Vocabulary: [2]int{1000, 10000}, IgnoreEOS: true,
		})
		unused := waste()
		if err != nil {
			return err
		}
		if report.Failed > 0 {
			return fmt.Errorf("%d of %d requests failed: %v", report.Failed, report.Requests, report.Errors)
		}
		fmt.Fprintf(table, "%d\t128\t128\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\t%s\n", streams, report.OutputPerSec, report.TotalPerSec,
			report.FirstToken.P50, report.FirstToken.P99, report.InterToken.P50, report.InterToken.P99, unused)
	}
	return table.Flush()
}

// self is a child process that serves.
type self struct {
	url     string
	data    string
	started time.Time
	command *exec.Cmd
	said    *bytes.Buffer // read it after the end only
	ended   chan struct{}
	err     error // valid after ended
}

func startSelf(ctx context.Context, model string, more []string) (*self, error) {
	signal.Ignore(syscall.SIGPIPE) // whoever reads the table may stop; the server must not be left behind
	program, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("this program: %w", err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("a free port: %w", err)
	}
	port := listener.Addr().(*net.TCPAddr).Port
	if err := listener.Close(); err != nil {
		return nil, fmt.Errorf("a free port: %w", err)
	}
	data, err := os.MkdirTemp("", "manta-bench-")
	if err != nil {
		return nil, err
	}
	args := []string{"up", "--port", strconv.Itoa(port), "--metrics-port", "0", "--data-dir", data}
	if model != "" {
		args = append(args, model)
	}
	args = append(args, more...)
	s := &self{
		url: fmt.Sprintf("http://127.0.0.1:%d", port), data: data, said: &bytes.Buffer{}, ended: make(chan struct{}),
		command: exec.CommandContext(ctx, program, args...), started: time.Now(),
	}
	s.command.Stdout, s.command.Stderr = s.said, s.said
	if err := s.command.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("%s up: %w", program, err), os.RemoveAll(data))
	}
	go func() { // ends with the child; stop waits for it
		s.err = s.command.Wait()
		close(s.ended)
	}()
	return s, nil
}

// wait pauses, unless the child has ended.
func (s *self) wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-s.ended:
		return fmt.Errorf("manta up: %w: %s", errors.Join(s.err, errors.New("it ended")), strings.TrimSpace(s.said.String()))
	}
}

// stop ends the child and removes its data.
func (s *self) stop() error {
	select {
	case <-s.ended:
	default:
		if err := s.command.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("manta up: %w", err)
		}
		<-s.ended
	}
	return os.RemoveAll(s.data)
}

// watchWaste samples the slots that sequences hold and do not use, until its
// result is called, which gives their mean part.
func watchWaste(url string) func() string {
	ctx, stop := context.WithCancel(context.Background())
	var taken, unused float64
	var watching sync.WaitGroup
	watching.Go(func() {
		tick := time.NewTicker(250 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				now := gauges(url)
				taken += now["manta_engine_slots"]
				unused += now["manta_engine_slots_unused"]
			case <-ctx.Done():
				return
			}
		}
	})
	return func() string {
		stop()
		watching.Wait()
		if taken == 0 {
			return "-"
		}
		return fmt.Sprintf("%.1f%%", 100*unused/taken)
	}
}

// gauges reads /metrics: each name's series, added up. What can't be read is
// missing.
func gauges(url string) map[string]float64 {
	all := map[string]float64{}
	response, err := http.Get(url + "/metrics")
	if err != nil {
		return all
	}
	defer response.Body.Close()
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() {
		series, value, _ := strings.Cut(lines.Text(), " ")
		name, _, _ := strings.Cut(series, "{")
		if number, err := strconv.ParseFloat(value, 64); err == nil {
			all[name] += number
		}
	}
	return all
}
