package place

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"manta/head/state"
	"manta/parallel/shard"
	"manta/runtime/plan"
)

// maxReasons bounds how many nodes an explanation names.
const maxReasons = 64

// search finds places for replicas of one deployment, one after the other.
type search struct {
	p     *planner
	d     state.Deployment
	nodes []candidate      // one a machine, in the same order; nil until asked for
	on    map[*machine]int // ranks
	in    map[string]*int  // ranks by zone
	fits  map[budgetKey]fitted
	least map[string]plan.NoRoom // by kind: the most memory that was found too little
	// anywhere lets frozen nodes take shards, apart gives each rank a device of its own.
	anywhere, apart bool
}

// candidate is a machine as the place for a whole replica.
type candidate struct {
	kind  string
	on    int   // ranks of the deployment there
	in    *int  // and in its zone
	left  int64 // the least that a device of all ranks has
	unfit bool  // it is none, because of err
	err   error
}

type budgetKey struct {
	kind   string
	memory int64
	stages string // unlike memory of each, and their speeds
}

// fitted is how a replica is cut and its memory divided.
type fitted struct {
	layout shard.Layout
	fit    plan.Fit
	needs  []int64 // of each rank, where they are unlike; nil: the fullest's
	err    error
}

func (p *planner) search(d state.Deployment) *search {
	return &search{
		p: p, d: d, on: map[*machine]int{}, in: map[string]*int{},
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
		*s.zone(at.machine)++
		if exclusive {
			at.mine++
		}
	}
}

