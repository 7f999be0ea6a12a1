package sched

import (
	"errors"
	"slices"

	"manta/runtime/kv"
)

// builder makes one step. Whatever it does to the driver's ledger stands in the
// step, and a rank that obeys the step in the order of Step.Account ends with the
// same counts: keeps come first, a sequence that loses its blocks has no row in
// the step, and what is evicted is used by none.
type builder struct {
	*Scheduler
	step      *Step
	rows      []flightRow
	budget    int // rows
	used      int // of them
	wanted    int
	preempted bool
}

func (b *builder) empty() bool {
	s := b.step
	return len(s.Rows) == 0 && len(s.Keep) == 0 && len(s.Drop) == 0 && len(s.Evict) == 0
}

// settle passes on what has come of earlier steps.
func (b *builder) settle() error {
	for _, k := range b.keeps {
		if err := b.ledger.Keep(k.Seq, k.Block, k.Hash); err != nil {
			return err
		}
	}
	for _, id := range b.drops {
		if err := b.ledger.Drop(id); err != nil {
			return err
		}
	}
	b.step.Keep, b.keeps = b.keeps, nil
	b.step.Drop, b.drops = b.drops, nil
	return nil
}

// run gives rows to running sequences in their order. A sequence that has many
// tokens to catch up with leaves one row to each that comes after it.
//
// With S stages the step takes one of S cohorts: while it is in the first stage,
// the others are in the later ones, and no stage waits for a token that is still
// being sampled. Known tokens may follow in consecutive steps.
func (b *builder) run() error {
	b.budget = b.chunk()
	b.turn()
	for i := 0; i < len(b.running); i++ {
		q := b.running[i]
		if q.cohort != b.cohort && q.remaining(b.limits.MaxLen) == 1 {
			continue
		}
		behind := len(b.running) - 1 - i
		n := b.count(q, b.budget-b.used-behind, b.limits.MaxWanted-b.wanted-behind)
		if n == 0 {
			continue
		}
		if err := b.place(q, n); err != nil {
			return err
		}
	}
	return nil
}

const (
	// leastChunk rows keep a device as busy as more would.
	leastChunk = 512
	// parts of what is known are steps before the last stage has its first rows, for
	// each stage before it: the pipeline fills and empties in 1/parts of the time that
	// it works (Huang et al. 2019, §2.3).
	parts = 4
)

// chunk is how many rows the step may have. With several stages known tokens are
// cut, so that later ones need not wait until the first has computed all.
func (b *builder) chunk() int {
	most, before := b.limits.MaxRows, b.limits.Stages-1
	if before < 1 {
		return most
	}
	known := 0
	for _, q := range b.running {
		known += q.remaining(b.limits.MaxLen)
	}
	for i := 0; i < len(b.waiting) && known < parts*before*most; i++ {
		known += len(b.waiting[i].Tokens)
	}
	return min(most, max(leastChunk, b.limits.MaxSequences, (known+parts*before-1)/(parts*before)))
}

// turn picks the next cohort that has something to run.
func (b *builder) turn() {
	for i := range b.limits.Stages {
		cohort := (b.cohort + 1 + i) % b.limits.Stages
		for _, q := range b.running {
			if q.cohort == cohort && q.remaining(b.limits.MaxLen) > 0 {
				b.cohort = cohort
				return
			}
		}
	}
}

// smallest is the cohort with the fewest sequences.
func (b *builder) smallest() int {
	counts := make([]int, max(1, b.limits.Stages))
	for _, q := range b.running {
		counts[q.cohort]++
	}
	return slices.Index(counts, slices.Min(counts))
}

// count is how many rows q runs with so many rows and wanted rows left.
func (b *builder) count(q *Sequence, rows, wanted int) int {
	n := min(q.remaining(b.limits.MaxLen), rows)
	if q.scores() {
		n = min(n, wanted)
	}
	if wanted <= 0 {
		return 0
	}
	return max(n, 0)
}

// scores reports whether the next rows of q are also scored (prompt logprobs).
func (q *Sequence) scores() bool {
	return q.Params.PromptLogprobs >= 0 && q.next() < q.Prompt
}

// place puts n rows of q into the step. Where blocks lack it evicts idle ones,
// then preempts the last sequence in order, which may be q itself.
func (b *builder) place(q *Sequence, n int) error {
	for {
		err := b.grow(q, n)
		if err == nil {
			b.add(q, n)
			return nil
		}
		if !errors.Is(err, kv.ErrNoBlocks) {
			return err
		}
		victim := b.running[len(b.running)-1]
		if err := b.preempt(victim); err != nil {
			return err
		}
		if victim == q {
			return nil
		}
	}
}

