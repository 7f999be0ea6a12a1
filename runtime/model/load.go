package model

import (
	"fmt"

	"manta/kernels"
	"manta/kernels/ref"
	"manta/parallel/shard"
)

// Limits size what a Model allocates once, so that no step ever has to.
type Limits struct {
	MaxRows    int   // rows of a step
	MaxWanted  int   // rows of a step whose logits are wanted
	MaxContext int   // positions of a sequence
	Blocks     []int // per group of plan.Shapes.Groups
	CacheType  kernels.DType
}

// A Model is one rank's slice of a model on a device, ready to run. It belongs to
// the goroutine that owns the Ops.
type Model struct {
	ops    kernels.Ops
	spec   *Spec
	slice  shard.Slice
	limits Limits
	reduce kernels.Reducer // nil for one tensor rank

	embed  kernels.Embed
	layers []layer
	output kernels.Linear // with the final norm

	hidden    kernels.Tensor // the residual stream
	qkv       kernels.Tensor
	attended  kernels.Tensor
	projected kernels.Tensor // what a part adds to hidden, where that is a step of its own
	inner     kernels.Tensor
	wanted    kernels.Tensor
	part      kernels.Tensor // this rank's columns of the logits
	logits    kernels.Tensor // all of them, on tensor rank 0
}

// A layer is the arguments of its calls.
type layer struct {
	qkv       kernels.Linear
	attention kernels.Attention
	out       kernels.Linear
	outNorm   *kernels.Norm // on what attention adds

	up      kernels.Linear // gate and up, or the only one
	down    kernels.Linear
	experts *kernels.Experts
	ffnNorm *kernels.Norm // on what the feed-forward layer adds
}

// A loader reads a slice; the first error sticks.
type loader struct {
	ops    kernels.Ops
	source Source
	spec   *Spec
	slice  shard.Slice
	ropes  map[int]kernels.RopeTable
	err    error
}

// Load brings a slice of a model to a device. reduce is nil for one tensor rank.
// The source must stay open as long as the Model is used: devices may read
// weights where they are mapped. The Model allocates nothing after this.
func Load(ops kernels.Ops, w Source, s *Spec, slice shard.Slice, limits Limits, reduce kernels.Reducer) (*Model, error) {
	if (slice.Ranks > 1) != (reduce != nil) || reduce != nil && (reduce.Size() != slice.Ranks || reduce.Rank() != slice.Rank) {
		return nil, fmt.Errorf("model: rank %d of %d needs a reducer of that rank and size", slice.Rank, slice.Ranks)
	}
	if groups := len(s.Shapes().Groups()); len(limits.Blocks) != groups {
		return nil, fmt.Errorf("model: blocks are given for %d groups, the model has %d", len(limits.Blocks), groups)
	}
	if limits.MaxContext > s.Context && s.Names.Positions != "" {
		return nil, fmt.Errorf("model: a context of %d, the model has learned %d positions", limits.MaxContext, s.Context)
	}
	n := &loader{ops: ops, source: w, spec: s, slice: slice, ropes: map[int]kernels.RopeTable{}}
	m := &Model{ops: ops, spec: s, slice: slice, limits: limits, reduce: reduce}
	m.layers = make([]layer, slice.Layers.Len())
	caches := n.caches(limits)
	for i := range m.layers {
		l := slice.Layers.Lo + i
		n.attention(&m.layers[i], l, limits, caches)
		n.feedForward(&m.layers[i], l)
	}
	n.ends(m)
	n.scratch(m)
	return m, n.err
}

// A held is the cache of one group and how many layers have taken their place in it.
type held struct {
	cache kernels.Cache
	next  int
}

// caches makes one cache for each group that this stage has layers of.
func (n *loader) caches(limits Limits) []held {
	shapes := n.spec.Shapes()
	counts := make([]int, len(limits.Blocks))
	for l := n.slice.Layers.Lo; l < n.slice.Layers.Hi; l++ {
		counts[shapes.Group(l)]++
	}
	list := make([]held, len(counts))
	for g, count := range counts {
		if count == 0 || n.err != nil {
			continue
		}
		list[g].cache, n.err = n.ops.Cache(kernels.CacheSpec{
			Layers: count, Blocks: limits.Blocks[g],
			KVHeads: n.slice.KVHeads.Len(), HeadDim: n.spec.HeadDim, Type: limits.CacheType,
		})
	}
	return list
}

