package measure

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"

	"golang.org/x/sync/errgroup"

	"manta/kernels"
	"manta/parallel/shard"
	"manta/runtime/model"
	"manta/runtime/token"
)

// Accuracy says how far a device's distributions Q are from those of another, P:
// Kullback & Leibler 1951, eq. 2.4, of P from Q, over the vocabulary at each
// position.
type Accuracy struct {
	Tokens int        `json:"tokens"`
	All    Divergence `json:"all"`
	Second Divergence `json:"second_half"` // of each window, as llama-perplexity counts
}

// A Divergence is over some positions.
type Divergence struct {
	Positions int     `json:"positions"`
	Mean      float64 `json:"mean_kld"` // in nats
	P999      float64 `json:"p99_9_kld"`
	Max       float64 `json:"max_kld"`
	SameTop   float64 `json:"same_top"` // part of the positions
}

// Text is what accuracy is measured on, in windows of so many tokens: each begins
// anew at position 0. What is left over is not used.
type Text struct {
	Text   string
	Window int
}

// stretch is the number of positions that are computed at once.
const stretch = 64

// CompareDevices computes a text on two devices.
func CompareDevices(ctx context.Context, path string, p, q Device, text Text) (_ *Accuracy, err error) {
	m, err := open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.weights.Close()) }()
	tokens, err := m.tokens(text.Text)
	if err != nil {
		return nil, err
	}
	if text.Window < 2 || len(tokens) < text.Window {
		return nil, fmt.Errorf("measure: a text of %d tokens has no window of %d", len(tokens), text.Window)
	}
	var sides [2]*side
	for i, d := range []Device{p, q} {
		if sides[i], err = m.side(d, text.Window); err != nil {
			return nil, errors.Join(err, sides[0].close())
		}
	}
	defer func() { err = errors.Join(err, sides[0].close(), sides[1].close()) }()
	var all, second positions
	for from := 0; from+text.Window <= len(tokens); from += text.Window {
		found, err := compareWindow(ctx, sides, tokens[from:][:text.Window])
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
		second = append(second, found[text.Window/2:]...)
	}
	return &Accuracy{Tokens: len(tokens), All: all.divergence(), Second: second.divergence()}, nil
}

// tokens encodes a text with the model's own tokenizer.
func (m *opened) tokens(text string) ([]int32, error) {
	source, err := m.weights.Tokenizer()
	if err != nil {
		return nil, err
	}
	t, err := token.New(source)
	if err != nil {
		return nil, err
	}
	return t.Encode(text, false)
}

// A side is a model on one of the devices.
type side struct {
	ops    kernels.Ops
	model  *model.Model
	vocab  int
	blocks [][]int32
	logits []byte
}

func (m *opened) side(d Device, window int) (_ *side, err error) {
	s := &side{vocab: m.spec.Shapes().Vocab}
	if s.ops, err = d.Open(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	limits := model.Limits{MaxRows: stretch, MaxWanted: stretch, MaxContext: window, CacheType: d.Cache}
	blocks := (window + kernels.BlockTokens - 1) / kernels.BlockTokens
	for range m.spec.Shapes().Groups() {
		limits.Blocks = append(limits.Blocks, blocks)
		list := make([]int32, blocks)
		for i := range list {
			list[i] = int32(i)
		}
		s.blocks = append(s.blocks, list)
	}
	slice, err := shard.Cut(whole, m.spec.Shapes().Shape(), 0, 0)
	if err != nil {
		return nil, err
	}
	s.model, err = model.Load(s.ops, m.weights, m.spec, slice, limits, nil)
	return s, err
}

func (s *side) close() error {
	if s == nil {
		return nil
	}
	return s.ops.Close()
}

// forward computes positions [from, from+len(tokens)) of a window; the logits of
// position i of them are those of row i.
func (s *side) forward(tokens []int32, from int) error {
	b := &kernels.Batch{Tokens: tokens, Spans: []kernels.Span{{Count: len(tokens), Start: from, Blocks: s.blocks}}}
	for i := range tokens {
		b.Positions = append(b.Positions, int32(from+i))
		b.Wanted = append(b.Wanted, int32(i))
	}
	if err := s.ops.Begin(b); err != nil {
		return err
	}
	logits, err := s.model.Forward(b)
	if err != nil {
		return err
	}
	n := len(tokens) * s.ops.RowBytes(logits)
	s.logits = slices.Grow(s.logits[:0], n)[:n]
	if err := s.ops.Get(s.logits, logits.Top(len(tokens))); err != nil {
		return err
	}
	_, err = s.ops.End().Wait()
	return err
}

// row gives the logits of a row of the last forward, as the machine stores them.
func (s *side) row(r int) []float32 {
	row := make([]float32, s.vocab)
	for i := range row {
		row[i] = math.Float32frombits(binary.LittleEndian.Uint32(s.logits[4*(r*s.vocab+i):]))
	}
	return row
}

// A position is what was found at one.
type position struct {
	kld  float64
	same bool
}

type positions []position

// compareWindow computes a window on both sides and compares every position.
func compareWindow(ctx context.Context, sides [2]*side, tokens []int32) (positions, error) {
	all := make(positions, len(tokens))
	for from := 0; from < len(tokens); from += stretch {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		rows := min(stretch, len(tokens)-from)
		for _, s := range sides {
			if err := s.forward(tokens[from:][:rows], from); err != nil {
				return nil, err
			}
		}
		var group errgroup.Group
		for part := range 2 {
			group.Go(func() error {
				for r := part; r < rows; r += 2 {
					all[from+r] = compare(sides[0].row(r), sides[1].row(r))
				}
				return nil
			})
		}
		if err := group.Wait(); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func compare(p, q []float32) position {
	logP, topP := normaliser(p)
	logQ, topQ := normaliser(q)
	var kld float64
	for i := range p {
		at := float64(p[i]) - logP
		kld += math.Exp(at) * (at - (float64(q[i]) - logQ))
	}
	return position{kld, topP == topQ}
}

// normaliser gives log Σ exp of logits, and the index of the highest.
func normaliser(logits []float32) (log float64, top int) {
	for i, x := range logits {
		if x > logits[top] {
			top = i
		}
	}
	var sum float64
	for _, x := range logits {
		sum += math.Exp(float64(x - logits[top]))
	}
	return float64(logits[top]) + math.Log(sum), top
}

func (p positions) divergence() Divergence {
	d := Divergence{Positions: len(p)}
	all := make([]float64, len(p))
	for i, found := range p {
		all[i] = found.kld
		d.Mean += found.kld / float64(len(p))
		if found.same {
			d.SameTop += 1 / float64(len(p))
		}
	}
	slices.Sort(all)
	d.Max, d.P999 = all[len(all)-1], all[int(math.Ceil(0.999*float64(len(all))))-1]
	return d
}
