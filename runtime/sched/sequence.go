package sched

import (
	"manta/runtime/kv"
	"manta/runtime/sample"
)

// A Sequence is one generation in progress. The scheduler owns it from Add until
// it is finished; others read it between calls.
//
// Invariant: Computed + Pending ≤ len(Tokens) + 1. The one beyond is a token that
// a step in flight samples.
type Sequence struct {
	ID       kv.SequenceID
	Choice   int
	Tokens   []int32 // the prompt, then the output so far
	Prompt   int     // how many of Tokens are prompt
	Params   sample.Params
	Priority int    // lower runs first
	Arrival  uint64 // breaks ties of Priority

	Computed int // tokens whose keys and values are known to be stored
	Pending  int // tokens in steps in flight
	Cached   int // prompt tokens that the first start found in the prefix index
	Steps    int // answered, that had rows of it

	sampling int       // samples in flight
	last     StepID    // the step that samples the token at len(Tokens)
	chain    []kv.Hash // hashes of the full blocks of Tokens
	kept     int       // leading blocks that are in the index, or were
	run      int       // how often it was preempted
	cohort   int       // with S stages a sequence decodes in every S-th step
	opened   bool      // the ranks know it
	done     FinishReason
	finished bool
}

// Outputs is the number of output tokens so far.
func (s *Sequence) Outputs() int { return len(s.Tokens) - s.Prompt }

// Preemptions is how often it lost its blocks to others.
func (s *Sequence) Preemptions() int { return s.run }

// next is the first position that no step has computed yet.
func (s *Sequence) next() int { return s.Computed + s.Pending }

// remaining is how many rows the sequence could run now: its known tokens, and
// the one that is being sampled unless that ends it for certain.
func (s *Sequence) remaining(maxLen int) int {
	known := len(s.Tokens) - s.next()
	if known > 0 {
		return known
	}
	future := len(s.Tokens) + s.sampling
	if s.sampling == 1 && known == 0 && future < maxLen && future-s.Prompt < s.Params.MaxTokens {
		return 1
	}
	return 0
}

// before orders sequences: priority, then arrival.
func (s *Sequence) before(o *Sequence) bool {
	if s.Priority != o.Priority {
		return s.Priority < o.Priority
	}
	return s.Arrival < o.Arrival
}
