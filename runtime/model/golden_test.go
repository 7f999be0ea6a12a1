package model

import (
	"fmt"
	"math"
	"path/filepath"
	"testing"

	"manta/kernels"
	"manta/kernels/ref"
	"manta/runtime/model/modeltest"
)

// Every reference holds: the logits after each prompt within the bound and the
// greedy tokens where the margin allows, whole and in chunks of 1, 7 and 64.
func TestGoldenModels(t *testing.T) {
	for _, folder := range goldenModels(t) {
		t.Run(filepath.Base(folder), func(t *testing.T) {
			g := readGolden(t, folder)
			r := newRunner(t, folder, kernels.F32, testContext)
			for i, p := range g.Prompts {
				for _, chunk := range []int{256, 1, 7, 64} {
					s := r.sequence(p.IDs)
					last := r.prompt(s, chunk)
					compare(t, fmt.Sprintf("prompt %d in chunks of %d", i, chunk), last, p.LogitsLast)
					if chunk == 256 || chunk == 7 {
						checkGreedy(t, r, s, last, p.Greedy, p.Margin)
					}
					if t.Failed() {
						return
					}
					r.next = make([]int32, len(r.groups)) // the blocks are free again
				}
			}
		})
	}
}

// All prompts of a reference run at once, each in its own phase: some rows are
// prompts in chunks, some single tokens.
func TestGoldenModelsInMixedBatches(t *testing.T) {
	for _, folder := range goldenModels(t) {
		t.Run(filepath.Base(folder), func(t *testing.T) {
			g := readGolden(t, folder)
			r := newRunner(t, folder, kernels.F32, testContext)
			var list []*sequence
			for _, p := range g.Prompts {
				list = append(list, r.sequence(p.IDs))
			}
			for round := 0; ; round++ {
				var parts []part
				var who []int
				for i, s := range list {
					if left := len(s.tokens) - s.computed; left > 0 && round >= i {
						parts = append(parts, part{s, min(left, 5+3*i)})
						who = append(who, i)
					}
				}
				if len(parts) == 0 {
					break
				}
				for k, rows := range r.step(parts...) {
					s, p := list[who[k]], g.Prompts[who[k]]
					if s.computed < len(s.tokens) {
						continue
					}
					made := len(s.tokens) - len(p.IDs)
					if made == 0 {
						compare(t, fmt.Sprintf("prompt %d", who[k]), rows[len(rows)-1], p.LogitsLast)
					}
					if made == len(p.Greedy) {
						continue
					}
					token := ref.Argmax(rows[len(rows)-1])
					if token != p.Greedy[made] && p.Margin > modeltest.Margin {
						t.Fatalf("prompt %d: token %d is %d, want %d", who[k], made, token, p.Greedy[made])
					}
					s.tokens = append(s.tokens, p.Greedy[made])
				}
			}
			for i, s := range list {
				if want := len(g.Prompts[i].IDs) + len(g.Prompts[i].Greedy); len(s.tokens) != want {
					t.Errorf("prompt %d came to %d tokens, want %d", i, len(s.tokens), want)
				}
			}
		})
	}
}

func compare(t *testing.T, what string, got, want []float32) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d logits, want %d", what, len(got), len(want))
	}
	worst := 0.0
	for i := range want {
		worst = max(worst, math.Abs(float64(got[i]-want[i])))
	}
	if !(worst <= modeltest.LogitTolerance) {
		t.Errorf("%s: logits are off by %g", what, worst)
	}
}

func checkGreedy(t *testing.T, r *runner, s *sequence, last []float32, want []int32, margin float64) {
	t.Helper()
	for i, token := range want {
		if got := ref.Argmax(last); got != token && margin > modeltest.Margin {
			t.Errorf("greedy token %d is %d, want %d", i, got, token)
			return
		}
		s.tokens = append(s.tokens, token)
		last = r.prompt(s, 1)
	}
}
