package place

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"manta/node/wire"
)

// linkedGPUs makes GPUs whose links are as speed says.
func linkedGPUs(node string, memory []int64, speed func(a, b int) int64) wire.Report {
	r := gpus(node, len(memory), 0)
	for a := range r.Devices {
		r.Devices[a].Memory = memory[a]
		for b := range r.Devices {
			if s := speed(a, b); a != b && s > 0 {
				r.Devices[a].Links = append(r.Devices[a].Links, wire.DeviceLink{To: r.Devices[b].ID, Speed: s})
			}
		}
	}
	return r
}

func equal(n int, bytes int64) []int64 { return slices.Repeat([]int64{bytes}, n) }

// Tensor ranks stand where their links are fastest, whatever memory says, as long as
// they fit there.
func TestTensorRanksStandOnLinkedDevices(t *testing.T) {
	const large = 500 << 20
	pairs := func(a, b int) int64 { // 0-1, 2-3, … by NVLink, the rest over PCIe
		if a/2 == b/2 {
			return 100e9
		}
		return 16e9
	}
	halves := func(a, b int) int64 { // 0, 2, 4, 6 and 1, 3, 5, 7 reach each other at all
		if a%2 == b%2 {
			return 450e9
		}
		return 0
	}
	tests := []struct {
		name   string
		tensor int
		stages int
		memory []int64
		speed  func(a, b int) int64
		want   [][]int // devices of each stage
	}{
		{"a pair by NVLink, though others have more memory", 2, 1, []int64{2 * large, large, large, 2 * large}, pairs, [][]int{{0, 1}}},
		{"both pairs, one a stage", 2, 2, []int64{large, 2 * large, large, 2 * large}, pairs, [][]int{{0, 1}, {2, 3}}},
		{"four that reach each other", 4, 1, equal(8, large), halves, [][]int{{0, 2, 4, 6}}},
		{"twice four", 4, 2, equal(8, large), halves, [][]int{{0, 2, 4, 6}, {1, 3, 5, 7}}},
		{"memory where the linked pair has none", 2, 1, []int64{large, 1 << 20, large, 1 << 20}, pairs, [][]int{{0, 2}}},
		{"memory where nothing is known", 2, 1, []int64{large, large, 2 * large, 2 * large}, func(int, int) int64 { return 0 }, [][]int{{2, 3}}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t, staged(test.tensor, test.stages))
			w.reports["a"] = linkedGPUs("a", test.memory, test.speed)
			out := w.settle()
			if len(out.Waiting) > 0 {
				t.Fatalf("waiting %+v", out.Waiting)
			}
			got := make([][]string, test.stages)
			for _, s := range w.view.Replicas["m/0"].Shards {
				got[s.Stage] = append(got[s.Stage], s.Device)
			}
			for stage, devices := range test.want {
				var want []string
				for _, d := range devices {
					want = append(want, fmt.Sprintf("GPU-a-%d", d))
				}
				slices.Sort(got[stage])
				if !slices.Equal(got[stage], want) {
					t.Errorf("stage %d on %v, want %v", stage, got[stage], want)
				}
			}
		})
	}
}

// Of all groups none is better linked than the one taken, and it has each device once.
func TestNoGroupIsBetterLinked(t *testing.T) {
	random := rand.New(rand.NewPCG(10, 10))
	speeds := []int64{0, 16e9, 32e9, 100e9, 450e9}
	for round := range 300 {
		n := 2 + random.IntN(7)
		size := 2 + random.IntN(n-1)
		of := make([][]int64, n)
		for a := range of {
			of[a] = make([]int64, n)
			for b := range a {
				of[a][b] = speeds[random.IntN(len(speeds))]
				of[b][a] = of[a][b]
			}
		}
		m := &machine{}
		for _, d := range linkedGPUs("a", equal(n, 1), func(a, b int) int64 { return of[a][b] }).Devices {
			m.best = append(m.best, &slot{machine: m, device: d})
		}
		got := wellLinked(m.best, size, 1)
		seen := map[*slot]bool{}
		for _, s := range got {
			seen[s] = true
		}
		if len(got) != size || len(seen) != size {
			t.Fatalf("round %d: %d devices, %d of them unlike, want %d", round, len(got), len(seen), size)
		}
		found := linkageOf(got)
		for set := range 1 << n {
			var group []*slot
			for i, s := range m.best {
				if set>>i&1 == 1 {
					group = append(group, s)
				}
			}
			if len(group) == size && linkageOf(group).better(found) {
				t.Fatalf("round %d: %v is better linked than %v", round, linkageOf(group), found)
			}
		}
	}
}

func linkageOf(group []*slot) linkage {
	l := alone
	for i, s := range group {
		l = l.with(group[:i], s)
	}
	return l
}
