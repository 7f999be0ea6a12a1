package model

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"manta/kernels"
)

// An inspector walks the tensors that a Spec names, checks their shapes, and
// adds up their bytes.
type inspector struct {
	source Source
	seen   map[string]bool
	bytes  int64
	byKind map[kernels.DType]int64
	err    error
}

// matrix checks a matrix and gives it.
func (n *inspector) matrix(name string, rows, cols int) kernels.Matrix {
	m, ok := n.source.Tensor(name)
	n.seen[name] = true
	switch {
	case n.err != nil:
	case !ok:
		n.err = fmt.Errorf("%w: %s is missing", ErrTensor, name)
	case m.Rows != rows || m.Cols != cols:
		n.err = fmt.Errorf("%w: %s is %d×%d, the configuration says %d×%d", ErrTensor, name, m.Rows, m.Cols, rows, cols)
	}
	if n.err == nil {
		size := int64(rows) * int64(m.Type.Bytes(cols))
		n.bytes += size
		n.byKind[m.Type] += size
	}
	return m
}

func (n *inspector) vector(name string, length int) { n.matrix(name, 1, length) }

func (n *inspector) norm(s *Spec, name string, length int) {
	if name == "" {
		return
	}
	n.vector(name+".weight", length)
	if s.NormBias {
		n.vector(name+".bias", length)
	}
}

// product checks a weight of out × in values as the Spec stores it, and its bias.
func (n *inspector) product(s *Spec, name string, out, in int, bias bool) kernels.Matrix {
	if s.Transposed {
		out, in = in, out
	}
	m := n.matrix(name+".weight", out, in)
	if s.Transposed {
		out = in
		if n.err == nil && m.Type.BlockSize() != 1 {
			n.err = fmt.Errorf("%w: %s is stored input × output in blocks of %s", ErrUnsupported, m.Name, m.Type)
		}
	}
	if bias {
		n.vector(name+".bias", out)
	}
	return m
}

// inspect checks all tensors and refuses those that nothing would use.
func (s *Spec) inspect(w Source) error {
	n := &inspector{source: w, seen: map[string]bool{}, byKind: map[kernels.DType]int64{}}
	unit := 1
	for l := range s.Layers {
		n.bytes = 0
		unit = max(unit, s.inspectAttention(n, l))
		s.stored.attention = max(s.stored.attention, n.bytes)
		n.bytes = 0
		unit = max(unit, s.inspectFFN(n, l))
		s.stored.ffn = max(s.stored.ffn, n.bytes)
	}
	kinds := slices.Collect(maps.Keys(n.byKind))
	slices.Sort(kinds)
	for _, kind := range kinds {
		if n.byKind[kind] > n.byKind[s.stored.kind] {
			s.stored.kind = kind
		}
	}
	s.stored.unit = unit

	n.bytes = 0
	n.matrix(s.Names.Embedding+".weight", s.Vocab, s.Hidden)
	if s.Names.Positions != "" {
		n.matrix(s.Names.Positions+".weight", s.Context, s.Hidden)
	}
	s.stored.embedding = n.bytes
	n.norm(s, s.Names.FinalNorm, s.Hidden)
	n.bytes = 0
	if !s.Tied {
		n.matrix(s.Names.Output+".weight", s.Vocab, s.Hidden)
	}
	s.stored.output = n.bytes
	if n.err != nil {
		return n.err
	}
	return s.leftover(w, n.seen)
}

// inspectAttention gives the quantization block across which columns are cut.
func (s *Spec) inspectAttention(n *inspector, l int) int {
	name := func(template string) string { return at(template, l, 0) }
	q, kv := s.Heads*s.HeadDim, s.KVHeads*s.HeadDim
	n.norm(s, name(s.Names.AttentionNorm), s.Hidden)
	n.norm(s, name(s.Names.AttentionPostNorm), s.Hidden)
	if s.Fused == Separate {
		n.product(s, name(s.Names.Q), q, s.Hidden, s.QKVBias)
		n.product(s, name(s.Names.K), kv, s.Hidden, s.QKVBias)
		n.product(s, name(s.Names.V), kv, s.Hidden, s.QKVBias)
	} else {
		n.product(s, name(s.Names.QKV), q+2*kv, s.Hidden, s.QKVBias)
	}
	switch s.QKNorm {
	case PerHead:
		n.norm(s, name(s.Names.QNorm), s.HeadDim)
		n.norm(s, name(s.Names.KNorm), s.HeadDim)
	case AcrossHeads:
		n.norm(s, name(s.Names.QNorm), q)
		n.norm(s, name(s.Names.KNorm), kv)
	}
	return n.product(s, name(s.Names.Out), s.Hidden, q, s.OutBias).Type.BlockSize()
}

func (s *Spec) inspectFFN(n *inspector, l int) int {
	name := func(template string) string { return at(template, l, 0) }
	n.norm(s, name(s.Names.FFNNorm), s.Hidden)
	n.norm(s, name(s.Names.FFNPostNorm), s.Hidden)
	if !s.Layers[l].Sparse {
		switch {
		case s.Names.GateUp != "":
			n.product(s, name(s.Names.GateUp), 2*s.FFN, s.Hidden, s.FFNBias)
		case s.Gated:
			n.product(s, name(s.Names.Gate), s.FFN, s.Hidden, s.FFNBias)
			fallthrough
		default:
			n.product(s, name(s.Names.Up), s.FFN, s.Hidden, s.FFNBias)
		}
		return n.product(s, name(s.Names.Down), s.Hidden, s.FFN, s.FFNBias).Type.BlockSize()
	}
	n.product(s, name(s.Names.Router), s.Experts.Count, s.Hidden, false)
	unit := 1
	for _, e := range s.expertTensors(s.Names.ExpertGate) {
		count := s.Experts.Count / e.parts
		n.product(s, at(s.Names.ExpertGate, l, e.index), count*s.Experts.FFN, s.Hidden, false)
		n.product(s, at(s.Names.ExpertUp, l, e.index), count*s.Experts.FFN, s.Hidden, false)
		down := n.product(s, at(s.Names.ExpertDown, l, e.index), count*s.Hidden, s.Experts.FFN, false)
		unit = max(unit, down.Type.BlockSize())
	}
	return unit
}

// An expertTensor is one of the parts that a layer's experts are stored in.
type expertTensor struct{ index, parts int }

// expertTensors lists them: one for each expert, or one for all.
func (s *Spec) expertTensors(name string) []expertTensor {
	if !strings.Contains(name, "{e}") {
		return []expertTensor{{0, 1}}
	}
	list := make([]expertTensor, s.Experts.Count)
	for i := range list {
		list[i] = expertTensor{i, s.Experts.Count}
	}
	return list
}

// leftover refuses tensors that the Spec has no use for: a model that has them
// computes something else.
func (s *Spec) leftover(w Source, seen map[string]bool) error {
	ignored := map[string]bool{}
	if s.Tied {
		ignored[s.Names.Output+".weight"] = true
	}
	for _, name := range s.Names.Ignored {
		for l := range s.Layers {
			ignored[at(name, l, 0)] = true
		}
	}
	for _, name := range w.Names() {
		if !seen[name] && !ignored[name] {
			return fmt.Errorf("%w: tensor %s, which a %s has no use for", ErrUnsupported, name, s.Architecture)
		}
	}
	return nil
}