func (n *loader) attention(out *layer, l int, limits Limits, caches []held) {
	s, name := n.spec, func(template string) string { return at(template, l, 0) }
	group := s.Shapes().Group(l)
	var parts []kernels.Matrix
	var bias []float32
	for _, p := range n.qkv(l) {
		parts = append(parts, n.rows(p.name, p.rows))
		if s.QKVBias {
			bias = append(bias, n.floats(p.name+".bias", p.rows)...)
		}
	}
	out.qkv = kernels.Linear{Weight: n.weight(parts...), Norm: n.norm(name(s.Names.AttentionNorm), s.Hidden)}
	if s.QKVBias {
		out.qkv.Bias = n.vector(bias)
	}
	out.attention = kernels.Attention{
		Cache: caches[group].cache, Layer: caches[group].next, Group: group,
		Heads: n.slice.Heads.Len(), KVHeads: n.slice.KVHeads.Len(), HeadDim: s.HeadDim, HeadMap: n.slice.HeadMap,
		Scale: s.AttentionScale, Softcap: s.AttentionCap, Window: s.Layers[l].Window,
		NormAcross: s.QKNorm == AcrossHeads, Interleaved: s.Interleaved,
		Rope: n.rope(s.Layers[l].Rope, limits.MaxContext),
	}
	caches[group].next++
	switch s.QKNorm {
	case PerHead:
		out.attention.QNorm = n.norm(name(s.Names.QNorm), s.HeadDim)
		out.attention.KNorm = n.norm(name(s.Names.KNorm), s.HeadDim)
	case AcrossHeads:
		out.attention.QNorm = n.norm(name(s.Names.QNorm), s.Heads*s.HeadDim)
		out.attention.KNorm = n.norm(name(s.Names.KNorm), s.KVHeads*s.HeadDim)
	}
	columns := shard.Range{Lo: n.slice.Heads.Lo * s.HeadDim, Hi: n.slice.Heads.Hi * s.HeadDim}
	out.out = n.projection(name(s.Names.Out), columns, s.OutBias, s.WholeAttention())
	out.outNorm = n.norm(name(s.Names.AttentionPostNorm), s.Hidden)
}

func (n *loader) feedForward(out *layer, l int) {
	s, name := n.spec, func(template string) string { return at(template, l, 0) }
	norm := n.norm(name(s.Names.FFNNorm), s.Hidden)
	out.ffnNorm = n.norm(name(s.Names.FFNPostNorm), s.Hidden)
	if s.Layers[l].Sparse {
		out.experts = n.experts(l, norm)
		return
	}
	columns := n.columns()
	var parts []kernels.Matrix
	var bias []float32
	add := func(name string, rows shard.Range) {
		parts = append(parts, n.rows(name, rows))
		if s.FFNBias {
			bias = append(bias, n.floats(name+".bias", rows)...)
		}
	}
	switch {
	case s.Names.GateUp != "":
		add(name(s.Names.GateUp), columns)
		add(name(s.Names.GateUp), shard.Range{Lo: columns.Lo + s.FFN, Hi: columns.Hi + s.FFN})
	case s.Gated:
		add(name(s.Names.Gate), columns)
		add(name(s.Names.Up), columns)
	default:
		add(name(s.Names.Up), columns)
	}
	out.up = kernels.Linear{Norm: norm, Activation: s.Activation, Gated: s.Gated}
	if s.Gated {
		out.up.Weight = n.pair(parts[0], parts[1])
	} else {
		out.up.Weight = n.weight(parts...)
	}
	if s.FFNBias {
		out.up.Bias = n.vector(bias)
	}
	out.down = n.projection(name(s.Names.Down), columns, s.FFNBias, false)
}

// columns gives the slice's columns of a dense layer. Where the slice counts
// those of experts, a dense layer of another width is cut in proportion.
func (n *loader) columns() shard.Range {
	s := n.spec
	inner, unit := s.inner(), s.stored.unit
	if inner == s.FFN {
		return n.slice.FFN
	}
	scale := func(edge int) int {
		if edge == inner {
			return s.FFN
		}
		return edge * s.FFN / inner / unit * unit
	}
	r := shard.Range{Lo: scale(n.slice.FFN.Lo), Hi: scale(n.slice.FFN.Hi)}
	if r.Len() < 1 && n.err == nil {
		n.err = fmt.Errorf("%w: a dense layer of %d columns is too narrow for %d tensor ranks", shard.ErrLayout, s.FFN, n.slice.Ranks)
	}
	return r
}

