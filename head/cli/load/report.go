package load

import (
	"fmt"
	"io"
	"math"
	"slices"
	"text/tabwriter"
	"time"
)

// Report is what a run came to. Times are in milliseconds.
type Report struct {
	Requests       int            `json:"requests"`
	Failed         int            `json:"failed"`
	Errors         map[string]int `json:"errors,omitempty"`
	Concurrency    int            `json:"concurrency"`
	Seed           uint64         `json:"seed"`
	Seconds        float64        `json:"seconds"`
	InputTokens    int            `json:"input_tokens"`
	CachedTokens   int            `json:"cached_tokens,omitempty"` // of the input, as the server says
	OutputTokens   int            `json:"output_tokens"`
	Rate           float64        `json:"request_rate,omitempty"` // offered; 0: a closed loop
	RequestsPerSec float64        `json:"requests_per_second"`
	Bound          string         `json:"goodput_bound,omitempty"` // as it was given
	Good           int            `json:"good_requests"`           // within it
	GoodPerSec     float64        `json:"goodput"`                 // of those, a second
	InputPerSec    float64        `json:"input_tokens_per_second"`
	OutputPerSec   float64        `json:"output_tokens_per_second"`
	TotalPerSec    float64        `json:"total_tokens_per_second"`
	FirstToken     Quantiles      `json:"time_to_first_token_ms"`
	InterToken     Quantiles      `json:"inter_token_latency_ms"`
	PerOutputToken Quantiles      `json:"time_per_output_token_ms"`
	EndToEnd       Quantiles      `json:"end_to_end_ms"`
}

// Quantiles of a set of times in milliseconds.
type Quantiles struct {
	Mean float64 `json:"mean"`
	P50  float64 `json:"p50"`
	P90  float64 `json:"p90"`
	P99  float64 `json:"p99"`
	Max  float64 `json:"max"`
}

// maxErrors bounds the kinds of error that a report lists.
const maxErrors = 20

func summarize(config *Config, samples []sample, took time.Duration) *Report {
	r := &Report{
		Requests: len(samples), Concurrency: config.Concurrency, Seed: config.Seed, Rate: config.Rate,
		Seconds: took.Seconds(), Errors: map[string]int{}, Bound: config.Goodput.String(),
	}
	var first, between, each, total []time.Duration
	for i := range samples {
		s := &samples[i]
		if !config.Goodput.none() && config.Goodput.holds(s) {
			r.Good++
		}
		if s.err != nil {
			r.Failed++
			if text := s.err.Error(); len(r.Errors) < maxErrors || r.Errors[text] > 0 {
				r.Errors[text]++
			}
			continue
		}
		r.InputTokens += s.input
		r.CachedTokens += s.cached
		r.OutputTokens += s.output
		first, total = append(first, s.first), append(total, s.total)
		between = append(between, s.between...)
		if s.output > 1 {
			each = append(each, s.perOutput())
		}
	}
	perSecond := func(n int) float64 { return float64(n) / took.Seconds() }
	r.RequestsPerSec, r.GoodPerSec = perSecond(len(total)), perSecond(r.Good)
	r.InputPerSec, r.OutputPerSec = perSecond(r.InputTokens), perSecond(r.OutputTokens)
	r.TotalPerSec = r.InputPerSec + r.OutputPerSec
	r.FirstToken, r.InterToken = quantiles(first), quantiles(between)
	r.PerOutputToken, r.EndToEnd = quantiles(each), quantiles(total)
	return r
}

// quantiles by nearest rank: the smallest value with at least that part of all
// values at or below it.
func quantiles(times []time.Duration) Quantiles {
	if len(times) == 0 {
		return Quantiles{}
	}
	slices.Sort(times)
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	at := func(part float64) float64 {
		return ms(times[max(0, int(math.Ceil(part*float64(len(times))))-1)])
	}
	var sum time.Duration
	for _, d := range times {
		sum += d
	}
	return Quantiles{
		Mean: ms(sum / time.Duration(len(times))), P50: at(0.5), P90: at(0.9), P99: at(0.99), Max: ms(times[len(times)-1]),
	}
}

// WriteTable writes a report for people.
func WriteTable(out io.Writer, r *Report) error {
	table := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	how, cached := fmt.Sprintf("%d at once", r.Concurrency), ""
	if r.Rate > 0 {
		how = fmt.Sprintf("%.2f offered a second, at most %s", r.Rate, how)
	}
	if r.CachedTokens > 0 {
		cached = fmt.Sprintf(" (%.0f%% from the prefix cache)", 100*float64(r.CachedTokens)/float64(r.InputTokens))
	}
	fmt.Fprintf(table, "requests\t%d, of which %d failed, %s\n", r.Requests, r.Failed, how)
	fmt.Fprintf(table, "time\t%.2f s\n", r.Seconds)
	fmt.Fprintf(table, "tokens\t%d in%s, %d out\n", r.InputTokens, cached, r.OutputTokens)
	fmt.Fprintf(table, "throughput\t%.2f requests/s, %.1f tokens/s out, %.1f in, %.1f in all\n\n",
		r.RequestsPerSec, r.OutputPerSec, r.InputPerSec, r.TotalPerSec)
	if r.Bound != "" {
		fmt.Fprintf(table, "goodput\t%.2f requests/s, %d of %d within %s\n\n", r.GoodPerSec, r.Good, r.Requests, r.Bound)
	}
	fmt.Fprintf(table, "milliseconds\tmean\tp50\tp90\tp99\tmax\n")
	for _, row := range []struct {
		name string
		q    Quantiles
	}{
		{"time to first token", r.FirstToken}, {"inter-token latency", r.InterToken},
		{"time per output token", r.PerOutputToken}, {"end to end", r.EndToEnd},
	} {
		fmt.Fprintf(table, "%s\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\n", row.name, row.q.Mean, row.q.P50, row.q.P90, row.q.P99, row.q.Max)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for text, n := range r.Errors {
		if _, err := fmt.Fprintf(out, "%d × %s\n", n, text); err != nil {
			return err
		}
	}
	return nil
}
