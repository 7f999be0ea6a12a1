package sched

import (
	"errors"
	"fmt"
	"slices"
	"sort"

	"manta/runtime/kv"
)

// Errors that end a request or an epoch.
var (
	// ErrTooLong: the sequence could not be held even if it were alone.
	ErrTooLong = errors.New("sched: sequence does not fit")
	// ErrDiverged: a rank's blocks are not what the driver's steps make them. The
	// epoch must end.
	ErrDiverged = errors.New("sched: rank diverged from its driver")
)

// Limits bound what a scheduler does.
type Limits struct {
	Blocks        []int // per block group
	Windows       []int // per block group; 0: all
	MaxSequences  int   // that run at once (max_num_seqs)
	MaxRows       int   // of one step (max_num_batched_tokens)
	MaxWanted     int   // rows of one step whose logits are wanted
	MaxLen        int   // tokens of one sequence (max_model_len)
	PrefixCaching bool
	Seed          kv.Hash // of the prefix chain: the model's digest
	Epoch         uint64
	Stages        int // pipeline stages; 0 is 1
}

// Check reports a limit that can't work.
func (l Limits) Check() error {
	switch {
	case l.MaxSequences < 1 || l.MaxRows < 1 || l.MaxLen < 2:
		return fmt.Errorf("sched: limits %d sequences, %d rows, %d tokens: each must be positive", l.MaxSequences, l.MaxRows, l.MaxLen)
	case l.MaxWanted < l.MaxSequences:
		return fmt.Errorf("sched: %d wanted rows for %d sequences", l.MaxWanted, l.MaxSequences)
	case l.MaxRows < l.MaxSequences:
		return fmt.Errorf("sched: max_num_batched_tokens=%d is less than max_num_seqs=%d", l.MaxRows, l.MaxSequences)
	}
	return nil
}

// Stats counts what the scheduler has done since it began.
type Stats struct {
	Running, Waiting int
	Preemptions      uint64
	PrefixQueries    uint64 // prompt tokens looked up in the prefix index
	PrefixHits       uint64 // … and found
	Steps            uint64
	Rows             uint64
}

// A Scheduler holds the sequences of one epoch of a replica.
type Scheduler struct {
	limits  Limits
	ledger  *kv.Ledger
	waiting []*Sequence // in order
	running []*Sequence // in order
	drops   []kv.SequenceID
	keeps   []Kept
	flights []flight // steps in flight, oldest first
	step    StepID
	cohort  int // of the newest step
	stats   Stats
}

// flight is what the driver remembers of a step until it is answered.
type flight struct {
	id     StepID
	digest uint64
	rows   []flightRow
}

type flightRow struct {
	seq     *Sequence
	count   int
	run     int // of the sequence; another one after a preemption
	samples bool
}

// New makes a scheduler with empty pools.
func New(limits Limits) (*Scheduler, error) {
	if err := limits.Check(); err != nil {
		return nil, err
	}
	ledger, err := kv.NewLedger(limits.Blocks, limits.Windows)
	if err != nil {
		return nil, err
	}
	return &Scheduler{limits: limits, ledger: ledger}, nil
}

// Ledger is the driver's account of blocks, to read.
func (s *Scheduler) Ledger() *kv.Ledger { return s.ledger }

// InFlight is the number of steps not answered yet.
func (s *Scheduler) InFlight() int { return len(s.flights) }

// Stats gives the counts so far.
func (s *Scheduler) Stats() Stats {
	s.stats.Running, s.stats.Waiting = len(s.running), len(s.waiting)
	return s.stats
}

// Add queues a sequence. It fails with ErrTooLong if the sequence could not run
// to its end even alone.
func (s *Scheduler) Add(q *Sequence) error {
	if len(q.Tokens) == 0 || len(q.Tokens) >= s.limits.MaxLen {
		return fmt.Errorf("%w: %d tokens of at most %d", ErrTooLong, len(q.Tokens), s.limits.MaxLen)
	}
	end := min(s.limits.MaxLen, q.Prompt+q.Params.MaxTokens)
	for g, w := range s.limits.Windows {
		if need := kv.MostBlocks(end, w, s.limits.MaxRows); need > s.limits.Blocks[g] {
			return fmt.Errorf("%w: %d tokens take %d blocks of %d", ErrTooLong, end, need, s.limits.Blocks[g])
		}
	}
	s.wait(q)
	return nil
}

func (s *Scheduler) wait(q *Sequence) {
	i := sort.Search(len(s.waiting), func(i int) bool { return q.before(s.waiting[i]) })
	s.waiting = slices.Insert(s.waiting, i, q)
}

