package model

import (
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	"manta/kernels"
)

// A StoredTensor is one that a Spec reads: its shape as files store it, a vector
// as one row.
type StoredTensor struct {
	Name       string
	Rows, Cols int

	section section
	layer   int
	turns   bool // transposed while loading
	cut     bool // tensor ranks take some of its columns each
}

// A section is what a tensor's bytes count to.
type section uint8

const (
	ofEmbedding section = iota
	ofAttention
	ofFFN
	ofFinalNorm
	ofOutput
)

// Tensors gives what the Spec reads, section by section.
func (s *Spec) Tensors() iter.Seq[StoredTensor] {
	return func(yield func(StoredTensor) bool) {
		n := &inventory{spec: s}
		n.matrix(s.Names.Embedding, s.Vocab, s.Hidden)
		if s.Names.Positions != "" {
			n.matrix(s.Names.Positions, s.Context, s.Hidden)
		}
		for n.layer = range s.Layers {
			n.section = ofAttention
			n.attention()
			n.section = ofFFN
			n.feedForward()
			if !n.hand(yield) {
				return
			}
		}
		n.section = ofFinalNorm
		n.norm(s.Names.FinalNorm, s.Hidden)
		n.section = ofOutput
		if !s.Tied {
			n.matrix(s.Names.Output, s.Vocab, s.Hidden)
		}
		n.hand(yield)
	}
}

// An inventory collects tensors, those of a layer at a time.
type inventory struct {
	spec    *Spec
	section section
	layer   int
	list    []StoredTensor
}

// hand gives what has been collected.
func (n *inventory) hand(yield func(StoredTensor) bool) bool {
	for _, t := range n.list {
		if !yield(t) {
			return false
		}
	}
	n.list = n.list[:0]
	return true
}

func (n *inventory) add(name string, rows, cols int) *StoredTensor {
	n.list = append(n.list, StoredTensor{Name: name, Rows: rows, Cols: cols, section: n.section, layer: n.layer})
	return &n.list[len(n.list)-1]
}

func (n *inventory) matrix(name string, rows, cols int) { n.add(name+".weight", rows, cols) }

// norm adds a norm of the layer, where the Spec names one.
func (n *inventory) norm(template string, length int) {
	if template == "" {
		return
	}
	name := at(template, n.layer, 0)
	n.add(name+".weight", 1, length)
	if n.spec.NormBias {
		n.add(name+".bias", 1, length)
	}
}

// product adds a weight of out × in values as the Spec stores it, and its bias.
func (n *inventory) product(name string, out, in int, bias bool) *StoredTensor {
	rows, cols := out, in
	if n.spec.Transposed {
		rows, cols = in, out
	}
	if bias {
		n.add(name+".bias", 1, out)
	}
	t := n.add(name+".weight", rows, cols)
	t.turns = n.spec.Transposed
	return t
}

func (n *inventory) attention() {
	s, name := n.spec, func(template string) string { return at(template, n.layer, 0) }
	q, kv := s.Heads*s.HeadDim, s.KVHeads*s.HeadDim
	n.norm(s.Names.AttentionNorm, s.Hidden)
	n.norm(s.Names.AttentionPostNorm, s.Hidden)
	if s.Fused == Separate {
		n.product(name(s.Names.Q), q, s.Hidden, s.QKVBias)
		n.product(name(s.Names.K), kv, s.Hidden, s.QKVBias)
		n.product(name(s.Names.V), kv, s.Hidden, s.QKVBias)
	} else {
		n.product(name(s.Names.QKV), q+2*kv, s.Hidden, s.QKVBias)
	}
	switch s.QKNorm {
	case PerHead:
		n.norm(s.Names.QNorm, s.HeadDim)
		n.norm(s.Names.KNorm, s.HeadDim)
	case AcrossHeads:
		n.norm(s.Names.QNorm, q)
		n.norm(s.Names.KNorm, kv)
	}
	n.product(name(s.Names.Out), s.Hidden, q, s.OutBias).cut = true
}

func (n *inventory) feedForward() {
	s, name := n.spec, func(template string) string { return at(template, n.layer, 0) }
	n.norm(s.Names.FFNNorm, s.Hidden)
	n.norm(s.Names.FFNPostNorm, s.Hidden)
	if s.Layers[n.layer].Sparse {
		n.experts()
		return
	}
	switch {
	case s.Names.GateUp != "":
		n.product(name(s.Names.GateUp), 2*s.FFN, s.Hidden, s.FFNBias)
	case s.Gated:
		n.product(name(s.Names.Gate), s.FFN, s.Hidden, s.FFNBias)
		fallthrough
	default:
		n.product(name(s.Names.Up), s.FFN, s.Hidden, s.FFNBias)
	}
	n.product(name(s.Names.Down), s.Hidden, s.FFN, s.FFNBias).cut = true
}

func (n *inventory) experts() {
	s := n.spec
	n.product(at(s.Names.Router, n.layer, 0), s.Experts.Count, s.Hidden, false)
	tensors, each := s.Experts.Count, 1
	if s.stackedExperts() {
		tensors, each = 1, s.Experts.Count
	}
	for e := range tensors {
		n.product(at(s.Names.ExpertGate, n.layer, e), each*s.Experts.FFN, s.Hidden, false)
		n.product(at(s.Names.ExpertUp, n.layer, e), each*s.Experts.FFN, s.Hidden, false)
		n.product(at(s.Names.ExpertDown, n.layer, e), each*s.Hidden, s.Experts.FFN, false).cut = true
	}
}

// stackedExperts tells whether a layer's experts lie in one tensor of each kind.
func (s *Spec) stackedExperts() bool { return !strings.Contains(s.Names.ExpertGate, "{e}") }

// inspect checks all tensors, learns their sizes, and refuses those that nothing
// would use.
func (s *Spec) inspect(w Source) error {
	seen, byKind, unit := map[string]bool{}, map[kernels.DType]int64{}, 1
	attention, ffn := make([]int64, len(s.Layers)), make([]int64, len(s.Layers))
	s.stored = stored{}
	for want := range s.Tensors() {
		m, ok := w.Tensor(want.Name)
		switch {
		case !ok:
			return fmt.Errorf("%w: %s is missing", ErrTensor, want.Name)
		case m.Rows != want.Rows || m.Cols != want.Cols:
			return fmt.Errorf("%w: %s is %d×%d, the configuration says %d×%d", ErrTensor, want.Name, m.Rows, m.Cols, want.Rows, want.Cols)
		case want.turns && m.Type.BlockSize() != 1:
			return fmt.Errorf("%w: %s is stored input × output in blocks of %s", ErrUnsupported, want.Name, m.Type)
		}
		seen[want.Name] = true
		if want.cut {
			unit = max(unit, m.Type.BlockSize())
		}
		size := int64(m.Rows) * int64(m.Type.Bytes(m.Cols))
		switch want.section {
		case ofEmbedding:
			s.stored.embedding += size
		case ofAttention:
			attention[want.layer] += size
			byKind[m.Type] += size
		case ofFFN:
			ffn[want.layer] += size
			byKind[m.Type] += size
		case ofOutput:
			s.stored.output += size
		}
	}
	s.stored.unit, s.stored.attention, s.stored.ffn = unit, slices.Max(attention), slices.Max(ffn)
	for _, kind := range slices.Sorted(maps.Keys(byKind)) {
		if byKind[kind] > byKind[s.stored.kind] {
			s.stored.kind = kind
		}
	}
	return s.leftover(w, seen)
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
