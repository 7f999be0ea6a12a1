package place

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"manta/head/state"
	"manta/runtime/plan"
)

// maxReasons bounds how many nodes an explanation names.
const maxReasons = 64

// search finds places for replicas of one deployment, one after the other.
type search struct {
	p     *planner
	d     state.Deployment
	nodes []candidate // one a machine, in the same order; nil until asked for
	on    map[*machine]int
	in    map[string]int // replicas by zone
	fits  map[budgetKey]fitted
	least map[string]plan.NoRoom // by kind: the most memory that was found too little
	// anywhere lets frozen nodes take shards.
	anywhere bool
}

// candidate is a machine as the place for a whole replica.
type candidate struct {
	slots []*slot // of all ranks
	left  int64   // the least that a device of them has
	err   error   // why it is none
}

type budgetKey struct {
	kind   string
	memory int64
}

type fitted struct {
	fit plan.Fit
	err error
}

func (p *planner) search(d state.Deployment) *search {
	return &search{
		p: p, d: d, on: map[*machine]int{}, in: map[string]int{},
		fits: map[budgetKey]fitted{}, least: map[string]plan.NoRoom{},
	}
}

// count tells the search of a replica that stands; with exclusive its devices take
// no further one.
func (s *search) count(r state.Replica, exclusive bool) {
	for _, shard := range r.Shards {
		at := s.p.slot(shard)
		if at == nil {
			continue
		}
		s.on[at.machine]++
		s.in[at.labels[state.Zone]]++
		if exclusive {
			at.mine++
		}
	}
}

// done takes back what count wrote into the machines.
func (s *search) done() {
	for _, m := range s.p.machines {
		for _, slot := range m.slots {
			slot.mine = 0
		}
	}
}

// place finds where a further replica runs, on a frozen node rather than nowhere,
// and occupies it.
func (s *search) place(id string) (state.Replica, []Reason) {
	r, reasons := s.find(id)
	if reasons != nil && !s.anywhere && slices.ContainsFunc(s.p.machines, func(m *machine) bool { return m.frozen }) {
		s.anywhere, s.nodes = true, nil
		if again, none := s.find(id); none == nil {
			r, reasons = again, nil
		}
	}
	if reasons == nil {
		s.take(r)
	}
	return r, reasons
}

// take occupies what a replica takes.
func (s *search) take(r state.Replica) {
	s.p.occupy(r, 1)
	s.count(r, true)
	for i, m := range s.p.machines {
		if s.nodes != nil && slices.ContainsFunc(r.Shards, func(shard state.Placement) bool { return shard.Node == m.node }) {
			s.nodes[i] = s.weigh(m)
		}
	}
}

// find finds where a further replica runs: one node if it fits there, else several.
func (s *search) find(id string) (state.Replica, []Reason) {
	if s.d.Strategy == state.Spread && s.d.Layout.Pipeline > 1 {
		if r, err := s.across(id); err == nil {
			return r, nil
		}
	}
	if r, ok := s.together(id); ok {
		return r, nil
	}
	reasons := s.reasons()
	if len(s.p.machines) < 2 || s.d.Layout.Ranks() == 1 || s.d.Layout.Check(s.d.Shapes.Shape()) != nil {
		return state.Replica{}, reasons
	}
	r, err := s.across(id)
	if err != nil {
		return state.Replica{}, append(reasons, Reason{Lacks: "across nodes: " + err.Error()})
	}
	return r, nil
}

// weigh looks at a machine as the place for all ranks.
func (s *search) weigh(m *machine) candidate {
	if err := m.refuses(s.d, s.anywhere); err != nil {
		return candidate{err: err}
	}
	free, ranks := m.free(s.d), s.d.Layout.Ranks()
	kind := m.best[0].device.Kind
	switch {
	case len(free) == 0:
		return candidate{err: fmt.Errorf("each of its devices has a replica already")}
	case kind != "cpu" && len(free) < ranks:
		return candidate{err: fmt.Errorf("it has %d devices of kind %s to spare, %d ranks need one each", len(free), kind, ranks)}
	}
	if len(free) > 1 {
		free = slices.Clone(free)
		slices.SortStableFunc(free, func(a, b *slot) int { return cmp.Compare(b.left(), a.left()) })
	}
	c := candidate{slots: make([]*slot, ranks), left: 1 << 62}
	for i := range c.slots {
		c.slots[i] = free[i%len(free)] // ranks share a CPU, never a GPU
		c.left = min(c.left, c.slots[i].left())
	}
	return c
}

