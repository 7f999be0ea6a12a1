package place

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"manta/head/state"
	"manta/node/wire"
	"manta/runtime/plan"
)

// A spot is a device of a node, as a place for a rank.
type spot struct {
	node   string
	device wire.Device
}

// place finds where a replica runs; on a frozen node rather than nowhere.
func (p *planner) place(d state.Deployment, id string) (state.Replica, []Reason) {
	r, reasons := p.find(d, id)
	if reasons == nil || len(p.Frozen) == 0 {
		return r, reasons
	}
	frozen := p.Frozen
	p.Frozen = nil
	defer func() { p.Frozen = frozen }()
	if r, again := p.find(d, id); again == nil {
		return r, nil
	}
	return r, reasons
}

// find finds where a replica runs: where it ran, but for what was lost; else the
// node with most memory left afterwards; else several nodes.
func (p *planner) find(d state.Deployment, id string) (state.Replica, []Reason) {
	if was, ok := p.lost[id]; ok {
		if r, ok := p.mend(d, was); ok {
			return r, nil
		}
	}
	if d.Strategy == state.Spread && d.Layout.Pipeline > 1 {
		if r, err := p.across(d, id); err == nil {
			return r, nil
		}
	}
	var reasons []Reason
	var best state.Replica
	var bestLeft int64 = -1
	for _, node := range slices.Sorted(maps.Keys(p.Reports)) {
		spots, err := p.on(node, d)
		if err == nil {
			var r state.Replica
			var left int64
			if r, left, err = p.replica(d, id, spots); err == nil && left > bestLeft {
				best, bestLeft = r, left
			}
		}
		if err != nil {
			reasons = append(reasons, Reason{Node: node, Lacks: err.Error()})
		}
	}
	if bestLeft >= 0 {
		return best, nil
	}
	if len(reasons) == 0 {
		return state.Replica{}, []Reason{{Lacks: "no node has joined"}}
	}
	if d.Layout.Ranks() == 1 || len(p.Reports) == 1 || d.Layout.Check(d.Shapes.Shape()) != nil {
		return state.Replica{}, reasons
	}
	r, err := p.across(d, id)
	if err != nil {
		return state.Replica{}, append(reasons, Reason{Lacks: "across nodes: " + err.Error()})
	}
	return r, nil
}

// replica plans a replica on the spots of its ranks, stage by stage. left is the
// least memory that a device has afterwards.
func (p *planner) replica(d state.Deployment, id string, spots []spot) (r state.Replica, left int64, err error) {
	budget, left, err := p.budget(spots, d)
	if err != nil {
		return state.Replica{}, 0, err
	}
	fit, err := plan.Compute(d.Shapes, d.Layout, budget)
	if err != nil {
		return state.Replica{}, 0, err
	}
	r = state.Replica{
		ID: id, Deployment: d.Name, Version: d.Version, Layout: d.Layout,
		Blocks: fit.Blocks, MaxLen: fit.MaxLen, Memory: fit.WeightBytes + fit.ScratchBytes + fit.KVBytes,
	}
	for i, s := range spots {
		r.Shards = append(r.Shards, state.Placement{
			Stage: i / d.Layout.Tensor, Rank: i % d.Layout.Tensor, Node: s.node, Device: s.device.ID,
		})
	}
	return r, left - r.Memory, nil
}

// refuses says why a node takes no shard of a deployment.
func (p *planner) refuses(node string, d state.Deployment) error {
	report := p.Reports[node]
	switch {
	case p.Frozen[node]:
		return fmt.Errorf("its peers can't reach it")
	case report.Draining || p.View.Nodes[node].Drained:
		return fmt.Errorf("it is draining")
	case !d.At(node):
		return fmt.Errorf("%s is on %s only", d.Model, strings.Join(d.Homes, ", "))
	case len(report.Devices) == 0:
		return fmt.Errorf("it has no device")
	}
	return nil
}

// on gives all ranks spots on one node: devices of the best kind, those with most
// memory left first. Ranks share a CPU, never a GPU.
func (p *planner) on(node string, d state.Deployment) ([]spot, error) {
	if err := p.refuses(node, d); err != nil {
		return nil, err
	}
	all := p.spots(node, nil)
	kind := all[0].device.Kind
	same := slices.DeleteFunc(all, func(s spot) bool { return s.device.Kind != kind })
	ranks := d.Layout.Ranks()
	if kind != "cpu" && len(same) < ranks {
		return nil, fmt.Errorf("it has %d devices of kind %s, %d ranks need one each", len(same), kind, ranks)
	}
	spots := make([]spot, ranks)
	for i := range spots {
		spots[i] = same[i%len(same)]
	}
	return spots, nil
}

// spots gives a node's devices: GPUs first, then by memory left for one rank more
// than taken has there.
func (p *planner) spots(node string, taken map[device]int64) []spot {
	var all []spot
	for _, d := range p.Reports[node].Devices {
		all = append(all, spot{node, d})
	}
	slices.SortStableFunc(all, func(a, b spot) int {
		return cmp.Or(
			-cmp.Compare(a.device.Kind, b.device.Kind), // "cuda" before "cpu"
			cmp.Compare(p.share(b, taken), p.share(a, taken)),
			cmp.Compare(a.device.ID, b.device.ID))
	})
	return all
}

// share is the memory for one rank more on a device.
func (p *planner) share(s spot, taken map[device]int64) int64 {
	return p.left(s) / (taken[device{s.node, s.device.ID}] + 1)
}

