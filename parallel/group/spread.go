package group

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"
)

// A Remote is a node that runs ranks of the group.
type Remote struct {
	Node  string
	Ranks int
	// Send carries a payload there, in order. It may block while the peer reads.
	Send func(ctx context.Context, payload []byte) error
}

// Spread is a group whose ranks live in this process and on other nodes, as its
// driver sees it.
type Spread struct {
	local   *Local
	remotes []Remote
	queues  []chan []byte
	answers chan Answer
	ranks   int
}

// NewSpread joins the ranks here with those on other nodes, for up to depth
// payloads unanswered.
func NewSpread(depth int, local *Local, remotes ...Remote) *Spread {
	s := &Spread{local: local, remotes: remotes, ranks: local.Ranks()}
	for _, r := range remotes {
		s.queues = append(s.queues, make(chan []byte, depth))
		s.ranks += r.Ranks
	}
	s.answers = make(chan Answer, s.ranks*(depth+1))
	return s
}

// Ranks is the number of ranks, each of which answers every payload.
func (s *Spread) Ranks() int { return s.ranks }

// Send gives a payload to every rank. It does not wait.
func (s *Spread) Send(payload []byte) error {
	for i, q := range s.queues {
		select {
		case q <- payload:
		default:
			return fmt.Errorf("%w: node %s", ErrFull, s.remotes[i].Node)
		}
	}
	return s.local.Send(payload)
}

// Answers gives what the ranks say.
func (s *Spread) Answers() <-chan Answer { return s.answers }

// ErrAnswers means that a node answers what it was not asked.
var ErrAnswers = errors.New("group: more answers than payloads")

// Deliver takes an answer that came from another node. It does not wait.
func (s *Spread) Deliver(a Answer) error {
	select {
	case s.answers <- a:
		return nil
	default:
		return ErrAnswers
	}
}

// Run works until ctx ends or a rank fails; then every local rank has stopped.
func (s *Spread) Run(ctx context.Context) error {
	run, ctx := errgroup.WithContext(ctx)
	run.Go(func() error { return s.local.Run(ctx) })
	run.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case a := <-s.local.Answers():
				if err := s.Deliver(a); err != nil {
					return err
				}
			}
		}
	})
	for i, remote := range s.remotes {
		run.Go(func() error { return s.send(ctx, remote, s.queues[i]) })
	}
	return run.Wait()
}

func (s *Spread) send(ctx context.Context, remote Remote, queue <-chan []byte) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case payload := <-queue:
			if err := remote.Send(ctx, payload); err != nil {
				err = fmt.Errorf("group: node %s: %w", remote.Node, err)
				return errors.Join(err, s.Deliver(Answer{Err: err}))
			}
		}
	}
}