// Finish ends a sequence, whatever it is doing. Its rows in flight are ignored.
func (s *Scheduler) Finish(q *Sequence) {
	if q.finished {
		return
	}
	q.finished = true
	if i := slices.Index(s.running, q); i >= 0 {
		s.running = slices.Delete(s.running, i, i+1)
	}
	if i := slices.Index(s.waiting, q); i >= 0 {
		s.waiting = slices.Delete(s.waiting, i, i+1)
	}
	if q.opened {
		q.opened = false
		s.drops = append(s.drops, q.ID)
	}
}

// Next gives the next step, or nil if there is nothing to do now. The step is in
// flight until Apply has its result.
func (s *Scheduler) Next() (*Step, error) {
	b := builder{Scheduler: s, step: &Step{Version: Version, Epoch: s.limits.Epoch, ID: s.step + 1}}
	if err := b.settle(); err != nil {
		return nil, err
	}
	if err := b.run(); err != nil {
		return nil, err
	}
	if err := b.admit(); err != nil {
		return nil, err
	}
	if b.empty() {
		return nil, nil
	}
	s.step++
	s.stats.Steps++
	s.stats.Rows += uint64(b.used)
	s.flights = append(s.flights, flight{id: s.step, digest: s.ledger.Digest(), rows: b.rows})
	return b.step, nil
}

// Finish reasons, in OpenAI's words.
type FinishReason string

const (
	Unfinished   FinishReason = ""
	FinishStop   FinishReason = "stop"
	FinishLength FinishReason = "length"
)

// An Event is what a result gave to one sequence: a drawn token, after which it
// may be finished, or the score of a prompt token.
type Event struct {
	Seq    *Sequence
	Sample Sample
	Finish FinishReason
}

// Apply takes the result of the oldest step in flight.
func (s *Scheduler) Apply(r *Result) ([]Event, error) {
	if len(s.flights) == 0 || s.flights[0].id != r.ID || r.Epoch != s.limits.Epoch {
		return nil, fmt.Errorf("%w: result of step %d/%d is not the one awaited", ErrDiverged, r.Epoch, r.ID)
	}
	f := s.flights[0]
	s.flights = s.flights[1:]
	if r.Digest != f.digest {
		return nil, fmt.Errorf("%w: digest %x after step %d, want %x", ErrDiverged, r.Digest, r.ID, f.digest)
	}
	byID := make(map[kv.SequenceID]*Sequence, len(f.rows))
	for _, row := range f.rows {
		q := row.seq
		byID[q.ID] = q
		q.Pending -= row.count
		q.Steps++
		if row.run == q.run {
			q.Computed += row.count
		}
		if row.samples {
			q.sampling--
		}
	}
	events := make([]Event, 0, len(r.Samples))
	for _, sample := range r.Samples {
		q := byID[sample.Seq]
		if q == nil {
			return nil, fmt.Errorf("%w: step %d sampled for sequence %d, which has no row in it", ErrDiverged, r.ID, sample.Seq)
		}
		if q.finished {
			continue
		}
		events = append(events, s.take(q, sample))
	}
	for _, row := range f.rows {
		s.keep(row.seq)
		if row.seq.done != Unfinished {
			s.Finish(row.seq)
		}
	}
	return events, nil
}

// take adds a drawn token to its sequence.
func (s *Scheduler) take(q *Sequence, sample Sample) Event {
	e := Event{Seq: q, Sample: sample}
	if sample.Position >= 0 {
		return e
	}
	q.Tokens = append(q.Tokens, sample.Token)
	switch {
	case q.Params.Ends(sample.Token, q.Outputs()):
		q.done = FinishStop
	case q.Outputs() >= q.Params.MaxTokens || len(q.Tokens) >= s.limits.MaxLen:
		q.done = FinishLength
	}
	e.Finish = q.done
	return e
}

// keep queues the blocks of a sequence that have become full for the index.
func (s *Scheduler) keep(q *Sequence) {
	if !s.limits.PrefixCaching || !q.opened {
		return
	}
	full := min(q.Computed, len(q.Tokens)) / kv.BlockTokens
	q.chain = kv.Extend(q.chain, s.limits.Seed, q.Tokens[:full*kv.BlockTokens])
	for ; q.kept < full; q.kept++ {
		s.keeps = append(s.keeps, Kept{Seq: q.ID, Block: q.kept, Hash: q.chain[q.kept]})
	}
}

// Slots counts the tokens' places in the blocks that running sequences hold, and
// those that hold a token; the difference is what paging wastes.
func (s *Scheduler) Slots() (taken, used int) {
	for _, q := range s.running {
		n := s.ledger.Slots(q.ID)
		used += n
		taken += kv.MostBlocks(n, 0, 0) * kv.BlockTokens
	}
	return taken, used
}
