// Package group carries one opaque payload to every rank of a replica and each
// rank's answer back, in order. It knows nothing of what is inside. Losing a rank
// ends the epoch, not the process.
package group

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"manta/kernels"
)

// ErrFull means that more payloads were sent than the group's depth allows.
var ErrFull = errors.New("group: too many payloads in flight")

// A Rank obeys payloads in the order in which they come.
type Rank interface {
	// Begin hands the payload to the device and gives a function that waits for the
	// answer. Begin is called by one goroutine, the waits, in the same order, by
	// another; an error ends the epoch.
	Begin(payload []byte) (wait func() ([]byte, error), err error)
}

// An Answer is what one rank says to one payload.
type Answer struct {
	Rank    int
	Node    string // of ranks on another node
	Payload []byte
	Err     error // the rank is lost; no answers follow
}

// Local is a group whose ranks live in this process.
type Local struct {
	ranks   []Rank
	in      []chan []byte
	answers chan Answer
	// End, if set before Run, is called once as soon as the epoch ends, with why, so
	// that ranks that wait for each other stop waiting.
	End func(cause error)
}

// NewLocal makes a group of ranks that takes up to depth payloads unanswered.
func NewLocal(depth int, ranks ...Rank) *Local {
	g := &Local{ranks: ranks, answers: make(chan Answer, len(ranks)*(depth+1))}
	for range ranks {
		g.in = append(g.in, make(chan []byte, depth))
	}
	return g
}

// Ranks is the number of ranks, each of which answers every payload.
func (g *Local) Ranks() int { return len(g.ranks) }

// Send gives a payload to every rank. It does not wait.
func (g *Local) Send(payload []byte) error {
	for i, in := range g.in {
		select {
		case in <- payload:
		default:
			return fmt.Errorf("%w: rank %d", ErrFull, i)
		}
	}
	return nil
}

// Answers gives what the ranks say.
func (g *Local) Answers() <-chan Answer { return g.answers }

// Run works until ctx ends or a rank fails; then every rank has stopped.
func (g *Local) Run(ctx context.Context) error {
	run, ctx := errgroup.WithContext(ctx)
	if g.End != nil {
		run.Go(func() error {
			<-ctx.Done()
			g.End(context.Cause(ctx))
			return ctx.Err()
		})
	}
	for i, r := range g.ranks {
		waits := make(chan func() ([]byte, error), cap(g.in[i]))
		run.Go(func() error { return g.begin(ctx, i, r, waits) })
		run.Go(func() error { return g.wait(ctx, i, waits) })
	}
	return run.Wait()
}

func (g *Local) begin(ctx context.Context, i int, r Rank, waits chan<- func() ([]byte, error)) error {
	defer close(waits)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case payload := <-g.in[i]:
			wait, err := r.Begin(payload)
			if err != nil {
				return g.lost(ctx, i, err)
			}
			select {
			case waits <- wait:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

// wait answers in order. What was begun is waited for even when the group ends,
// so that the device is idle when Run returns.
func (g *Local) wait(ctx context.Context, i int, waits <-chan func() ([]byte, error)) error {
	for wait := range waits {
		payload, err := wait()
		if err != nil {
			return g.lost(ctx, i, err)
		}
		select {
		case g.answers <- Answer{Rank: i, Payload: payload}:
		case <-ctx.Done():
		}
	}
	return ctx.Err()
}

func (g *Local) lost(ctx context.Context, i int, err error) error {
	if errors.Is(err, kernels.ErrUnlinked) { // why, another rank says
		<-ctx.Done()
		return ctx.Err()
	}
	err = fmt.Errorf("group: rank %d: %w", i, err)
	select {
	case g.answers <- Answer{Rank: i, Err: err}:
	case <-ctx.Done():
	}
	return err
}