// together finds one node for a whole replica: GPUs before CPUs, in the zone and
// then on the node with fewest of the deployment's, where most memory is left.
func (s *search) together(id string) (state.Replica, bool) {
	if s.nodes == nil {
		for _, m := range s.p.machines {
			s.nodes = append(s.nodes, s.weigh(m))
		}
	}
	for {
		best := -1
		for i := range s.nodes {
			if s.nodes[i].err == nil && (best < 0 || s.before(i, best)) {
				best = i
			}
		}
		if best < 0 {
			return state.Replica{}, false
		}
		r, err := s.replica(id, s.nodes[best].slots)
		if err == nil {
			return r, true
		}
		s.nodes[best].err = err
	}
}

func (s *search) before(i, j int) bool {
	a, b := s.nodes[i].slots[0], s.nodes[j].slots[0]
	order := cmp.Or(
		kindOrder(a.device.Kind, b.device.Kind),
		cmp.Compare(s.in[a.labels[state.Zone]], s.in[b.labels[state.Zone]]),
		cmp.Compare(s.on[a.machine], s.on[b.machine]),
		cmp.Compare(s.nodes[j].left, s.nodes[i].left))
	return order < 0
}

// reasons says why no node takes a whole replica.
func (s *search) reasons() []Reason {
	if len(s.nodes) == 0 {
		return []Reason{{Lacks: "no node has joined"}}
	}
	var reasons []Reason
	for i, m := range s.p.machines {
		if i == maxReasons {
			return append(reasons, Reason{Lacks: fmt.Sprintf("%d further nodes can't take it either", len(s.nodes)-i)})
		}
		reasons = append(reasons, Reason{Node: m.node, Lacks: s.nodes[i].err.Error()})
	}
	return reasons
}

// replica plans a replica on the slots of its ranks, stage by stage.
func (s *search) replica(id string, slots []*slot) (state.Replica, error) {
	fit, err := s.fit(slots)
	if err != nil {
		return state.Replica{}, err
	}
	d := s.d
	r := state.Replica{
		ID: id, Deployment: d.Name, Version: d.Version, Layout: d.Layout,
		Blocks: fit.Blocks, MaxLen: fit.MaxLen, Memory: fit.WeightBytes + fit.ScratchBytes + fit.KVBytes,
	}
	for i, at := range slots {
		r.Shards = append(r.Shards, state.Placement{
			Stage: i / d.Layout.Tensor, Rank: i % d.Layout.Tensor, Node: at.node, Device: at.device.ID,
		})
	}
	return r, nil
}

// fit divides the memory of slots. What was computed before is not again: many
// nodes are alike, and less memory than was too little is too little.
func (s *search) fit(slots []*slot) (plan.Fit, error) {
	b, err := s.budget(slots)
	if err != nil {
		return plan.Fit{}, err
	}
	key := budgetKey{slots[0].device.Kind, b.Memory}
	if less, ok := s.least[key.kind]; ok && b.Memory <= less.Memory {
		less.Memory = b.Memory
		return plan.Fit{}, &less
	}
	if known, ok := s.fits[key]; ok {
		return known.fit, known.err
	}
	fit, err := plan.Compute(s.d.Shapes, s.d.Layout, b)
	s.fits[key] = fitted{fit, err}
	var less *plan.NoRoom
	if errors.As(err, &less) {
		s.least[key.kind] = *less
	}
	return fit, err
}

// budget says what each rank may use of its device.
func (s *search) budget(slots []*slot) (plan.Budget, error) {
	d, kind := s.d, slots[0].device.Kind
	cache, err := d.Shapes.CacheType(kind, d.Settings.KVCacheDType, d.Settings.DType)
	if err != nil {
		return plan.Budget{}, err
	}
	b := plan.Budget{
		KVType: cache, MaxLen: d.Settings.MaxModelLen,
		MaxSequences: d.Settings.MaxNumSeqs, MaxRows: d.Settings.MaxNumBatchedTokens,
	}.Defaults(kind)
	utilization := cmp.Or(d.Settings.GPUMemoryUtilization, Utilization)
	b.Memory = 1 << 62
	for _, at := range slots {
		if at.device.Kind != kind {
			return plan.Budget{}, fmt.Errorf("devices of the kinds %s and %s can't share a replica", kind, at.device.Kind)
		}
		sharing := int64(0)
		for _, other := range slots {
			if other == at {
				sharing++
			}
		}
		b.Memory = min(b.Memory, min(at.left(), int64(utilization*float64(at.device.Memory)))/sharing)
	}
	if kind == "cpu" && d.Settings.GPUMemoryUtilization == 0 {
		stored := int64(d.Shapes.Layers)*(d.Shapes.AttentionBytes+d.Shapes.FFNBytes) + d.Shapes.EmbeddingBytes + d.Shapes.OutputBytes
		b.Memory = min(b.Memory, 2*stored+CPUBytes)
	}
	return b, nil
}