// zone counts the ranks in a machine's zone.
func (s *search) zone(m *machine) *int {
	name := m.labels[state.Zone]
	if s.in[name] == nil {
		s.in[name] = new(int)
	}
	return s.in[name]
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

// anew finds another place for a replica that stands and occupies nothing just now.
func (s *search) anew(id string) (state.Replica, bool) {
	s.nodes = nil // as they are without it
	r, reasons := s.find(id)
	s.nodes = nil
	return r, reasons == nil
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
	c := candidate{on: s.on[m], in: s.zone(m)}
	if c.err = m.refuses(s.d, s.anywhere); c.err != nil {
		c.unfit = true
		return c
	}
	var left [maxSlots]int64
	n, ranks := 0, s.d.Layout.Ranks()
	for _, at := range m.best {
		if n < maxSlots && s.takes(at) {
			left[n] = at.left()
			n++
		}
	}
	c.kind = m.best[0].device.Kind
	switch {
	case n == 0:
		c.unfit, c.err = true, errTaken
	case c.kind != "cpu" && n < ranks:
		c.unfit, c.err = true, fmt.Errorf("it has %d devices of kind %s to spare, %d ranks need one each", n, c.kind, ranks)
	default:
		slices.Sort(left[:n])
		c.left = left[n-min(n, ranks)]
	}
	return c
}

// maxSlots bounds the devices of a node that are looked at for one replica.
const maxSlots = 64

var errTaken = errors.New("each of its devices has a replica already")

// takes reports whether a device may take ranks of a further replica. Replicas of
// one deployment share a CPU unless there shall be as many as there are devices;
// they never share a GPU.
func (s *search) takes(at *slot) bool {
	return at.mine == 0 || !s.d.Auto && at.device.Kind == "cpu"
}

// choices gives all ranks devices of one machine, the ways to try in order: tensor
// ranks where the links between them are fastest, then where most memory is left.
func (s *search) choices(m *machine) [][]*slot {
	plain := s.slots(m)
	if tensor := s.d.Layout.Tensor; tensor > 1 && m.linked() {
		if linked := wellLinked(s.free(m), tensor, s.d.Layout.Pipeline); linked != nil && !slices.Equal(linked, plain) {
			return [][]*slot{linked, plain}
		}
	}
	return [][]*slot{plain}
}

// free lists the devices of a machine that may take ranks, those with most memory
// left first.
func (s *search) free(m *machine) []*slot {
	free := slices.DeleteFunc(slices.Clone(m.best), func(at *slot) bool { return !s.takes(at) })
	slices.SortStableFunc(free, func(a, b *slot) int { return cmp.Compare(b.left(), a.left()) })
	return free
}

// slots gives all ranks devices of one machine, those with most memory left first.
func (s *search) slots(m *machine) []*slot {
	free := s.free(m)
	slots := make([]*slot, s.d.Layout.Ranks())
	for i := range slots {
		slots[i] = free[i%len(free)] // ranks share a CPU, never a GPU
	}
	return slots
}

// together finds one node for a whole replica: GPUs before CPUs, in the zone and
// then on the node with fewest of the deployment's, where most memory is left.
func (s *search) together(id string) (state.Replica, bool) {
	if s.nodes == nil {
		s.nodes = make([]candidate, len(s.p.machines))
		for i, m := range s.p.machines {
			s.nodes[i] = s.weigh(m)
		}
	}
	for {
		best := -1
		for i := range s.nodes {
			if !s.nodes[i].unfit && (best < 0 || s.nodes[i].before(&s.nodes[best])) {
				best = i
			}
		}
		if best < 0 {
			return state.Replica{}, false
		}
		var err error
		for _, slots := range s.choices(s.p.machines[best]) {
			var r state.Replica
			if r, err = s.replica(id, slots); err == nil {
				return r, true
			}
		}
		s.nodes[best].unfit, s.nodes[best].err = true, err
	}
}

func (c *candidate) before(other *candidate) bool {
	switch {
	case c.kind != other.kind:
		return kindOrder(c.kind, other.kind) < 0
	case *c.in != *other.in:
		return *c.in < *other.in
	case c.on != other.on:
		return c.on < other.on
	}
	return c.left > other.left
}

// reasons says why no node takes a whole replica.
func (s *search) reasons() []Reason {
	if len(s.nodes) == 0 {
		return []Reason{{Lacks: errNoNode.Error()}}
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
	slots = s.fastestFirst(slots)
	found, err := s.fit(slots)
	if err != nil {
		return state.Replica{}, err
	}
	d, fit := s.d, found.fit
	r := state.Replica{
		ID: id, Deployment: d.Name, Version: d.Version, Layout: found.layout,
		Blocks: fit.Blocks, MaxLen: fit.MaxLen, Memory: fit.WeightBytes + fit.ScratchBytes + fit.KVBytes,
	}
	for i, at := range slots {
		shard := state.Placement{Stage: i / d.Layout.Tensor, Rank: i % d.Layout.Tensor, Node: at.node, Device: at.device.ID}
		if found.needs != nil {
			shard.Memory = found.needs[i]
		}
		r.Shards = append(r.Shards, shard)
	}
	return r, nil
}

// fit divides the memory of slots. What was computed before is not again: many
// nodes are alike, and less memory than was too little is too little.
func (s *search) fit(slots []*slot) (fitted, error) {
	b, speeds, err := s.budget(slots)
	if err != nil {
		return fitted{}, err
	}
	key := budgetKey{kind: slots[0].device.Kind, memory: b.Memory}
	if weights := shares(speeds, s.d.Layout); b.Stages != nil || b.Speeds != nil || weights != nil {
		key.stages = fmt.Sprint(b.Stages, b.Speeds, weights)
	}
	if less, ok := s.least[key.kind]; ok && b.Stages == nil && b.Memory <= less.Memory {
		less.Memory = b.Memory
		return fitted{}, &less
	}
	if known, ok := s.fits[key]; ok {
		return known, known.err
	}
	f := fitted{}
	f.layout, f.fit, f.err = plan.Stages(s.d.Shapes, s.d.Layout, b)
	f = s.weighed(f, b, speeds)
	var less *plan.NoRoom
	switch {
	case f.err == nil && (b.Stages != nil || f.layout.StageLayers != nil || f.layout.TensorShares != nil):
		f.needs, f.err = needs(s.d.Shapes, f.layout, b, f.fit.Blocks)
	case errors.As(f.err, &less) && b.Stages == nil:
		s.least[key.kind] = *less
	}
	s.fits[key] = f
	return f, f.err
}

// needs gives the memory of every rank.
func needs(shapes plan.Shapes, layout shard.Layout, b plan.Budget, blocks []int) ([]int64, error) {
	ranks, err := plan.Needs(shapes, layout, b, blocks)
	var bytes []int64
	for _, n := range ranks {
		bytes = append(bytes, n.Weights+n.Scratch+n.KV)
	}
	return bytes, err
}

// fastestFirst puts the ranks of each stage in one order, where their speeds are unlike:
// all stages share the parts of tensor ranks.
func (s *search) fastestFirst(slots []*slot) []*slot {
	if s.d.Layout.Tensor < 2 {
		return slots
	}
	speeds := make([]plan.Speed, len(slots))
	for i, at := range slots {
		speeds[i] = at.device.Speed
	}
	if shares(speeds, s.d.Layout) == nil {
		return slots
	}
	slots = slices.Clone(slots)
	for stage := range slices.Chunk(slots, s.d.Layout.Tensor) {
		slices.SortStableFunc(stage, func(a, b *slot) int { return cmp.Compare(b.device.Speed.Bandwidth, a.device.Speed.Bandwidth) })
	}
	return slots
}

// budget says what each rank may use of its device, and how fast that is.
func (s *search) budget(slots []*slot) (plan.Budget, []plan.Speed, error) {
	d, kind := s.d, slots[0].device.Kind
	cache, err := d.Shapes.CacheType(kind, d.Settings.KVCacheDType, d.Settings.DType)
	if err != nil {
		return plan.Budget{}, nil, err
	}
	b := plan.Budget{
		KVType: cache, MaxLen: d.Settings.MaxModelLen,
		MaxSequences: d.Settings.MaxNumSeqs, MaxRows: d.Settings.MaxNumBatchedTokens,
	}.Defaults(kind, slices.MinFunc(slots, func(a, b *slot) int { return cmp.Compare(a.device.Memory, b.device.Memory) }).device.Memory)
	utilization := cmp.Or(d.Settings.GPUMemoryUtilization, Utilization)
	most := int64(1 << 62)
	if kind == "cpu" && d.Settings.GPUMemoryUtilization == 0 {
		stored := int64(d.Shapes.Layers)*(d.Shapes.AttentionBytes+d.Shapes.FFNBytes) + d.Shapes.EmbeddingBytes + d.Shapes.OutputBytes
		most = 2*stored + CPUBytes
	}
	b.Memory = most
	var speeds []plan.Speed // of each rank
	for i, at := range slots {
		if at.device.Kind != kind {
			return plan.Budget{}, nil, fmt.Errorf("devices of the kinds %s and %s can't share a replica", kind, at.device.Kind)
		}
		sharing := int64(0)
		for _, other := range slots {
			if other == at {
				sharing++
			}
		}
		memory := min(most, min(at.left(), int64(utilization*float64(at.device.Memory)))/sharing)
		if b.Memory = min(b.Memory, memory); i%d.Layout.Tensor == 0 {
			b.Stages = append(b.Stages, memory)
		}
		stage := &b.Stages[i/d.Layout.Tensor]
		*stage = min(*stage, memory)
		speeds = append(speeds, at.device.Speed.Times(1/float64(sharing)))
	}
	b.Speeds = stageSpeeds(speeds, d.Layout)
	if slices.Min(b.Stages) == slices.Max(b.Stages) {
		b.Stages = nil
	}
	return b, speeds, nil
}
