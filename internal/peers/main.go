// Command peers measures Manta beside llama.cpp on this machine, in one run: the
// same file, the same work, the same threads, one after the other in each round.
// It prints medians, their spread, and Manta's figure over llama.cpp's.
//
// llama.cpp comes from the sdist of PyPI's llama-cpp-python and is built for this
// processor, once, in a cache folder: python3 with pip, cmake and a C++ compiler
// are needed. Beside the file itself it runs a requantization to Q4_0, its fastest
// path, which is less accurate.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

// settings are the flags.
type settings struct {
	manta, cache, model string
	rounds, threads     int
	streams             int
}

func main() {
	var s settings
	flag.StringVar(&s.manta, "manta", "bin/manta", "the program to measure")
	flag.StringVar(&s.cache, "cache", ".cache/peers", "where llama.cpp is built and kept")
	flag.StringVar(&s.model, "model", "", "a .gguf file that both read; SmolLM2-135M by default")
	flag.IntVar(&s.rounds, "rounds", 5, "rounds; each measures everything once")
	flag.IntVar(&s.threads, "threads", runtime.NumCPU(), "cores for llama.cpp; Manta takes all")
	flag.IntVar(&s.streams, "streams", 16, "requests at once through HTTP")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, s); err != nil {
		fmt.Fprintln(os.Stderr, "peers:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, s settings) error {
	if s.model == "" {
		out, err := output(ctx, s.manta, "pull", "smollm2")
		if err != nil {
			return err
		}
		fields := strings.Split(strings.TrimSpace(string(out)), "\t")
		s.model = fields[len(fields)-1]
	}
	l, err := build(ctx, s.cache)
	if err != nil {
		return err
	}
	small, err := l.requantize(ctx, s.cache, s.model)
	if err != nil {
		return err
	}
	fmt.Printf("%s, %d cores, %s, %d rounds\n", processor(), s.threads, filepath.Base(s.model), s.rounds)
	fmt.Printf("Manta %s; llama.cpp of llama-cpp-python %s\n\n", strings.TrimSpace(version(ctx, s.manta)), llamaVersion)
	subjects := []subject{
		&manta{program: s.manta, model: s.model},
		&llama{name: "llama.cpp", tools: l, model: s.model, threads: s.threads},
		&llama{name: "llama.cpp Q4_0", tools: l, model: small, threads: s.threads},
	}
	t := table{}
	for round := range s.rounds {
		for _, p := range subjects {
			fmt.Fprintf(os.Stderr, "round %d of %d: %s\n", round+1, s.rounds, p.label())
			if err := measure(ctx, p, s, t); err != nil {
				return fmt.Errorf("%s: %w", p.label(), err)
			}
		}
	}
	t.print(os.Stdout, subjects)
	return nil
}

// output runs a program and gives what it writes, if it fails too.
func output(ctx context.Context, program string, args ...string) ([]byte, error) {
	command := exec.CommandContext(ctx, program, args...)
	var said strings.Builder
	command.Stderr = &said
	out, err := command.Output()
	if err != nil {
		tail := said.String()
		return out, fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, strings.TrimSpace(tail[max(0, len(tail)-2000):]))
	}
	return out, nil
}

func version(ctx context.Context, program string) string {
	out, err := output(ctx, program, "--version")
	if err != nil {
		return ""
	}
	return strings.TrimPrefix(string(out), "manta version ")
}

// processor names the machine's.
func processor() string {
	data, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	for line := range strings.Lines(string(data)) {
		if name, found := strings.CutPrefix(line, "model name\t: "); found {
			return strings.TrimSpace(name)
		}
	}
	return runtime.GOARCH
}