func (n *loader) experts(l int, norm *kernels.Norm) *kernels.Experts {
	s := n.spec
	e := &kernels.Experts{
		Norm:   norm,
		Router: n.weight(n.rows(at(s.Names.Router, l, 0), shard.Range{Hi: s.Experts.Count})),
		TopK:   s.Experts.Used, Renormalise: s.Experts.Renormalise, Activation: s.Activation,
	}
	for i := range s.Experts.Count {
		first, down := n.slice.FFN, shard.Range{Hi: s.Hidden}
		if s.stackedExperts() { // expert i's rows lie behind those of the others
			first = shard.Range{Lo: first.Lo + i*s.Experts.FFN, Hi: first.Hi + i*s.Experts.FFN}
			down = shard.Range{Lo: i * s.Hidden, Hi: (i + 1) * s.Hidden}
		}
		gate := n.rows(at(s.Names.ExpertGate, l, i), first)
		up := n.rows(at(s.Names.ExpertUp, l, i), first)
		e.GateUp = append(e.GateUp, n.pair(gate, up))
		e.Down = append(e.Down, n.weight(n.block(at(s.Names.ExpertDown, l, i), down, n.slice.FFN)))
	}
	return e
}

// ends loads what the first stage has before its layers and the last after them.
// The embedding is whole on every tensor rank, the output matrix is cut by rows.
func (n *loader) ends(m *Model) {
	s := n.spec
	if n.slice.First() {
		m.embed = kernels.Embed{Table: n.weight(n.tensor(s.Names.Embedding + ".weight")), Scale: s.EmbedScale}
		if s.EmbedScale == 0 {
			m.embed.Scale = 1
		}
		if s.Names.Positions != "" {
			m.embed.Positions = n.weight(n.tensor(s.Names.Positions + ".weight"))
		}
	}
	if !n.slice.Last() {
		return
	}
	name := s.Names.Output
	if s.Tied {
		name = s.Names.Embedding
	}
	table := n.tensor(name + ".weight")
	m.output = kernels.Linear{Norm: n.norm(s.Names.FinalNorm, s.Hidden), Softcap: s.LogitCap}
	if m.slice.Ranks == 1 && s.Tied && n.slice.First() {
		m.output.Weight = m.embed.Table // one copy on the device
		return
	}
	if n.err == nil {
		table, n.err = table.SliceRows(n.slice.Vocab.Lo, n.slice.Vocab.Hi)
	}
	m.output.Weight = n.weight(table)
}

// scratch makes the tensors that steps write to.
func (n *loader) scratch(m *Model) {
	s, limits := n.spec, m.limits
	inner := 1
	for l := n.slice.Layers.Lo; l < n.slice.Layers.Hi; l++ {
		if !s.Layers[l].Sparse {
			inner = n.columns().Len()
		}
	}
	m.hidden = n.scratchOf(limits.MaxRows, s.Hidden)
	m.qkv = n.scratchOf(limits.MaxRows, (n.slice.Heads.Len()+2*n.slice.KVHeads.Len())*s.HeadDim)
	m.attended = n.scratchOf(limits.MaxRows, n.slice.Heads.Len()*s.HeadDim)
	m.projected = n.scratchOf(limits.MaxRows, s.Hidden)
	m.inner = n.scratchOf(limits.MaxRows, inner)
	if n.slice.Last() {
		m.wanted = n.scratchOf(limits.MaxWanted, s.Hidden)
		if n.slice.Rank == 0 {
			m.logits = n.scratchOf(limits.MaxWanted, s.Vocab)
		}
		if m.slice.Ranks > 1 {
			m.part = n.scratchOf(limits.MaxWanted, n.slice.Vocab.Len())
		}
	}
}

func (n *loader) scratchOf(rows, cols int) (t kernels.Tensor) {
	if n.err == nil {
		t, n.err = n.ops.Tensor(rows, cols)
	}
	return t
}

// norm reads a norm, with the Spec's shift added to its weights; nil without a name.
func (n *loader) norm(name string, size int) *kernels.Norm {
	if name == "" || n.err != nil {
		return nil
	}
	values := n.floats(name+".weight", shard.Range{Hi: size})
	for i := range values {
		values[i] += n.spec.NormShift
	}
	norm := &kernels.Norm{Kind: n.spec.Norm, Weight: n.vector(values), Eps: n.spec.Eps}
	if n.spec.NormBias {
		norm.Bias = n.vector(n.floats(name+".bias", shard.Range{Hi: size}))
	}
	return norm
}

// floats reads part of a vector.
func (n *loader) floats(name string, r shard.Range) []float32 {
	m := n.tensor(name)
	if n.err != nil {
		return nil
	}
	if m.Rows != 1 || r.Hi > m.Cols {
		n.err = fmt.Errorf("%w: %s is %d×%d, want %d values", ErrTensor, name, m.Rows, m.Cols, r.Hi)
		return nil
	}
	values := make([]float32, m.Cols)
	ref.Dequantize(m, 0, values)
	return values[r.Lo:r.Hi]
}
