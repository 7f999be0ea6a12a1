package plan

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"manta/parallel/shard"
	"manta/runtime/kv"
)

// A Need is what one rank holds, in bytes.
type Need struct {
	Slice   shard.Slice
	Weights int64
	Scratch int64
	KV      int64 // of the blocks asked about
}

// Needs gives what every rank of a layout holds with so many blocks of each group;
// none: the blocks are left out.
func Needs(s Shapes, layout shard.Layout, b Budget, blocks []int) ([]Need, error) {
	ranks, err := s.ranks(layout, b)
	if err != nil {
		return nil, err
	}
	var needs []Need
	for i, r := range ranks {
		slice, err := shard.Cut(layout, s.Shape(), i/layout.Tensor, i%layout.Tensor)
		if err != nil {
			return nil, err
		}
		need := Need{Slice: slice, Weights: r.weights, Scratch: r.scratch}
		if len(blocks) > 0 {
			need.KV = r.blocks(blocks)
		}
		needs = append(needs, need)
	}
	return needs, nil
}

// Concurrent is how many sequences of so many tokens fit at once.
func (f Fit) Concurrent(s Shapes, b Budget, tokens int) float64 {
	most := float64(b.MaxSequences)
	for g, window := range s.Groups() {
		if need := kv.MostBlocks(tokens, window, b.MaxRows); need > 0 {
			most = min(most, float64(f.Blocks[g])/float64(need))
		}
	}
	return most
}

// Traffic is what a token costs on the links between ranks, in bytes.
type Traffic struct {
	// Stage is what goes from one stage to the next, of all tensor ranks together.
	Stage int64
	// Tensor is what each tensor rank of a stage sends to its fellows, by stage: two
	// sums a layer, each a whole row to each of them.
	Tensor []int64
	// Logits is what each tensor rank of the last stage but rank 0 sends that, for a
	// token that is drawn.
	Logits int64
}

// activationBytes is the size of one element of the rows between ranks: parts of
// sums are float32 on every kind of device.
const activationBytes = 4

// TrafficOf gives a layout's traffic, as payload. Between GPUs the words of small
// sums are twice as long, and large sums (kernels/cuda's two shots) move 2/ranks of it.
func TrafficOf(s Shapes, layout shard.Layout) (Traffic, error) {
	row := int64(s.Hidden) * activationBytes
	fellows := int64(layout.Tensor - 1)
	var t Traffic
	if layout.Pipeline > 1 {
		t.Stage = row * int64(layout.Tensor)
	}
	for stage := range layout.Pipeline {
		slice, err := shard.Cut(layout, s.Shape(), stage, 0)
		if err != nil {
			return Traffic{}, err
		}
		t.Tensor = append(t.Tensor, 2*int64(slice.Layers.Len())*fellows*row)
		t.Logits = min(fellows, 1) * int64(slice.Vocab.Len()) * activationBytes
	}
	return t, nil
}

// ParseBytes reads a size as people write it: 80GiB, 80GB, 512MiB, or bytes.
func ParseBytes(text string) (int64, error) {
	number := strings.TrimRight(text, "KMGTPiBkb")
	unit := strings.ToUpper(strings.TrimSpace(text[len(number):]))
	base := 1000.0
	if strings.HasSuffix(unit, "IB") || len(unit) == 1 && unit != "B" {
		base = 1024 // "80G" is what GPUs' makers mean by 80 GB
	}
	unit = strings.TrimSuffix(strings.TrimSuffix(unit, "B"), "I")
	power := strings.Index("KMGTP", unit) + 1
	if unit == "" {
		power = 0
	}
	n, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if err != nil || len(unit) > 1 || power < 0 || unit != "" && power == 0 || !(n > 0) || n*math.Pow(base, float64(power)) >= 1<<62 {
		return 0, fmt.Errorf("plan: %q is no size: give a number with a unit, such as 80GiB", text)
	}
	return int64(n * math.Pow(base, float64(power))), nil
}
