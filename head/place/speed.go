package place

import (
	"slices"

	"manta/head/state"
	"manta/parallel/shard"
	"manta/runtime/plan"
)

// stageSpeeds gives the speed of each stage's slowest rank; nil if there is one stage,
// or a speed is not known.
func stageSpeeds(ranks []plan.Speed, layout shard.Layout) []plan.Speed {
	if layout.Pipeline < 2 || slices.ContainsFunc(ranks, func(s plan.Speed) bool { return !s.Known() }) {
		return nil
	}
	var stages []plan.Speed
	for i, speed := range ranks {
		if i%layout.Tensor == 0 {
			stages = append(stages, speed)
		}
		stage := &stages[len(stages)-1]
		*stage = stage.Least(speed)
	}
	return stages
}

// StageSeconds is how long a full step takes on each stage of a replica that is placed,
// by the cost model that its layers were cut by; nil where a speed is not known.
func StageSeconds(view *state.View, d state.Deployment, r state.Replica) []float64 {
	kind := ""
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
		kind = device.Kind
		speeds = append(speeds, device.Speed.Times(1/sharing))
	}
	b := plan.Budget{MaxSequences: d.Settings.MaxNumSeqs, MaxRows: d.Settings.MaxNumBatchedTokens}.Defaults(kind)
	b.Speeds = stageSpeeds(speeds, r.Layout)
	return plan.StageSeconds(d.Shapes, r.Layout, b)
}
