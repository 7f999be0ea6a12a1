package place

import (
	"math"
	"slices"

	"manta/head/state"
	"manta/parallel/shard"
	"manta/runtime/plan"
)

// stageSpeeds gives the speed of each stage's slowest rank; nil if there is one stage,
// or a speed is not known.
func stageSpeeds(ranks []plan.Speed, layout shard.Layout) []plan.Speed {
	if layout.Pipeline < 2 {
		return nil
	}
	return slowest(ranks, layout)
}

func slowest(ranks []plan.Speed, layout shard.Layout) (stages []plan.Speed) {
	if slices.ContainsFunc(ranks, func(s plan.Speed) bool { return !s.Known() }) {
		return nil
	}
	for i, speed := range ranks {
		if i%layout.Tensor == 0 {
			stages = append(stages, speed)
		}
		stage := &stages[len(stages)-1]
		*stage = stage.Least(speed)
	}
	return stages
}

// shares weighs tensor ranks by their speed, in a stage where they differ most; nil:
// they are as good as alike, or a speed is not known.
func shares(ranks []plan.Speed, layout shard.Layout) []int {
	const whole = 64 // of the fastest
	if layout.Tensor < 2 || slices.ContainsFunc(ranks, func(s plan.Speed) bool { return !s.Known() }) {
		return nil
	}
	unlike := false
	parts := slices.Repeat([]int{whole}, layout.Tensor)
	for stage := range slices.Chunk(ranks, layout.Tensor) {
		var best plan.Speed
		for _, s := range stage {
			best = plan.Speed{Bandwidth: max(best.Bandwidth, s.Bandwidth), Operations: max(best.Operations, s.Operations)}
		}
		for t, s := range stage {
			unlike = unlike || !s.Near(best)
			speed := min(s.Bandwidth/best.Bandwidth, s.Operations/best.Operations)
			parts[t] = min(parts[t], max(1, int(math.Round(whole*speed))))
		}
	}
	if !unlike {
		return nil
	}
	return parts
}

// evened gives what ranks would do in a second if each had as large a part of a layer
// as the others and took as long for it as it takes for its own.
func evened(s plan.Shapes, layout shard.Layout, ranks []plan.Speed) []plan.Speed {
	if layout.TensorShares == nil {
		return ranks
	}
	out := slices.Clone(ranks)
	for i := range out {
		slice, err := shard.Cut(layout, s.Shape(), i/layout.Tensor, i%layout.Tensor)
		if err != nil {
			return ranks
		}
		attention, ffn := float64(s.AttentionBytes), float64(s.FFNBytes)
		part := (attention*float64(slice.Heads.Len())/float64(s.Heads) + ffn*float64(slice.FFN.Len())/float64(s.FFN)) / (attention + ffn)
		out[i] = out[i].Times(1 / (part * float64(layout.Tensor)))
	}
	return out
}

// weighed cuts heads and columns over unlike tensor ranks by their speed, if the slowest
// stage then gives at least a tenth more than with even parts.
func (s *search) weighed(even fitted, b plan.Budget, ranks []plan.Speed) fitted {
	const better = 1.1
	other := fitted{layout: s.d.Layout}
	if other.layout.TensorShares = shares(ranks, s.d.Layout); other.layout.TensorShares == nil || even.err != nil {
		return even
	}
	worth := func(f fitted) float64 {
		of := b
		of.Speeds = slowest(evened(s.d.Shapes, f.layout, ranks), f.layout)
		seconds := plan.StageSeconds(s.d.Shapes, f.layout, of)
		if seconds == nil {
			return 0
		}
		return min(float64(b.MaxSequences), f.fit.Concurrency) / slices.Max(seconds)
	}
	of := b
	of.Speeds = stageSpeeds(evened(s.d.Shapes, other.layout, ranks), other.layout)
	other.layout, other.fit, other.err = plan.Stages(s.d.Shapes, other.layout, of)
	if other.err != nil || other.fit.MaxLen < even.fit.MaxLen || worth(other) < better*worth(even) {
		return even
	}
	return other
}

// StageSeconds is how long a full step takes on each stage of a replica that is placed,
// by the cost model that its layers were cut by; nil where a speed is not known.
func StageSeconds(view *state.View, d state.Deployment, r state.Replica) []float64 {
	kind, memory := "", int64(math.MaxInt64)
	var speeds []plan.Speed
	for _, at := range r.Shards {
		sharing := 0.0
		for _, other := range r.Shards {
			if other.Node == at.Node && other.Device == at.Device {
				sharing++
			}
		}
		i := slices.IndexFunc(view.Nodes[at.Node].Devices, func(device state.Device) bool { return device.ID == at.Device })
		if i < 0 {
			return nil
		}
		device := view.Nodes[at.Node].Devices[i]
		kind, memory = device.Kind, min(memory, device.Memory)
		speeds = append(speeds, device.Speed.Times(1/sharing))
	}
	b := plan.Budget{MaxSequences: d.Settings.MaxNumSeqs, MaxRows: d.Settings.MaxNumBatchedTokens}.Defaults(kind, memory)
	b.Speeds = stageSpeeds(evened(d.Shapes, r.Layout, speeds), r.Layout)
	return plan.StageSeconds(d.Shapes, r.Layout, b)
}
