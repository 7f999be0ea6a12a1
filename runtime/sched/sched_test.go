package sched

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"manta/runtime/kv"
	"manta/runtime/sample"
)

// nextToken stands for a model: the token after a prefix is a hash of it.
func nextToken(tokens []int32) int32 {
	h := uint32(2166136261)
	for _, t := range tokens {
		h = (h ^ uint32(t)) * 16777619
	}
	return int32(h>>8) % 50
}

// rank obeys steps as a device would, with the tokens as its only «device»: it
// fails the test if a row reads a slot that nobody wrote or that was overwritten.
type rank struct {
	t      *testing.T
	ledger *kv.Ledger
	seqs   map[kv.SequenceID]*rankSequence
	// slots[group][block][i] is the hash of the prefix whose keys a slot holds.
	slots   []map[int32][kv.BlockTokens]uint32
	windows []int
}

type rankSequence struct {
	tokens []int32
	start  Start
}

func newRank(t *testing.T, blocks, windows []int) *rank {
	ledger, err := kv.NewLedger(blocks, windows)
	if err != nil {
		t.Fatal(err)
	}
	r := &rank{t: t, ledger: ledger, seqs: map[kv.SequenceID]*rankSequence{}, windows: windows}
	for range blocks {
		r.slots = append(r.slots, map[int32][kv.BlockTokens]uint32{})
	}
	return r
}

func prefixHash(tokens []int32) uint32 {
	h := uint32(17)
	for _, t := range tokens {
		h = (h ^ uint32(t)) * 0x9e3779b1
	}
	return h
}

func (r *rank) obey(encoded []byte) []byte {
	r.t.Helper()
	step, err := DecodeStep(encoded)
	if err != nil {
		r.t.Fatal(err)
	}
	check := func(err error) {
		r.t.Helper()
		if err != nil {
			r.t.Fatalf("step %d: %v", step.ID, err)
		}
	}
	for _, k := range step.Keep {
		check(r.ledger.Keep(k.Seq, k.Block, k.Hash))
	}
	for _, id := range step.Drop {
		check(r.ledger.Drop(id))
		delete(r.seqs, id)
	}
	for _, row := range step.Rows {
		r.ledger.Slide(row.Seq, row.Start)
	}
	for _, e := range step.Evict {
		check(r.ledger.Evict(e.Group, e.Hash))
	}
	for _, n := range step.New {
		check(r.ledger.Open(n.Seq, n.Hit))
		r.seqs[n.Seq] = &rankSequence{tokens: slices.Clone(n.Tokens), start: n}
	}
	result := &Result{Version: Version, Epoch: step.Epoch, ID: step.ID}
	for _, row := range step.Rows {
		check(r.ledger.Grow(row.Seq, row.Start, row.Start+row.Count))
		r.compute(row)
	}
	for _, row := range step.Rows {
		result.Samples = append(result.Samples, r.sample(row)...)
	}
	result.Digest = r.ledger.Digest()
	out, err := Encode(result)
	check(err)
	return out
}

// compute writes the row's slots and checks every slot that it sees.
func (r *rank) compute(row Row) {
	q := r.seqs[row.Seq]
	for p := row.Start; p < row.Start+row.Count; p++ {
		if p >= len(q.tokens) {
			r.t.Fatalf("sequence %d: position %d of %d tokens", row.Seq, p, len(q.tokens))
		}
		for g, w := range r.windows {
			blocks := r.ledger.Blocks(row.Seq)[g]
			b := blocks[p/kv.BlockTokens]
			slots := r.slots[g][b]
			slots[p%kv.BlockTokens] = prefixHash(q.tokens[:p+1])
			r.slots[g][b] = slots
			first := 0
			if w > 0 {
				first = max(0, p-w+1)
			}
			for seen := first; seen <= p; seen++ {
				b := blocks[seen/kv.BlockTokens]
				if b == kv.None || r.slots[g][b][seen%kv.BlockTokens] != prefixHash(q.tokens[:seen+1]) {
					r.t.Fatalf("sequence %d group %d: position %d does not see position %d (block %d)", row.Seq, g, p, seen, b)
				}
			}
		}
	}
}

func (r *rank) sample(row Row) []Sample {
	q := r.seqs[row.Seq]
	end := row.Start + row.Count
	var out []Sample
	if row.Want == WantAll {
		for p := row.Start + 1; p <= end && p < q.start.Prompt; p++ {
			out = append(out, Sample{Seq: row.Seq, Position: p, Token: q.tokens[p]})
		}
	}
	if row.Want == WantLast || row.Want == WantAll && end >= len(q.tokens) {
		t := nextToken(q.tokens[:end])
		q.tokens = append(q.tokens[:end], t)
		out = append(out, Sample{Seq: row.Seq, Position: -1, Token: t})
	}
	return out
}

