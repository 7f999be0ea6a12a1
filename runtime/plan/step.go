package plan

import "manta/parallel/shard"

// H200 is what this program's kernels reach on an NVIDIA H200: kernels/cuda/RESULTS.md.
var H200 = Speed{Bandwidth: 4.1e12, Operations: 550e12}

// What a step on GPUs costs beside its bytes and operations, fitted to RESULTS.md: a
// chain of kernels for each layer, norms among them, which one row does not need;
// attention that reads keys and values at a part of the bandwidth; and a sum over
// ranks.
const (
	oneRowLayer, layerSeconds = 8e-6, 34e-6
	cacheBandwidth            = 0.9
	sumSeconds                = 3e-6
	linkBandwidth             = 330e9 // of NVLink, each way
)

// StepSeconds is how long a step takes on each stage of a layout on GPUs, where so many
// sequences have a row each and so many tokens before it; nil where a speed is unknown.
func StepSeconds(s Shapes, layout shard.Layout, b Budget, rows, context int) []float64 {
	b.MaxSequences = rows
	if len(b.Speeds) != layout.Pipeline || alike(b.Speeds) == nil {
		return nil
	}
	t := s.times(layout, b)
	fixed := layerSeconds
	if rows == 1 {
		fixed = oneRowLayer
	}
	others := float64(layout.Tensor-1) / float64(layout.Tensor)
	sum := sumSeconds + 2*others*float64(rows*s.Hidden*activationBytes)/linkBandwidth
	var seconds []float64
	for stage := range layout.Pipeline {
		slice, err := shard.Cut(layout, s.Shape(), stage, 0)
		if err != nil {
			return nil
		}
		total := t.on(stage, slice.Layers.Len())
		row := 2 * float64(slice.KVHeads.Len()) * float64(b.KVType.Bytes(s.HeadDim))
		for l := slice.Layers.Lo; l < slice.Layers.Hi; l++ {
			seen := context
			if w := s.Windows[l]; w > 0 {
				seen = min(seen, w)
			}
			total += fixed + float64(rows)*float64(seen)*row/(cacheBandwidth*b.Speeds[stage].Bandwidth)
			if layout.Tensor > 1 {
				total += 2 * sum
			}
		}
		seconds = append(seconds, total)
	}
	return seconds
}
