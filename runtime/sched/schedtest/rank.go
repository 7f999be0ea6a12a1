// Package schedtest has a rank that obeys steps without a model, for tests. It
// checks that every row sees exactly the slots of its own prefix.
package schedtest

import (
	"fmt"
	"slices"

	"manta/runtime/kv"
	"manta/runtime/sample"
	"manta/runtime/sched"
)

// NextToken stands for a model: the token after a prefix is a hash of it.
func NextToken(tokens []int32) int32 {
	h := uint32(2166136261)
	for _, t := range tokens {
		h = (h ^ uint32(t)) * 16777619
	}
	return int32(h>>8) % 50
}

// Expected is what a sequence must give: the same alone and among any others.
func Expected(prompt []int32, p sample.Params, maxLen int) []int32 {
	tokens := slices.Clone(prompt)
	for {
		t := NextToken(tokens)
		tokens = append(tokens, t)
		n := len(tokens) - len(prompt)
		if p.Ends(t, n) || n >= p.MaxTokens || len(tokens) >= maxLen {
			return tokens[len(prompt):]
		}
	}
}

// Rank obeys steps as a device would. In place of keys and values a slot holds the
// hash of the prefix that ends there.
type Rank struct {
	ledger  *kv.Ledger
	windows []int
	seqs    map[kv.SequenceID]*sequence
	slots   []map[kv.BlockID][kv.BlockTokens]uint32 // per group
}

type sequence struct {
	start  sched.Start
	tokens []int32
	last   sched.StepID // the step that sampled the newest token
}

// NewRank makes a rank with empty pools.
func NewRank(blocks, windows []int) (*Rank, error) {
	ledger, err := kv.NewLedger(blocks, windows)
	if err != nil {
		return nil, err
	}
	r := &Rank{ledger: ledger, windows: windows, seqs: make(map[kv.SequenceID]*sequence)}
	for range blocks {
		r.slots = append(r.slots, make(map[kv.BlockID][kv.BlockTokens]uint32))
	}
	return r, nil
}

// Begin implements group.Rank.
func (r *Rank) Begin(payload []byte) (func() ([]byte, error), error) {
	answer, err := r.obey(payload)
	if err != nil {
		return nil, err
	}
	return func() ([]byte, error) { return answer, nil }, nil
}

func (r *Rank) obey(payload []byte) ([]byte, error) {
	step, err := sched.DecodeStep(payload)
	if err != nil {
		return nil, err
	}
	if err := step.Account(r.ledger); err != nil {
		return nil, fmt.Errorf("step %d: %w", step.ID, err)
	}
	for _, id := range step.Drop {
		delete(r.seqs, id)
	}
	for _, n := range step.New {
		r.seqs[n.Seq] = &sequence{start: n, tokens: slices.Clone(n.Tokens)}
	}
	result := &sched.Result{Version: sched.Version, Epoch: step.Epoch, ID: step.ID, Digest: r.ledger.Digest()}
	for _, row := range step.Rows {
		if err := r.compute(row); err != nil {
			return nil, fmt.Errorf("step %d: %w", step.ID, err)
		}
	}
	for _, row := range step.Rows {
		result.Samples = append(result.Samples, r.sample(step.ID, row)...)
	}
	return sched.Encode(result)
}

func prefixHash(tokens []int32) uint32 {
	h := uint32(17)
	for _, t := range tokens {
		h = (h ^ uint32(t)) * 0x9e3779b1
	}
	return h
}

// compute writes the row's slots and checks every slot that it sees.
func (r *Rank) compute(row sched.Row) error {
	q := r.seqs[row.Seq]
	if row.Start+row.Count > len(q.tokens) {
		return fmt.Errorf("sequence %d: rows up to %d of %d tokens", row.Seq, row.Start+row.Count, len(q.tokens))
	}
	if row.From != 0 && (row.From != q.last || row.Count != 1 || row.Start != len(q.tokens)-1) {
		return fmt.Errorf("sequence %d: row %d+%d from step %d; step %d sampled its newest token", row.Seq, row.Start, row.Count, row.From, q.last)
	}
	for p := row.Start; p < row.Start+row.Count; p++ {
		for g := range r.windows {
			if err := r.see(q, row.Seq, g, p); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *Rank) see(q *sequence, id kv.SequenceID, g, p int) error {
	blocks := r.ledger.Blocks(id)[g]
	b := blocks[p/kv.BlockTokens]
	slots := r.slots[g][b]
	slots[p%kv.BlockTokens] = prefixHash(q.tokens[:p+1])
	r.slots[g][b] = slots
	first := 0
	if w := r.windows[g]; w > 0 {
		first = max(0, p-w+1)
	}
	for seen := first; seen <= p; seen++ {
		b := blocks[seen/kv.BlockTokens]
		if b == kv.None || r.slots[g][b][seen%kv.BlockTokens] != prefixHash(q.tokens[:seen+1]) {
			return fmt.Errorf("sequence %d group %d: position %d does not see position %d (block %d)", id, g, p, seen, b)
		}
	}
	return nil
}

func (r *Rank) sample(step sched.StepID, row sched.Row) []sched.Sample {
	q := r.seqs[row.Seq]
	end := row.Start + row.Count
	var out []sched.Sample
	if row.Want == sched.WantAll {
		for p := row.Start + 1; p <= end && p < q.start.Prompt; p++ {
			out = append(out, sched.Sample{Seq: row.Seq, Position: p, Token: q.tokens[p]})
		}
	}
	if row.Want != sched.WantNone && end == len(q.tokens) {
		t := NextToken(q.tokens)
		q.tokens, q.last = append(q.tokens, t), step
		out = append(out, sched.Sample{Seq: row.Seq, Position: -1, Token: t})
	}
	return out
}