// expected is what a sequence must give: the same alone and among any others.
func expected(prompt []int32, p sample.Params, maxLen int) []int32 {
	tokens := slices.Clone(prompt)
	for {
		t := nextToken(tokens)
		tokens = append(tokens, t)
		n := len(tokens) - len(prompt)
		if p.Ends(t, n) || n >= p.MaxTokens || len(tokens) >= maxLen {
			return tokens[len(prompt):]
		}
	}
}

// Whatever the pools' sizes, windows, batch limits and steps in flight: ranks
// that obey the steps hold what the driver thinks, every row sees exactly the
// slots of its own prefix, every sequence gets the tokens that it gets alone, and
// at the end nothing but the index holds a block.
func TestEverySequenceGetsItsOwnTokens(t *testing.T) {
	for seed := range uint64(200) {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) { simulate(t, rand.New(rand.NewPCG(seed, 1))) })
	}
}

func simulate(t *testing.T, rng *rand.Rand) {
	limits := Limits{
		MaxSequences: 1 + rng.IntN(6), MaxLen: 40 + rng.IntN(100), Epoch: 3,
		PrefixCaching: rng.IntN(4) > 0, Seed: kv.Seed([32]byte{1}),
	}
	limits.MaxRows = limits.MaxSequences + rng.IntN(40)
	limits.MaxWanted = limits.MaxSequences + rng.IntN(8)
	for range 1 + rng.IntN(2) {
		limits.Windows = append(limits.Windows, []int{0, 0, 5, 16, 33}[rng.IntN(5)])
		limits.Blocks = append(limits.Blocks, limits.MaxLen/kv.BlockTokens+2+rng.IntN(12))
	}
	s, err := New(limits)
	if err != nil {
		t.Fatal(err)
	}
	r := newRank(t, limits.Blocks, limits.Windows)
	shared := randomTokens(rng, 64)
	var all []*Sequence
	want := map[kv.SequenceID][]int32{}
	cancelled := map[kv.SequenceID]bool{}
	add := func() {
		prompt := slices.Concat(shared[:rng.IntN(len(shared)/2)], randomTokens(rng, 1+rng.IntN(20)))
		if len(prompt) >= limits.MaxLen {
			prompt = prompt[:limits.MaxLen-1]
		}
		p := sample.Default()
		p.MaxTokens = 1 + rng.IntN(40)
		p.EndTokens = []int32{7}
		if rng.IntN(5) == 0 {
			p.PromptLogprobs = 0
		}
		q := &Sequence{ID: kv.SequenceID(len(all) + 1), Tokens: slices.Clone(prompt), Prompt: len(prompt),
			Params: p, Priority: rng.IntN(2), Arrival: uint64(len(all))}
		if err := s.Add(q); err != nil {
			t.Fatal(err)
		}
		all = append(all, q)
		want[q.ID] = expected(prompt, p, limits.MaxLen)
	}
	depth := 1 + rng.IntN(3)
	var answers [][]byte
	for turn := 0; ; turn++ {
		if turn > 20000 {
			t.Fatal("sequences do not come to an end")
		}
		if len(all) < 25 && rng.IntN(3) == 0 {
			add()
		}
		if len(all) > 0 && rng.IntN(40) == 0 {
			q := all[rng.IntN(len(all))]
			if !q.finished {
				cancelled[q.ID] = true
				s.Finish(q)
			}
		}
		progress := false
		if s.InFlight() < depth {
			step, err := s.Next()
			if err != nil {
				t.Fatal(err)
			}
			if step != nil {
				encoded, err := Encode(step)
				if err != nil {
					t.Fatal(err)
				}
				answers = append(answers, r.obey(encoded))
				progress = true
			}
		}
		if len(answers) > 0 && (!progress || rng.IntN(2) == 0 || s.InFlight() == depth) {
			result, err := DecodeResult(answers[0])
			if err != nil {
				t.Fatal(err)
			}
			answers = answers[1:]
			if _, err := s.Apply(result); err != nil {
				t.Fatal(err)
			}
			progress = true
		}
		for _, q := range all {
			if q.Computed+q.Pending > len(q.Tokens)+1 && q.opened {
				t.Fatalf("sequence %d: computed %d + pending %d > %d tokens + 1", q.ID, q.Computed, q.Pending, len(q.Tokens))
			}
		}
		if !progress && len(all) == 25 {
			break
		}
	}
	for _, q := range all {
		if got := q.Tokens[q.Prompt:]; !cancelled[q.ID] && !slices.Equal(got, want[q.ID]) {
			t.Errorf("sequence %d: got %v, want %v", q.ID, got, want[q.ID])
		}
	}
	for g := range limits.Blocks {
		p := s.Ledger().Pool(g)
		if p.Free()+p.Idle() != p.Size() || s.Ledger().Sequences() != 0 {
			t.Errorf("group %d: %d free + %d cached of %d blocks, %d sequences open", g, p.Free(), p.Idle(), p.Size(), s.Ledger().Sequences())
		}
	}
}

func randomTokens(rng *rand.Rand, n int) []int32 {
	out := make([]int32, n)
	for i := range out {
		out[i] = int32(rng.IntN(50))
	}
	return out
}
