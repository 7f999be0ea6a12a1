package engine

import (
	"fmt"

	"manta/kernels"
	"manta/parallel/comm"
	"manta/runtime/kv"
	"manta/runtime/sched"
)

// A Forwarder computes a batch between Begin and End of its Ops: a model's slice.
type Forwarder interface {
	// Forward gives the logits of the wanted rows on the last stage, and the hidden
	// rows on any other.
	Forward(b *kernels.Batch) (kernels.Tensor, error)
	// Input is where the hidden rows of the stage before go.
	Input() kernels.Tensor
}

// A Rank obeys a driver's steps on one device. It mirrors the driver's account of
// blocks in a ledger of its own and proves it with a digest in every answer.
//
// It belongs to one epoch; the model and the device outlive it.
type Rank struct {
	ops    kernels.Ops
	model  Forwarder
	place  Place
	epoch  uint64
	ledger *kv.Ledger
	seqs   map[kv.SequenceID]*rankSequence
	seats  []int32 // free sampler seats
	last   sched.StepID
	rows   []byte // hidden rows on their way between stages
}

// Place is where a rank stands in its replica.
type Place struct {
	First, Last bool // stage
	// Samples: tensor rank 0 of the last stage draws the tokens.
	Samples bool
	// Pipe joins the rank to the others; nil if it is alone.
	Pipe Pipe
	// Before and After take hidden rows from the stage before and to the next one,
	// where devices do so by themselves; nil: Pipe does.
	Before, After kernels.Hop
	// Follow brings drawn tokens to all ranks where their devices do so by themselves;
	// nil: Pipe does.
	Follow kernels.Follower
}

// Alone is the place of the only rank.
func Alone() Place { return Place{First: true, Last: true, Samples: true} }

// A Pipe joins a rank to the stages before and after it. Steps go through it in
// order; its errors end the epoch. parallel/comm implements it.
type Pipe interface {
	// Send gives the hidden rows of a step to the next stage; Receive waits for
	// those of the stage before. Receive's slice is valid until the next call.
	Send(step uint64, rows []byte) error
	Receive(step uint64) ([]byte, error)
	// Tell gives the tokens that a step sampled to every rank of the first stage.
	// Hear gives them there, step by step; without wait it may have none.
	Tell(step uint64, drawn []comm.Drawn) error
	Hear(wait bool) (step uint64, drawn []comm.Drawn, ok bool, err error)
}

// rankSequence is a sequence as a rank knows it.
type rankSequence struct {
	start  sched.Start
	known  int // start.Tokens, and one for each token sampled since
	heard  int // the same, as far as this rank's device knows the tokens
	seat   int32
	opened sched.StepID
}

// NewRank makes a rank with empty pools.
func NewRank(ops kernels.Ops, model Forwarder, limits sched.Limits, place Place) (*Rank, error) {
	ledger, err := kv.NewLedger(limits.Blocks, limits.Windows)
	if err != nil {
		return nil, err
	}
	r := &Rank{ops: ops, model: model, place: place, epoch: limits.Epoch, ledger: ledger, seqs: make(map[kv.SequenceID]*rankSequence)}
	for seat := limits.MaxSequences - 1; seat >= 0; seat-- {
		r.seats = append(r.seats, int32(seat))
	}
	return r, nil
}

// Begin obeys an encoded step. It implements group.Rank.
func (r *Rank) Begin(payload []byte) (func() ([]byte, error), error) {
	step, err := sched.DecodeStep(payload)
	if err != nil {
		return nil, err
	}
	if step.Epoch != r.epoch || step.ID != r.last+1 {
		return nil, fmt.Errorf("engine: step %d/%d after %d/%d", step.Epoch, step.ID, r.epoch, r.last)
	}
	r.last = step.ID
	if err := step.Account(r.ledger); err != nil {
		return nil, fmt.Errorf("engine: step %d: %w", step.ID, err)
	}
	if err := r.seat(step); err != nil {
		return nil, fmt.Errorf("engine: step %d: %w", step.ID, err)
	}
	result := &sched.Result{Version: sched.Version, Epoch: r.epoch, ID: step.ID, Digest: r.ledger.Digest()}
	wait, err := r.compute(step, result)
	if err != nil {
		return nil, fmt.Errorf("engine: step %d: %w", step.ID, err)
	}
	return func() ([]byte, error) {
		if err := wait(); err != nil {
			return nil, fmt.Errorf("engine: step %d: %w", step.ID, err)
		}
		return sched.Encode(result)
	}, nil
}

