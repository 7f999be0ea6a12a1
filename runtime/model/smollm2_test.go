package model

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"testing"

	"manta/kernels"
	"manta/kernels/ref"
	"manta/runtime/model/modeltest"
)

// The real SmolLM2 of a GGUF: its top-20 logits after a prompt lie within 2e-3 of
// transformers', and the first greedy tokens are equal where the gap exceeds 1e-3.
// ref is slow, so this takes three prompts, or with SMOLLM2_ALL every one.
// SMOLLM2 names the GGUF, GOLDEN_DIR the folder with smollm2/golden.json.
func TestSmolLM2(t *testing.T) {
	path, root := os.Getenv("SMOLLM2"), os.Getenv("GOLDEN_DIR")
	if path == "" || root == "" {
		t.Skip("SMOLLM2 and GOLDEN_DIR name no model and reference; the engine's tests fetch them")
	}
	data, err := os.ReadFile(filepath.Join(root, "smollm2", "golden.json"))
	if err != nil {
		t.Fatal(err)
	}
	var g struct {
		Prompts []struct {
			IDs, Greedy []int32
			Gaps        []float64
			Top20       [][3]float64
		}
	}
	if err := json.Unmarshal(data, &g); err != nil || len(g.Prompts) == 0 {
		t.Fatalf("%d prompts: %v", len(g.Prompts), err)
	}
	r := newRunner(t, path, kernels.F32, 512)
	for i, p := range g.Prompts {
		if i >= 3 && os.Getenv("SMOLLM2_ALL") == "" {
			break
		}
		s := r.sequence(p.IDs)
		last := r.prompt(s, 256)
		worst := 0.0
		for _, top := range p.Top20 {
			worst = max(worst, math.Abs(float64(last[int(top[0])])-top[1]))
		}
		if worst > 2e-3 {
			t.Errorf("prompt %d: top logits are off by %g", i, worst)
		}
		for k := range min(4, len(p.Greedy)) {
			if got := ref.Argmax(last); got != p.Greedy[k] && p.Gaps[k] > modeltest.Margin {
				t.Errorf("prompt %d: greedy token %d is %d, want %d", i, k, got, p.Greedy[k])
				break
			}
			s.tokens = append(s.tokens, p.Greedy[k])
			last = r.prompt(s, 1)
		}
		t.Logf("prompt %d of %d tokens: off by %.2g", i, len(p.IDs), worst)
	}
}
