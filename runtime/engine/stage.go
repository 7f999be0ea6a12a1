package engine

import (
	"fmt"

	"manta/kernels"
	"manta/parallel/comm"
	"manta/runtime/kv"
	"manta/runtime/sched"
)

// receive puts the hidden rows of the stage before into the model, or has the device
// do so when they come.
func (r *Rank) receive(step *sched.Step, b *kernels.Batch) error {
	if r.place.First {
		return nil
	}
	input := r.model.Input().Top(len(b.Tokens))
	if r.place.Before != nil {
		r.place.Before.Receive(input)
		return nil
	}
	await := func() ([]byte, error) {
		rows, err := r.place.Pipe.Receive(uint64(step.ID))
		if want := len(b.Tokens) * r.ops.RowBytes(input); err == nil && len(rows) != want {
			err = fmt.Errorf("received %d bytes of hidden rows, want %d", len(rows), want)
		}
		return rows, err
	}
	if s, ok := r.ops.(kernels.Stager); ok {
		s.Bring(input, await)
		return nil
	}
	rows, err := await()
	if err != nil {
		return err
	}
	return r.ops.Put(input, rows)
}

// send gives the hidden rows to the next stage, or has the device do so.
func (r *Rank) send(step *sched.Step, hidden kernels.Tensor) error {
	if r.place.After != nil {
		r.place.After.Send(hidden)
		return nil
	}
	give := func(rows []byte) error { return r.place.Pipe.Send(uint64(step.ID), rows) }
	if s, ok := r.ops.(kernels.Stager); ok {
		s.Take(hidden, give)
		return nil
	}
	size := hidden.Rows * r.ops.RowBytes(hidden)
	if cap(r.rows) < size {
		r.rows = make([]byte, size)
	}
	r.rows = r.rows[:size]
	if err := r.ops.Get(r.rows, hidden); err != nil {
		return err
	}
	return give(r.rows)
}

// tell gives the drawn tokens to the first stage.
func (r *Rank) tell(result *sched.Result) error {
	if r.place.Pipe == nil || r.place.Follow != nil {
		return nil
	}
	var drawn []comm.Drawn
	for _, s := range result.Samples {
		if s.Position < 0 {
			drawn = append(drawn, comm.Drawn{Sequence: uint64(s.Seq), Token: s.Token})
		}
	}
	return r.place.Pipe.Tell(uint64(result.ID), drawn)
}

// hear brings tokens that the last stage has drawn to this rank's seats: those
// that have come, and whatever the step's rows need.
func (r *Rank) hear(step *sched.Step) error {
	if !r.place.First || r.place.Samples || r.place.Pipe == nil || r.place.Follow != nil {
		return nil
	}
	needs := func() bool {
		for _, row := range step.Rows {
			if row.Start+row.Count > r.seqs[row.Seq].heard {
				return true
			}
		}
		return false
	}
	for {
		wait := needs()
		id, drawn, ok, err := r.place.Pipe.Hear(wait)
		if err != nil || !ok {
			return err
		}
		for _, d := range drawn {
			// What an earlier run of a sequence drew stands in its Start by now.
			if q := r.seqs[kv.SequenceID(d.Sequence)]; q != nil && sched.StepID(id) >= q.opened {
				r.ops.Feed(q.seat, d.Token)
				q.heard++
			}
		}
	}
}