// compute hands the step's rows to the device. The function it gives waits for
// them and fills in the result.
func (r *Rank) compute(step *sched.Step, result *sched.Result) (func() error, error) {
	if len(step.Rows) == 0 {
		return func() error { return nil }, nil
	}
	b, rows, err := r.batch(step, result)
	if err != nil {
		return nil, err
	}
	// A device that computes later knows tokens early enough when all is written down.
	_, later := r.ops.(kernels.Stager)
	if !later {
		if err := r.hear(step); err != nil {
			return nil, err
		}
	}
	if err := r.ops.Begin(b); err != nil {
		return nil, err
	}
	if err := r.receive(step, b); err != nil {
		return nil, err
	}
	out, err := r.model.Forward(b)
	if err != nil {
		return nil, err
	}
	switch {
	case !r.place.Last:
		err = r.send(step, out)
	case r.place.Samples && len(rows) > 0:
		r.ops.Sample(out, rows)
	}
	if r.place.Follow != nil && err == nil {
		err = r.place.Follow.Follow(r.ops, rows)
	}
	if later {
		if err := r.hear(step); err != nil {
			return nil, err
		}
	}
	pending := r.ops.End()
	if err != nil {
		return nil, err
	}
	return func() error {
		sampled, err := pending.Wait()
		if err != nil {
			return err
		}
		if !r.place.Samples {
			result.Samples = nil
			return nil
		}
		for i, s := range sampled {
			out := &result.Samples[i]
			out.Token, out.Logprob, out.Rank, out.Top = s.Token, s.Logprob, s.Rank, s.Top
		}
		return r.tell(result)
	}, nil
}

// seat gives the step's new sequences the sampler seats of those that ended.
func (r *Rank) seat(step *sched.Step) error {
	for _, id := range step.Drop {
		q, ok := r.seqs[id]
		if !ok {
			return fmt.Errorf("drop sequence %d: it is not open", id)
		}
		r.seats = append(r.seats, q.seat)
		delete(r.seqs, id)
	}
	for _, start := range step.New {
		if len(r.seats) == 0 {
			return fmt.Errorf("no seat for sequence %d", start.Seq)
		}
		if start.Prompt < 1 || start.Prompt > len(start.Tokens) {
			return fmt.Errorf("sequence %d: prompt of %d in %d tokens", start.Seq, start.Prompt, len(start.Tokens))
		}
		seat := r.seats[len(r.seats)-1]
		r.seats = r.seats[:len(r.seats)-1]
		r.ops.Seat(seat, start.Tokens[:start.Prompt], start.Tokens[start.Prompt:])
		r.seqs[start.Seq] = &rankSequence{start: start, known: len(start.Tokens), heard: len(start.Tokens), seat: seat, opened: step.ID}
	}
	return nil
}

// batch lays the step's rows out for the device. result gets an entry for each
// sampling row, to be filled when the device has drawn.
func (r *Rank) batch(step *sched.Step, result *sched.Result) (*kernels.Batch, []kernels.SampleRow, error) {
	total := step.RowCount()
	b := &kernels.Batch{
		Tokens:    make([]int32, 0, total),
		Positions: make([]int32, 0, total),
		Spans:     make([]kernels.Span, 0, len(step.Rows)),
	}
	var rows []kernels.SampleRow
	for _, row := range step.Rows {
		q := r.seqs[row.Seq]
		if row.Start+row.Count > q.known {
			return nil, nil, fmt.Errorf("sequence %d: rows up to %d of %d tokens", row.Seq, row.Start+row.Count, q.known)
		}
		first := len(b.Tokens)
		b.Spans = append(b.Spans, kernels.Span{Row: first, Count: row.Count, Start: row.Start, Blocks: r.ledger.Blocks(row.Seq)})
		for p := row.Start; p < row.Start+row.Count; p++ {
			b.Tokens = append(b.Tokens, q.token(p))
			b.Positions = append(b.Positions, int32(p))
		}
		rows = r.want(b, rows, row, q, first, result)
	}
	return b, rows, nil
}

// token gives the token at a position; one that was sampled on the device is
// named by its seat, since only the newest of them is ever computed.
func (q *rankSequence) token(position int) int32 {
	if position < len(q.start.Tokens) {
		return q.start.Tokens[position]
	}
	return -1 - q.seat
}

// want asks for the logits of a row: scores of prompt tokens, and a draw.
func (r *Rank) want(b *kernels.Batch, rows []kernels.SampleRow, row sched.Row, q *rankSequence, first int, result *sched.Result) []kernels.SampleRow {
	end := row.Start + row.Count
	ask := func(position int, s kernels.SampleRow, sample sched.Sample) {
		s.Row = int32(len(b.Wanted))
		b.Wanted = append(b.Wanted, int32(first+position-row.Start))
		rows = append(rows, s)
		result.Samples = append(result.Samples, sample)
	}
	if row.Want == sched.WantAll {
		for p := row.Start; p < end && p+1 < q.start.Prompt; p++ {
			ask(p, kernels.SampleRow{Seat: -1, Target: q.start.Tokens[p+1], TopLogprobs: int32(q.start.Params.PromptLogprobs)},
				sched.Sample{Seq: row.Seq, Position: p + 1})
		}
	}
	if row.Want != sched.WantNone && end == q.known {
		s := q.start.Params.Row(q.start.Choice, end, end-q.start.Prompt)
		s.Seat = q.seat
		ask(end-1, s, sched.Sample{Seq: row.Seq, Position: -1})
		q.known++
	}
	return rows
}
