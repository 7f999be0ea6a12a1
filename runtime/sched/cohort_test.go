package sched_test

import (
	"fmt"
	"testing"

	"manta/runtime/kv"
	"manta/runtime/sample"
	"manta/runtime/sched"
	"manta/runtime/sched/schedtest"
)

// With S stages and at least as many sequences, no step needs a token that is
// sampled by one of the S-1 steps before it, which are still in later stages.
func TestCohortsKeepStagesBusy(t *testing.T) {
	for stages := 1; stages <= 4; stages++ {
		t.Run(fmt.Sprint(stages, " stages"), func(t *testing.T) {
			s, err := sched.New(sched.Limits{
				Blocks: []int{100}, Windows: []int{0}, MaxSequences: 2 * stages, MaxRows: 64, MaxWanted: 16, MaxLen: 64, Stages: stages,
			})
			if err != nil {
				t.Fatal(err)
			}
			for i := range 2 * stages {
				p := sample.Default()
				p.MaxTokens = 20
				q := &sched.Sequence{ID: kv.SequenceID(i + 1), Tokens: []int32{int32(i), 1, 2}, Prompt: promptLen, Params: p, Arrival: uint64(i)}
				if err := s.Add(q); err != nil {
					t.Fatal(err)
				}
			}
			rank, err := schedtest.NewRank([]int{100}, []int{0})
			if err != nil {
				t.Fatal(err)
			}
			pipeline(t, s, rank, stages)
		})
	}
}

const promptLen = 3

// pipeline keeps stages+1 steps in flight to the end and checks each row's From.
func pipeline(t *testing.T, s *sched.Scheduler, rank *schedtest.Rank, stages int) {
	t.Helper()
	var answers [][]byte
	decodes := 0
	for {
		step, err := s.Next()
		if err != nil {
			t.Fatal(err)
		}
		if step == nil && len(answers) == 0 {
			break
		}
		if step != nil {
			for _, row := range step.Rows {
				if row.From != 0 && row.Start > promptLen { // prompts end together, in one step
					decodes++
					if step.ID-row.From < sched.StepID(stages) {
						t.Errorf("step %d runs a token that step %d samples, %d stages", step.ID, row.From, stages)
					}
				}
			}
			payload, err := sched.Encode(step)
			if err != nil {
				t.Fatal(err)
			}
			wait, err := rank.Begin(payload)
			if err != nil {
				t.Fatal(err)
			}
			answer, err := wait()
			if err != nil {
				t.Fatal(err)
			}
			answers = append(answers, answer)
		}
		if len(answers) > stages || step == nil {
			result, err := sched.DecodeResult(answers[0])
			if err != nil {
				t.Fatal(err)
			}
			answers = answers[1:]
			if _, err := s.Apply(result); err != nil {
				t.Fatal(err)
			}
		}
	}
	if decodes == 0 {
		t.Error("no row took its token from a step in flight")
	}
}

// With several stages a prompt that is alone is cut so that all of them work on it.
// Where a row takes each stage 1/S of its time, S stages need little more than 1/S of
// what one would; a step of few rows is not worth cutting.
func TestStagesShareALonePrompt(t *testing.T) {
	for stages, bound := range map[int]float64{1: 1, 2: 0.64, 3: 0.46, 4: 0.36} {
		s, err := sched.New(sched.Limits{
			Blocks: []int{600}, Windows: []int{0}, MaxSequences: 8, MaxRows: 8192, MaxWanted: 16, MaxLen: 8300, Stages: stages,
		})
		if err != nil {
			t.Fatal(err)
		}
		p := sample.Default()
		p.MaxTokens = 1
		if err := s.Add(&sched.Sequence{ID: 1, Tokens: make([]int32, 8192), Prompt: 8192, Params: p}); err != nil {
			t.Fatal(err)
		}
		idle, rows := make([]int, stages), 0 // idle: when each stage is, in rows
		for rows < 8192 {
			step, err := s.Next()
			if err != nil || step == nil {
				t.Fatalf("no step after %d rows: %v", rows, err)
			}
			n := step.RowCount()
			if rows += n; n < 512 && rows < 8192 {
				t.Errorf("%d stages: a step of %d rows", stages, n)
			}
			at := 0
			for i := range idle {
				at = max(at, idle[i]) + n
				idle[i] = at
			}
		}
		if took := float64(idle[stages-1]) / float64(stages) / 8192; took > bound {
			t.Errorf("%d stages: %.2f of the time of one, want at most %.2f", stages, took, bound)
		}
	}
}
