package group

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"manta/kernels"
)

type rankFunc func() ([]byte, error)

func (f rankFunc) Begin([]byte) (func() ([]byte, error), error) { return f, nil }

// A rank that fails leaves others without a partner. What ends the group is why it
// failed, however early theirs is known.
func TestTheCauseEndsAGroup(t *testing.T) {
	cause, first := errors.New("the device is lost"), make(chan struct{})
	g := NewLocal(1,
		rankFunc(func() ([]byte, error) {
			defer close(first)
			return nil, fmt.Errorf("step 1: %w", kernels.ErrUnlinked)
		}),
		rankFunc(func() ([]byte, error) {
			<-first
			return nil, cause
		}))
	if err := g.Send([]byte("step")); err != nil {
		t.Fatal(err)
	}
	if err := g.Run(context.Background()); !errors.Is(err, cause) {
		t.Errorf("the group ended with %v", err)
	}
	if a := <-g.Answers(); a.Rank != 1 || !errors.Is(a.Err, cause) {
		t.Errorf("rank %d answers %v", a.Rank, a.Err)
	}
}
