// Package load puts work on an OpenAI-compatible server and measures what a
// client sees: throughput, time to the first token, the time between tokens, and
// of whole requests. The bench command owns it; it knows nothing of Manta.
package load

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"manta/head/client"
)

// Work is the lengths of one request in tokens.
type Work struct{ Input, Output int }

// ReadWork reads a file of [[in, out], …].
func ReadWork(name string) ([]Work, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("workload: %w", err)
	}
	var pairs [][]int
	if err := json.Unmarshal(data, &pairs); err != nil {
		return nil, fmt.Errorf("workload %s: it must be a JSON list of [input tokens, output tokens]: %w", name, err)
	}
	var all []Work
	for i, pair := range pairs {
		if len(pair) != 2 || pair[0] < 1 || pair[1] < 1 {
			return nil, fmt.Errorf("workload %s: entry %d is not [input tokens, output tokens]", name, i)
		}
		all = append(all, Work{pair[0], pair[1]})
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("workload %s: it is empty", name)
	}
	return all, nil
}

// RandomWork draws lengths evenly from mean·(1 ± spread).
func RandomWork(requests, input, output int, spread float64, seed uint64) []Work {
	draw := rand.New(rand.NewPCG(seed, 1))
	around := func(mean int) int {
		low := max(1, int(float64(mean)*(1-spread)))
		high := max(low, int(float64(mean)*(1+spread)))
		return low + draw.IntN(high-low+1)
	}
	all := make([]Work, requests)
	for i := range all {
		all[i] = Work{around(input), around(output)}
	}
	return all
}

// Config says what to do.
type Config struct {
	Client      *client.Client
	Model       string
	Work        []Work
	Concurrency int
	Seed        uint64
	Vocabulary  [2]int // token ids of prompts are drawn from [0] to [1], without the last
	IgnoreEOS   bool
	Temperature *float64
	Done        func(done, failed int) // after each request; may be nil
}

// sample is what one request gave.
type sample struct {
	input, output int
	first, total  time.Duration
	between       []time.Duration // between pieces of text, spread over their tokens
	err           error
}

// Run does all the work, so much of it at once, and sums it up.
func Run(ctx context.Context, config Config) (*Report, error) {
	if config.Concurrency < 1 || config.Vocabulary[1] <= config.Vocabulary[0] {
		return nil, errors.New("bench: the concurrency and the vocabulary must not be empty")
	}
	samples := make([]sample, len(config.Work))
	var next, failed, done atomic.Int64
	var workers sync.WaitGroup
	start := time.Now()
	for range min(config.Concurrency, len(config.Work)) {
		workers.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(config.Work) || ctx.Err() != nil {
					return
				}
				samples[i] = one(ctx, &config, i)
				if samples[i].err != nil {
					failed.Add(1)
				}
				if n := done.Add(1); config.Done != nil {
					config.Done(int(n), int(failed.Load()))
				}
			}
		})
	}
	workers.Wait()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return summarize(&config, samples, time.Since(start)), nil
}

// one does one request. Its prompt depends on the seed and its place alone.
func one(ctx context.Context, config *Config, index int) sample {
	work := config.Work[index]
	draw := rand.New(rand.NewPCG(config.Seed, uint64(index)+2))
	prompt := make([]int, work.Input)
	low, high := config.Vocabulary[0], config.Vocabulary[1]
	for i := range prompt {
		prompt[i] = low + draw.IntN(high-low)
	}
	seed := int64(index)
	s := sample{input: work.Input}
	start := time.Now()
	last := start
	pieces := 0
	used, err := config.Client.Complete(ctx, config.Model, prompt, client.Options{
		MaxTokens: &work.Output, IgnoreEOS: config.IgnoreEOS, Temperature: config.Temperature, Seed: &seed,
	}, func(p client.Piece) error {
		if p.Text == "" {
			return nil
		}
		now := time.Now()
		if pieces == 0 {
			s.first = now.Sub(start)
		} else {
			s.between = append(s.between, now.Sub(last))
		}
		last = now
		pieces++
		return nil
	})
	s.total, s.err = time.Since(start), err
	s.output = used.CompletionTokens
	if used.PromptTokens > 0 {
		s.input = used.PromptTokens
	}
	if s.output == 0 {
		s.output = pieces // a server that does not count: a piece is about a token
	}
	if pieces == 0 {
		s.first = s.total
	}
	return s
}

// WriteJSON writes a report for programs.
func WriteJSON(out io.Writer, report *Report) error {
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	return encoder.Encode(report)
}
