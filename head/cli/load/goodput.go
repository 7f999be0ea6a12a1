package load

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// Bound is what a good request keeps to; 0: no bound. Goodput counts the good ones
// (Zhong et al., OSDI 2024, §2).
type Bound struct{ FirstToken, PerOutputToken, EndToEnd time.Duration }

// ParseBound reads vLLM's form: ttft:MS, tpot:MS and e2el:MS.
func ParseBound(parts []string) (Bound, error) {
	var b Bound
	for _, part := range parts {
		name, value, _ := strings.Cut(part, ":")
		field, ok := map[string]*time.Duration{"ttft": &b.FirstToken, "tpot": &b.PerOutputToken, "e2el": &b.EndToEnd}[name]
		ms, err := strconv.ParseFloat(value, 64)
		if !ok || err != nil || !(ms > 0) {
			return b, fmt.Errorf("--goodput %s: give ttft:MS, tpot:MS or e2el:MS", part)
		}
		*field = time.Duration(ms * float64(time.Millisecond))
	}
	return b, nil
}

// String gives the form that ParseBound reads; "" is no bound.
func (b Bound) String() string {
	var parts []string
	for _, of := range []struct {
		name string
		most time.Duration
	}{{"ttft", b.FirstToken}, {"tpot", b.PerOutputToken}, {"e2el", b.EndToEnd}} {
		if of.most > 0 {
			parts = append(parts, of.name+":"+strconv.FormatFloat(of.most.Seconds()*1000, 'f', -1, 64))
		}
	}
	return strings.Join(parts, ",")
}

func (b Bound) none() bool { return b == Bound{} }

func (b Bound) holds(s *sample) bool {
	within := func(is, most time.Duration) bool { return most == 0 || is <= most }
	return s.err == nil && within(s.first, b.FirstToken) && within(s.perOutput(), b.PerOutputToken) && within(s.total, b.EndToEnd)
}

// ReadReport reads what WriteJSON wrote.
func ReadReport(name string) (*Report, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("report: %w", err)
	}
	var r Report
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("report %s: %w", name, err)
	}
	return &r, nil
}

// differences names what two runs were asked for otherwise.
func differences(a, b *Report) string {
	var all []string
	for _, of := range []struct {
		name string
		a, b any
	}{
		{"requests", a.Requests, b.Requests}, {"at once", a.Concurrency, b.Concurrency}, {"seed", a.Seed, b.Seed},
		{"offered a second", a.Rate, b.Rate}, {"goodput's bound", a.Bound, b.Bound},
	} {
		if of.a != of.b {
			all = append(all, fmt.Sprintf("%s %v and %v", of.name, of.a, of.b))
		}
	}
	return strings.Join(all, ", ")
}

// WriteComparison sets two runs side by side.
func WriteComparison(out io.Writer, before, now *Report) error {
	table := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(table, "\nmeasure\tbefore\tnow\tnow / before")
	row := func(name string, a, b float64) {
		ratio := "-"
		if a != 0 {
			ratio = fmt.Sprintf("%.3f", b/a)
		}
		fmt.Fprintf(table, "%s\t%.2f\t%.2f\t%s\n", name, a, b, ratio)
	}
	row("requests/s", before.RequestsPerSec, now.RequestsPerSec)
	if before.Bound != "" || now.Bound != "" {
		row("good requests/s", before.GoodPerSec, now.GoodPerSec)
	}
	row("tokens/s out", before.OutputPerSec, now.OutputPerSec)
	row("tokens/s in all", before.TotalPerSec, now.TotalPerSec)
	row("failed", float64(before.Failed), float64(now.Failed))
	for _, q := range []struct {
		name string
		a, b Quantiles
	}{
		{"time to first token", before.FirstToken, now.FirstToken}, {"inter-token latency", before.InterToken, now.InterToken},
		{"time per output token", before.PerOutputToken, now.PerOutputToken}, {"end to end", before.EndToEnd, now.EndToEnd},
	} {
		row(q.name+" p50 ms", q.a.P50, q.b.P50)
		row(q.name+" p99 ms", q.a.P99, q.b.P99)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if other := differences(before, now); other != "" {
		_, err := fmt.Fprintf(out, "the two did not do the same work: %s\n", other)
		return err
	}
	return nil
}
