package measure

import (
	"math"
	"testing"

	"manta/kernels"
	"manta/kernels/cpu"
	"manta/runtime/model/modeltest"
)

// Σ p·log(p/q) in nats, Kullback & Leibler 1951, eq. 2.4; shifting logits changes
// nothing.
func TestDivergence(t *testing.T) {
	logits := func(p ...float64) (list []float32) {
		for _, v := range p {
			list = append(list, float32(math.Log(v))+3)
		}
		return list
	}
	p, q := logits(0.5, 0.25, 0.25), logits(0.25, 0.5, 0.25)
	want := 0.5*math.Log(2) - 0.25*math.Log(2)
	if got := compare(p, q); math.Abs(got.kld-want) > 1e-6 || got.same {
		t.Errorf("compare gives %+v, want %.6f and another top", got, want)
	}
	if got := compare(p, p); math.Abs(got.kld) > 1e-12 || !got.same {
		t.Errorf("a distribution from itself: %+v", got)
	}
	d := positions{{0.25, true}, {0.75, false}}.divergence()
	if d.Positions != 2 || d.Mean != 0.5 || d.SameTop != 0.5 || d.Max != 0.75 || d.P999 != 0.75 {
		t.Errorf("divergence gives %+v", d)
	}
}

// An engine answers as often as it is asked, and ends.
func TestEngineSpeed(t *testing.T) {
	folders, err := modeltest.Folders("../model/testdata")
	if err != nil {
		t.Fatal(err)
	}
	device := Device{Cache: kernels.F32, Open: func() (kernels.Ops, error) { return cpu.New(cpu.Options{}) }}
	speeds, err := EngineSpeed(t.Context(), folders[0], device, Work{Prompt: 20, Output: 5, Rounds: 2})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range speeds {
		if s.DecodePerSecond <= 0 || s.PromptPerSecond <= 0 {
			t.Errorf("speed of %+v", s)
		}
	}
	if len(speeds) != 2 {
		t.Errorf("%d rounds, want 2", len(speeds))
	}
}