// grow finds slots for n more tokens of q, evicting idle blocks.
func (b *builder) grow(q *Sequence, n int) error {
	for {
		err := b.ledger.Grow(q.ID, q.next(), q.next()+n)
		if !errors.Is(err, kv.ErrNoBlocks) {
			return err
		}
		group, missing := b.ledger.Lacks(q.ID, q.next()+n)
		for ; missing > 0; missing-- {
			h, ok := b.ledger.Pool(group).Oldest()
			if !ok {
				return err
			}
			if err := b.ledger.Evict(group, h); err != nil {
				return err
			}
			b.step.Evict = append(b.step.Evict, Evicted{Group: group, Hash: h})
		}
	}
}

// add records n rows of q, whose slots it has.
func (b *builder) add(q *Sequence, n int) {
	row := Row{Seq: q.ID, Start: q.next(), Count: n}
	end := row.Start + n
	if row.Start == len(q.Tokens) {
		row.From = q.last
	}
	switch {
	case q.scores():
		row.Want = WantAll
		b.wanted += n
	case end >= len(q.Tokens):
		row.Want = WantLast
		b.wanted++
	}
	samples := end >= len(q.Tokens)
	if samples {
		q.sampling++
		q.last = b.step.ID
	}
	q.Pending += n
	b.used += n
	b.step.Rows = append(b.step.Rows, row)
	b.rows = append(b.rows, flightRow{seq: q, count: n, run: q.run, samples: samples})
}

// preempt takes a running sequence's blocks; it will be computed again from its
// tokens. It has no row in this step, as it comes after all that have.
func (b *builder) preempt(q *Sequence) error {
	b.running = slices.DeleteFunc(b.running, func(r *Sequence) bool { return r == q })
	if err := b.ledger.Drop(q.ID); err != nil {
		return err
	}
	b.step.Drop = append(b.step.Drop, q.ID)
	q.opened, q.Computed, q.kept = false, 0, 0
	q.run++
	b.preempted = true
	b.stats.Preemptions++
	b.wait(q)
	return nil
}

// admit starts waiting sequences in their order while rows, seats and blocks
// last. After a preemption nobody is admitted.
func (b *builder) admit() error {
	for !b.preempted && len(b.waiting) > 0 && len(b.running) < b.limits.MaxSequences {
		q := b.waiting[0]
		n := b.count(q, b.budget-b.used, b.limits.MaxWanted-b.wanted)
		if q.Pending > 0 || n == 0 {
			return nil // it starts again only when its answers in flight have come
		}
		hits := b.hits(q)
		if !b.fits(q, hits) {
			return nil
		}
		if err := b.open(q, hits); err != nil {
			return err
		}
		n = b.count(q, b.budget-b.used, b.limits.MaxWanted-b.wanted)
		if err := b.grow(q, n); err != nil {
			return err
		}
		b.add(q, n)
	}
	return nil
}

// hits gives the prefix that q can share. It ends before the block of the last
// token, which must be computed to give logits; scored prompts share nothing.
func (b *builder) hits(q *Sequence) []kv.Hash {
	if !b.limits.PrefixCaching || q.scores() {
		return nil
	}
	q.chain = kv.Extend(q.chain, b.limits.Seed, q.Tokens)
	most := min((len(q.Tokens)-1)/kv.BlockTokens, len(q.chain))
	return q.chain[:b.ledger.Hits(q.chain[:most])]
}

// fits reports whether all of q's tokens, not only the next rows, find blocks
// without a preemption, so that admission does not lead to one at once.
func (b *builder) fits(q *Sequence, hits []kv.Hash) bool {
	for g, w := range b.limits.Windows {
		pool := b.ledger.Pool(g)
		shared := 0
		for _, h := range hits {
			if pool.Holds(h) {
				shared++
			}
		}
		need := kv.MostBlocks(len(q.Tokens)+1, w, b.limits.MaxRows)
		if w == 0 {
			need -= shared
		}
		// Shared blocks may be idle now; they will not be free to take.
		if need > pool.Free()+max(0, pool.Idle()-shared) {
			return false
		}
	}
	return true
}

// open makes a waiting sequence a running one.
func (b *builder) open(q *Sequence, hits []kv.Hash) error {
	if err := b.ledger.Open(q.ID, hits); err != nil {
		return err
	}
	b.waiting = b.waiting[1:]
	q.cohort = b.smallest()
	i, _ := slices.BinarySearchFunc(b.running, q, func(r, q *Sequence) int {
		if r.before(q) {
			return -1
		}
		return 1
	})
	b.running = slices.Insert(b.running, i, q)
	b.step.New = append(b.step.New, Start{
		Seq: q.ID, Choice: q.Choice, Params: q.Params,
		Tokens: slices.Clone(q.Tokens), Prompt: q.Prompt, Hit: slices.Clone(hits),
	})
	q.opened = true
	q.Computed = len(hits) * kv.BlockTokens
	q.kept = len(hits)
	if q.run == 0 {
		q.Cached = q.Computed
	}
	if b.limits.PrefixCaching {
		b.stats.PrefixQueries += uint64(len(q.Tokens))
		b.stats.PrefixHits += uint64(q.Computed)
	}
	return nil
}
