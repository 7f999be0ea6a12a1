// Package sched decides what runs next. It is pure: no clock, no I/O, no
// goroutine; the engine's step loop calls it and owns everything in it.
//
// There is no prefill phase and no decode phase: each sequence catches up to its
// tokens, some rows a step, under one budget of rows (as in vLLM's v1 scheduler;
// chunking is that of Agrawal et al., OSDI 2024, §4, Sarathi-Serve).
package sched

import (
	"fmt"

	"github.com/fxamacker/cbor/v2"

	"manta/kernels"
	"manta/runtime/kv"
	"manta/runtime/sample"
)

// Version is that of the encoding of steps and results.
const Version = 1

// StepID counts the steps of an epoch from 1.
type StepID uint64

// A Step is the one message that every rank of a replica obeys, in the order of
// Account. It is plain data and sent as a difference
// from what the ranks know.
type Step struct {
	Version int             `cbor:"1,keyasint"`
	Epoch   uint64          `cbor:"2,keyasint"`
	ID      StepID          `cbor:"3,keyasint"`
	New     []Start         `cbor:"4,keyasint,omitempty"`
	Rows    []Row           `cbor:"5,keyasint,omitempty"`
	Keep    []Kept          `cbor:"6,keyasint,omitempty"`
	Evict   []Evicted       `cbor:"7,keyasint,omitempty"`
	Drop    []kv.SequenceID `cbor:"8,keyasint,omitempty"`
}

// Start makes a sequence known to the ranks.
type Start struct {
	Seq    kv.SequenceID `cbor:"1,keyasint"`
	Choice int           `cbor:"2,keyasint"`
	Params sample.Params `cbor:"3,keyasint"`
	Tokens []int32       `cbor:"4,keyasint"`
	Prompt int           `cbor:"5,keyasint"` // how many of Tokens are prompt
	Hit    []kv.Hash     `cbor:"6,keyasint,omitempty"`
}

// Want says which logits of a row's tokens are wanted.
type Want uint8

const (
	WantNone Want = iota
	WantLast      // sample the token after the last
	WantAll       // and score every prompt token that follows one of the row's
)

// A Row is Count tokens of one sequence, from position Start on.
type Row struct {
	Seq   kv.SequenceID `cbor:"1,keyasint"`
	Start int           `cbor:"2,keyasint"`
	Count int           `cbor:"3,keyasint"`
	// From, if not 0, is the step whose sample for this sequence is the token of
	// this row (Count is 1).
	From StepID `cbor:"4,keyasint,omitempty"`
	Want Want   `cbor:"5,keyasint,omitempty"`
}

// Kept puts a full block of a sequence into the prefix index.
type Kept struct {
	Seq   kv.SequenceID `cbor:"1,keyasint"`
	Block int           `cbor:"2,keyasint"`
	Hash  kv.Hash       `cbor:"3,keyasint"`
}

// Evicted takes an idle block out of a group's prefix index.
type Evicted struct {
	Group int     `cbor:"1,keyasint"`
	Hash  kv.Hash `cbor:"2,keyasint"`
}

// A Result answers a Step: what was sampled and scored, and the rank's digest.
type Result struct {
	Version int      `cbor:"1,keyasint"`
	Epoch   uint64   `cbor:"2,keyasint"`
	ID      StepID   `cbor:"3,keyasint"`
	Samples []Sample `cbor:"4,keyasint,omitempty"`
	Digest  uint64   `cbor:"5,keyasint"`
}

// A Sample is a token drawn for a sequence, or with Position ≥ 0 the score of the
// prompt token at that position.
type Sample struct {
	Seq      kv.SequenceID          `cbor:"1,keyasint"`
	Position int                    `cbor:"2,keyasint"` // -1: drawn
	Token    int32                  `cbor:"3,keyasint"`
	Logprob  float32                `cbor:"4,keyasint,omitempty"`
	Rank     int32                  `cbor:"5,keyasint,omitempty"`
	Top      []kernels.TokenLogprob `cbor:"6,keyasint,omitempty"`
}

// RowCount is the number of tokens that the step computes.
func (s *Step) RowCount() int {
	n := 0
	for _, row := range s.Rows {
		n += row.Count
	}
	return n
}

// Account does to a rank's ledger what the driver did to its own.
func (s *Step) Account(l *kv.Ledger) error {
	for _, k := range s.Keep {
		if err := l.Keep(k.Seq, k.Block, k.Hash); err != nil {
			return err
		}
	}
	for _, id := range s.Drop {
		if err := l.Drop(id); err != nil {
			return err
		}
	}
	for _, row := range s.Rows {
		l.Slide(row.Seq, row.Start)
	}
	for _, e := range s.Evict {
		if err := l.Evict(e.Group, e.Hash); err != nil {
			return err
		}
	}
	for _, start := range s.New {
		if err := l.Open(start.Seq, start.Hit); err != nil {
			return err
		}
	}
	for _, row := range s.Rows {
		if err := l.Grow(row.Seq, row.Start, row.Start+row.Count); err != nil {
			return err
		}
	}
	return nil
}

var decoding = func() cbor.DecMode {
	mode, err := cbor.DecOptions{MaxArrayElements: 1 << 22, MaxMapPairs: 64, MaxNestedLevels: 8}.DecMode()
	if err != nil {
		panic(err)
	}
	return mode
}()

// Encode gives the message that travels.
func Encode(message any) ([]byte, error) { return cbor.Marshal(message) }

// DecodeStep reads a step and checks its version.
func DecodeStep(data []byte) (*Step, error) {
	var s Step
	if err := decoding.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("sched: step: %w", err)
	}
	if s.Version != Version {
		return nil, fmt.Errorf("sched: step of version %d, this program speaks %d", s.Version, Version)
	}
	return &s, nil
}

// DecodeResult reads a result and checks its version.
func DecodeResult(data []byte) (*Result, error) {
	var r Result
	if err := decoding.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("sched: result: %w", err)
	}
	if r.Version != Version {
		return nil, fmt.Errorf("sched: result of version %d, this program speaks %d", r.Version, Version)
	}
	return &r, nil
}
