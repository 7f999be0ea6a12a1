package sched_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"manta/runtime/kv"
	"manta/runtime/sample"
	"manta/runtime/sched"
	"manta/runtime/sched/schedtest"
)

// Whatever the pools' sizes, windows, batch limits and steps in flight: ranks
// that obey the steps hold what the driver thinks, every row sees exactly the
// slots of its own prefix, every sequence gets the tokens that it gets alone, and
// at the end nothing but the index holds a block.
func TestEverySequenceGetsItsOwnTokens(t *testing.T) {
	var total sched.Stats
	for seed := range uint64(200) {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			stats := newWorkload(t, rand.New(rand.NewPCG(seed, 1))).run()
			total.Preemptions += stats.Preemptions
			total.PrefixHits += stats.PrefixHits
		})
	}
	if total.Preemptions == 0 || total.PrefixHits == 0 {
		t.Errorf("the workloads met %d preemptions and %d prefix hits: both must happen", total.Preemptions, total.PrefixHits)
	}
}

const workloadSequences = 25

// workload is a random set of sequences on random limits.
type workload struct {
	t         *testing.T
	rng       *rand.Rand
	limits    sched.Limits
	scheduler *sched.Scheduler
	rank      *schedtest.Rank
	depth     int
	answers   [][]byte
	shared    []int32 // a prefix that prompts begin with
	all       []*sched.Sequence
	want      map[*sched.Sequence][]int32
	cancelled map[*sched.Sequence]bool
}

func newWorkload(t *testing.T, rng *rand.Rand) *workload {
	limits := sched.Limits{
		MaxSequences: 1 + rng.IntN(6), MaxLen: 40 + rng.IntN(100), Epoch: 3,
		PrefixCaching: rng.IntN(4) > 0, Seed: kv.Seed([32]byte{1}), Stages: rng.IntN(4),
	}
	limits.MaxRows = limits.MaxSequences + rng.IntN(40)
	limits.MaxWanted = limits.MaxSequences + rng.IntN(8)
	for range 1 + rng.IntN(2) {
		limits.Windows = append(limits.Windows, []int{0, 0, 5, 16, 33}[rng.IntN(5)])
		limits.Blocks = append(limits.Blocks, limits.MaxLen/kv.BlockTokens+2+rng.IntN(12))
	}
	s, err := sched.New(limits)
	if err != nil {
		t.Fatal(err)
	}
	r, err := schedtest.NewRank(limits.Blocks, limits.Windows)
	if err != nil {
		t.Fatal(err)
	}
	return &workload{
		t: t, rng: rng, limits: limits, scheduler: s, rank: r, depth: 1 + rng.IntN(max(1, limits.Stages)+1), shared: randomTokens(rng, 64),
		want: make(map[*sched.Sequence][]int32), cancelled: make(map[*sched.Sequence]bool),
	}
}

func (w *workload) run() sched.Stats {
	for turn := 0; ; turn++ {
		if turn > 20000 {
			w.t.Fatal("sequences do not come to an end")
		}
		if len(w.all) < workloadSequences && w.rng.IntN(3) == 0 {
			w.add()
		}
		if len(w.all) > 0 && w.rng.IntN(40) == 0 {
			q := w.all[w.rng.IntN(len(w.all))]
			w.cancelled[q] = true
			w.scheduler.Finish(q)
		}
		moved := w.step()
		if len(w.answers) > 0 && (!moved || w.rng.IntN(2) == 0 || w.scheduler.InFlight() == w.depth) {
			w.apply()
			moved = true
		}
		for _, q := range w.all {
			if q.Computed+q.Pending > len(q.Tokens)+1 && q.Computed > 0 {
				w.t.Fatalf("sequence %d: computed %d + pending %d > %d tokens + 1", q.ID, q.Computed, q.Pending, len(q.Tokens))
			}
		}
		if !moved && len(w.all) == workloadSequences {
			break
		}
	}
	w.check()
	return w.scheduler.Stats()
}

func (w *workload) add() {
	prompt := slices.Concat(w.shared[:w.rng.IntN(len(w.shared)/2)], randomTokens(w.rng, 1+w.rng.IntN(20)))
	prompt = prompt[:min(len(prompt), w.limits.MaxLen-1)]
	p := sample.Default()
	p.MaxTokens = 1 + w.rng.IntN(40)
	p.EndTokens = []int32{7}
	if w.rng.IntN(5) == 0 {
		p.PromptLogprobs = 0
	}
	q := &sched.Sequence{
		ID: kv.SequenceID(len(w.all) + 1), Tokens: slices.Clone(prompt), Prompt: len(prompt),
		Params: p, Priority: w.rng.IntN(2), Arrival: uint64(len(w.all)),
	}
	if err := w.scheduler.Add(q); err != nil {
		w.t.Fatal(err)
	}
	w.all = append(w.all, q)
	w.want[q] = schedtest.Expected(prompt, p, w.limits.MaxLen)
}

func (w *workload) step() bool {
	if w.scheduler.InFlight() >= w.depth {
		return false
	}
	step, err := w.scheduler.Next()
	if err != nil {
		w.t.Fatal(err)
	}
	if step == nil {
		return false
	}
	payload, err := sched.Encode(step)
	if err != nil {
		w.t.Fatal(err)
	}
	wait, err := w.rank.Begin(payload)
	if err != nil {
		w.t.Fatal(err)
	}
	answer, err := wait()
	if err != nil {
		w.t.Fatal(err)
	}
	w.answers = append(w.answers, answer)
	return true
}

func (w *workload) apply() {
	result, err := sched.DecodeResult(w.answers[0])
	if err != nil {
		w.t.Fatal(err)
	}
	w.answers = w.answers[1:]
	if _, err := w.scheduler.Apply(result); err != nil {
		w.t.Fatal(err)
	}
}

func (w *workload) check() {
	for _, q := range w.all {
		if got := q.Tokens[q.Prompt:]; !w.cancelled[q] && !slices.Equal(got, w.want[q]) {
			w.t.Errorf("sequence %d: got %v, want %v", q.ID, got, w.want[q])
		}
	}
	ledger := w.scheduler.Ledger()
	for g := range w.limits.Blocks {
		p := ledger.Pool(g)
		if p.Free()+p.Idle() != p.Size() || ledger.Sequences() != 0 {
			w.t.Errorf("group %d: %d free + %d cached of %d blocks, %d sequences open", g, p.Free(), p.Idle(), p.Size(), ledger.Sequences())
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