func (p *planner) left(s spot) int64 {
	return s.device.Memory - p.used[device{s.node, s.device.ID}]
}

// across gives stages to nodes one after the other, each where its fullest device
// has most memory left; tensor ranks are together on a node if any has room.
func (p *planner) across(d state.Deployment, id string) (state.Replica, error) {
	taken := map[device]int64{}
	var spots []spot
	for range d.Layout.Pipeline {
		stage := p.stage(d, d.Layout.Tensor, taken)
		if stage == nil {
			// No node has room for all tensor ranks of a stage: they go apart, at the
			// cost of an all-reduce over the network in every layer.
			for range d.Layout.Tensor {
				stage = append(stage, p.stage(d, 1, taken)...)
			}
		}
		if len(stage) < d.Layout.Tensor {
			return state.Replica{}, fmt.Errorf("%d ranks find no device each", d.Layout.Ranks())
		}
		spots = append(spots, stage...)
	}
	r, _, err := p.replica(d, id, spots)
	return r, err
}

// stage finds spots for so many ranks on one node, and takes them.
func (p *planner) stage(d state.Deployment, ranks int, taken map[device]int64) []spot {
	var best []spot
	var bestShare int64 = -1
	for _, node := range slices.Sorted(maps.Keys(p.Reports)) {
		if p.refuses(node, d) != nil {
			continue
		}
		spots, share := p.together(node, ranks, taken)
		if spots != nil && share > bestShare {
			best, bestShare = spots, share
		}
	}
	for _, s := range best {
		taken[device{s.node, s.device.ID}]++
	}
	return best
}

// together finds spots for so many ranks on a node; share is the least memory that
// one of them has.
func (p *planner) together(node string, ranks int, taken map[device]int64) (spots []spot, share int64) {
	taken = maps.Clone(taken)
	share = 1 << 62
	for range ranks {
		all := slices.DeleteFunc(p.spots(node, taken), func(s spot) bool {
			return s.device.Kind != "cpu" && taken[device{s.node, s.device.ID}] > 0
		})
		if len(all) == 0 || len(spots) > 0 && all[0].device.Kind != spots[0].device.Kind {
			return nil, 0
		}
		share = min(share, p.share(all[0], taken))
		taken[device{node, all[0].device.ID}]++
		spots = append(spots, all[0])
	}
	return spots, share
}

// mend places the lost ranks of a replica and leaves the others, with the blocks
// that they have, so that their nodes keep what is loaded.
func (p *planner) mend(d state.Deployment, was state.Replica) (state.Replica, bool) {
	r := was
	r.Shards = slices.Clone(was.Shards)
	taken := map[device]int64{}
	alive := func(s state.Placement) bool { return !p.gone(s) && p.refuses(s.Node, d) == nil }
	for _, s := range r.Shards {
		if alive(s) {
			taken[device{s.Node, s.Device}]++
		}
	}
	if len(taken) == 0 {
		return state.Replica{}, false
	}
	for i, s := range r.Shards {
		if alive(s) {
			continue
		}
		spots := p.stage(d, 1, taken)
		if len(spots) == 0 {
			return state.Replica{}, false
		}
		r.Shards[i].Node, r.Shards[i].Device = spots[0].node, spots[0].device.ID
	}
	kind := ""
	for _, placed := range r.Shards {
		s := p.spotOf(placed)
		if kind = cmp.Or(kind, s.device.Kind); s.device.Kind != kind || p.left(s) < r.Memory*taken[device{s.node, s.device.ID}] {
			return state.Replica{}, false
		}
	}
	return r, true
}

// spotOf finds the device of a placed shard; the zero device if it is gone.
func (p *planner) spotOf(s state.Placement) spot {
	for _, d := range p.Reports[s.Node].Devices {
		if d.ID == s.Device {
			return spot{s.Node, d}
		}
	}
	return spot{node: s.Node}
}

// budget says what each rank may use of its device, and how much the fullest of
// the devices has left now.
func (p *planner) budget(spots []spot, d state.Deployment) (plan.Budget, int64, error) {
	kind := spots[0].device.Kind
	cache, err := d.Shapes.CacheType(kind, d.Settings.KVCacheDType, d.Settings.DType)
	if err != nil {
		return plan.Budget{}, 0, err
	}
	sharing := map[device]int64{}
	for _, s := range spots {
		if s.device.Kind != kind {
			return plan.Budget{}, 0, fmt.Errorf("devices of the kinds %s and %s can't share a replica", kind, s.device.Kind)
		}
		sharing[device{s.node, s.device.ID}]++
	}
	utilization := cmp.Or(d.Settings.GPUMemoryUtilization, Utilization)
	b := plan.Budget{
		KVType: cache, MaxLen: d.Settings.MaxModelLen,
		MaxSequences: d.Settings.MaxNumSeqs, MaxRows: d.Settings.MaxNumBatchedTokens,
	}.Defaults(kind)
	var left int64 = 1 << 62
	b.Memory = left
	for _, s := range spots {
		free := p.left(s)
		left = min(left, free)
		b.Memory = min(b.Memory, min(free, int64(utilization*float64(s.device.Memory)))/sharing[device{s.node, s.device.ID}])
	}
	if kind == "cpu" && d.Settings.GPUMemoryUtilization == 0 {
		stored := int64(d.Shapes.Layers)*(d.Shapes.AttentionBytes+d.Shapes.FFNBytes) + d.Shapes.EmbeddingBytes + d.Shapes.OutputBytes
		b.Memory = min(b.Memory, 2*stored+CPUBytes)
	}
	return b, left, nil
}
