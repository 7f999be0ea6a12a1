// Package load puts work on an OpenAI-compatible server and measures what a
// client sees: throughput, time to the first token, the time between tokens, and
// of whole requests. The bench command owns it; it knows nothing of Manta.
package load

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"manta/head/client"
)

// Config says what to do.
type Config struct {
	// Clients are the endpoints; requests go to them in turn, those of a
	// conversation to one.
	Clients []*client.Client
	Model   string
	Work    []Work
	// Rate is how many conversations (or single requests) begin a second, whatever
	// has been answered: an open loop. 0: the next begins when one ends, so many at
	// once as Concurrency says.
	Rate float64
	// Burstiness shapes the gaps between beginnings: 1 as Poisson's, less in bursts,
	// more evenly (a gamma distribution of that shape). 0: 1.
	Burstiness  float64
	Concurrency int
	Seed        uint64
	Vocabulary  [2]int // token ids of prompts are drawn from [0] to [1], without the last
	IgnoreEOS   bool
	Temperature *float64
	Goodput     Bound
	Done        func(done, failed int) // after each request; may be nil
}

// sample is what one request gave.
type sample struct {
	input, output int
	cached        int // of input
	first, total  time.Duration
	between       []time.Duration // between pieces of text, spread over their tokens
	err           error
}

func (s *sample) perOutput() time.Duration {
	if s.output < 2 {
		return 0
	}
	return (s.total - s.first) / time.Duration(s.output-1)
}

// Run does all the work and sums it up.
func Run(ctx context.Context, config Config) (*Report, error) {
	switch {
	case config.Concurrency < 1 || config.Vocabulary[1] <= config.Vocabulary[0] || len(config.Clients) == 0:
		return nil, errors.New("bench: the concurrency, the vocabulary and the endpoints must not be empty")
	case len(config.Work) == 0:
		return nil, errors.New("bench: there are no requests to make")
	case config.Rate < 0 || config.Burstiness < 0:
		return nil, errors.New("bench: the request rate and the burstiness must not be negative")
	}
	r := &run{config: config, talks: conversations(config.Work), samples: make([]sample, len(config.Work))}
	begins := arrivals(len(r.talks), config.Rate, config.Burstiness, config.Seed)
	var next atomic.Int64
	var workers sync.WaitGroup
	r.start = time.Now()
	for range min(config.Concurrency, len(r.talks)) {
		workers.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(r.talks) || !until(ctx, r.start.Add(begins[i])) {
					return
				}
				r.talk(ctx, i)
			}
		})
	}
	workers.Wait()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return summarize(&config, r.samples, time.Since(r.start)), nil
}

type run struct {
	config       Config
	talks        [][]int // indices of Work, those of a conversation together
	samples      []sample
	start        time.Time
	done, failed atomic.Int64
}

// until waits for a time, and reports whether it came before the end of ctx.
func until(ctx context.Context, at time.Time) bool {
	timer := time.NewTimer(time.Until(at))
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// talk does one conversation: a single request, or its turns one after the other.
func (r *run) talk(ctx context.Context, talk int) {
	c := r.config.Clients[talk%len(r.config.Clients)]
	var messages []client.Message
	var lost error
	for _, i := range r.talks[talk] {
		s := &r.samples[i]
		work := r.config.Work[i]
		if lost != nil {
			s.err = lost
		} else if work.Conversation == 0 {
			r.measure(s, work, func(options client.Options, each func(client.Piece) error) (client.Usage, error) {
				return c.Complete(ctx, r.config.Model, prompt(&r.config, work, i), options, each)
			}, i)
		} else {
			messages = append(messages, client.Message{Role: "user", Content: text(&r.config, work, i)})
			var said strings.Builder
			r.measure(s, work, func(options client.Options, each func(client.Piece) error) (client.Usage, error) {
				return c.Chat(ctx, r.config.Model, messages, options, func(p client.Piece) error {
					said.WriteString(p.Text)
					return each(p)
				})
			}, i)
			messages = append(messages, client.Message{Role: "assistant", Content: said.String()})
			if s.err != nil {
				lost = errors.New("not asked: the turn before it failed")
			}
		}
		if s.err != nil {
			r.failed.Add(1)
		}
		if n := r.done.Add(1); r.config.Done != nil {
			r.config.Done(int(n), int(r.failed.Load()))
		}
	}
}

// measure does one request and times its pieces.
func (r *run) measure(s *sample, work Work, ask func(client.Options, func(client.Piece) error) (client.Usage, error), index int) {
	seed := int64(index)
	s.input = work.Input
	start := time.Now()
	last, pieces := start, 0
	used, err := ask(client.Options{
		MaxTokens: &work.Output, IgnoreEOS: r.config.IgnoreEOS, Temperature: r.config.Temperature, Seed: &seed,
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
	s.output, s.cached = used.CompletionTokens, used.Details.Cached
	if used.PromptTokens > 0 {
		s.input = used.PromptTokens
	}
	if s.output == 0 {
		s.output = pieces // a server that does not count: a piece is about a token
	}
	if pieces == 0 {
		s.first = s.total
	}
}

// prompt depends on the seed and its place alone, its prefix on the prefix's number.
func prompt(config *Config, work Work, index int) []int {
	tokens := make([]int, 0, work.Input)
	fill := func(draw *rand.Rand, n int) {
		for range n {
			tokens = append(tokens, config.Vocabulary[0]+draw.IntN(config.Vocabulary[1]-config.Vocabulary[0]))
		}
	}
	fill(rand.New(rand.NewPCG(config.Seed, 1<<40+uint64(work.Prefix))), min(work.PrefixTokens, work.Input))
	fill(rand.New(rand.NewPCG(config.Seed, uint64(index)+2)), work.Input-len(tokens))
	return tokens
}

// text is about so many tokens of English.
func text(config *Config, work Work, index int) string {
	draw := rand.New(rand.NewPCG(config.Seed, uint64(index)+2))
	words := make([]string, work.Input)
	for i := range words {
		words[i] = vocabulary[draw.IntN(len(vocabulary))]
	}
	return strings.Join(words, " ")
}

var vocabulary = strings.Fields("the a of to and in that is was for on with as by at from this which or an be are not have it but had one all " +
	"their there been were more when who will would about into time than two may then do first any my now such like our over man me even most")

// WriteJSON writes a report for programs.
func WriteJSON(out io.Writer, report *Report) error {
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	return encoder.Encode(report)
}
