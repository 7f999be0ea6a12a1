package dispatch

import (
	"context"
	"errors"
	"time"

	"manta/internal/telemetry"
)

// Metered is a Meter that counts in a process's metrics.
type Metered struct{ Metrics *telemetry.Metrics }

var _ Meter = Metered{}

func (m Metered) Waiting(model string, delta int) { m.Metrics.Waiting(model, delta) }

func (m Metered) Running(model string, delta int) { m.Metrics.Running(model, delta) }

func (m Metered) Output(model string, tokens int, first bool, since time.Duration) {
	m.Metrics.Output(model, tokens, first, since)
}

func (m Metered) Fault(model, kind string) { m.Metrics.Fault(model, kind) }

// Ended counts a request that ended. One that moved to another connection ends there.
func (m Metered) Ended(model string, s Summary) {
	if errors.Is(s.Err, ErrSuperseded) {
		return
	}
	r := telemetry.Request{
		Status: "success", Prompt: s.Prompt, Outputs: s.Outputs, MaxTokens: s.MaxTokens,
		Queue: s.Queue, Prefill: s.Prefill, Decode: s.Decode, Total: s.Total,
	}
	switch {
	case errors.Is(s.Err, context.Canceled), errors.Is(s.Err, ErrSlowReader):
		r.Status = "cancelled"
	case s.Err != nil:
		r.Status = "error"
	}
	for _, finish := range s.Finishes {
		r.Finishes = append(r.Finishes, string(finish))
	}
	for range len(s.Outputs) - len(s.Finishes) {
		r.Finishes = append(r.Finishes, "abort")
	}
	m.Metrics.Ended(model, r)
}
