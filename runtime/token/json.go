package token

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// file is a tokenizer.json, its large parts not yet read. Its truncation and
// padding are not read: transformers turns them off, and so does every server.
type file struct {
	added, normalizer, preTokenizer, postProcessor, decoder json.RawMessage
	model                                                   *modelSpec
}

// modelSpec is the "model" of a tokenizer.json without vocab and merges.
type modelSpec struct {
	Type                    string   `json:"type"`
	Dropout                 *float64 `json:"dropout"`
	UnkToken                *string  `json:"unk_token"`
	ContinuingSubwordPrefix *string  `json:"continuing_subword_prefix"`
	EndOfWordSuffix         *string  `json:"end_of_word_suffix"`
	FuseUnk                 bool     `json:"fuse_unk"`
	ByteFallback            bool     `json:"byte_fallback"`
	IgnoreMerges            bool     `json:"ignore_merges"`

	vocab, merges []byte
}

func isNull(raw []byte) bool {
	raw = bytes.TrimSpace(raw)
	return len(raw) == 0 || string(raw) == "null"
}

func newFromJSON(data, configJSON []byte) (*Tokenizer, error) {
	f, err := readFile(data)
	if err != nil {
		return nil, err
	}
	if err := f.model.check(); err != nil {
		return nil, err
	}
	t := &Tokenizer{bos: -1, eos: -1}
	var byteLevel bool
	if t.splits, byteLevel, err = newSplitters(f.preTokenizer); err != nil {
		return nil, err
	}
	if t.normalizer, err = newNormalizer(f.normalizer); err != nil {
		return nil, err
	}
	if t.decoders, err = newDecoders(f.decoder); err != nil {
		return nil, err
	}
	var added []addedToken
	if !isNull(f.added) {
		if err := json.Unmarshal(f.added, &added); err != nil {
			return nil, fmt.Errorf("%w: added_tokens: %w", ErrMalformed, err)
		}
	}
	config, err := readConfig(configJSON)
	if err != nil {
		return nil, err
	}
	added = config.addMissing(added)
	if t.vocabulary, err = readVocabulary(f.model.vocab, byteLevel); err != nil {
		return nil, err
	}
	if t.model, err = newModel(f.model, t.vocabulary); err != nil {
		return nil, err
	}
	if t.added, err = newAddedTokens(t.vocabulary, added, t.normalizer); err != nil {
		return nil, err
	}
	if t.template, err = newTemplate(f.postProcessor, t.Size()); err != nil {
		return nil, err
	}
	config.apply(t)
	return t, nil
}

// readFile finds the parts of a tokenizer.json.
func readFile(data []byte) (*file, error) {
	f := &file{}
	c := &cursor{data: data}
	err := c.object(func(key []byte) error {
		var err error
		switch string(key) {
		case "added_tokens":
			f.added, err = c.skip()
		case "normalizer":
			f.normalizer, err = c.skip()
		case "pre_tokenizer":
			f.preTokenizer, err = c.skip()
		case "post_processor":
			f.postProcessor, err = c.skip()
		case "decoder":
			f.decoder, err = c.skip()
		case "model":
			f.model, err = readModel(c)
		default:
			_, err = c.skip()
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if c.peek(); c.at != len(data) {
		return nil, c.fail("something after the end")
	}
	if f.model == nil {
		return nil, fmt.Errorf("%w: tokenizer.json has no model", ErrMalformed)
	}
	return f, nil
}

// readModel reads the small members of the model at the cursor.
func readModel(c *cursor) (*modelSpec, error) {
	spec := &modelSpec{}
	small := map[string]json.RawMessage{}
	err := c.object(func(key []byte) error {
		name := string(key)
		value, err := c.skip()
		switch name {
		case "vocab":
			spec.vocab = value
		case "merges":
			spec.merges = value
		case "type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback", "ignore_merges":
			small[name] = value
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	data, err := json.Marshal(small)
	if err == nil {
		err = json.Unmarshal(data, spec)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: model: %w", ErrMalformed, err)
	}
	return spec, nil
}

// check refuses what this package does not do.
func (spec *modelSpec) check() error {
	if spec.Type == "" && spec.merges != nil {
		spec.Type = "BPE" // files older than the field
	}
	switch {
	case spec.Type != "BPE":
		return fmt.Errorf("%w: model %q, only BPE is read", ErrUnsupported, clip([]byte(spec.Type)))
	case spec.Dropout != nil && *spec.Dropout != 0:
		return fmt.Errorf("%w: model.dropout", ErrUnsupported)
	case spec.ContinuingSubwordPrefix != nil && *spec.ContinuingSubwordPrefix != "":
		return fmt.Errorf("%w: model.continuing_subword_prefix", ErrUnsupported)
	case spec.EndOfWordSuffix != nil && *spec.EndOfWordSuffix != "":
		return fmt.Errorf("%w: model.end_of_word_suffix", ErrUnsupported)
	case spec.vocab == nil || spec.merges == nil:
		return fmt.Errorf("%w: model has no vocab or no merges", ErrMalformed)
	}
	return nil
}

// readVocabulary reads model.vocab.
func readVocabulary(raw []byte, byteLevel bool) (*vocabulary, error) {
	b := &vocabularyBuilder{byteLevel: byteLevel, arena: make([]byte, 0, len(raw)/2), entries: make([]builderEntry, 0, len(raw)/16)}
	c := &cursor{data: raw}
	err := c.object(func(key []byte) error {
		id, err := c.integer()
		if err != nil {
			return err
		}
		return b.add(id, key)
	})
	if err != nil {
		return nil, err
	}
	return b.build()
}

// errUnknownPart is a merge of something that the vocabulary lacks.
var errUnknownPart = errors.New("is not in the vocabulary")

// newModel reads model.merges.
func newModel(spec *modelSpec, v *vocabulary) (*model, error) {
	m := &model{
		vocabulary: v, cache: newWordCache(), unknown: -1,
		byteFallback: spec.ByteFallback, ignoreMerges: spec.IgnoreMerges, fuseUnknown: spec.FuseUnk,
	}
	if spec.UnkToken != nil && *spec.UnkToken != "" {
		id, ok := v.find(*spec.UnkToken)
		if !ok {
			return nil, fmt.Errorf("%w: model.unk_token %q %w", ErrMalformed, clip([]byte(*spec.UnkToken)), errUnknownPart)
		}
		m.unknown = id
	}
	r := &mergeReader{model: m, table: newMergeTable(bytes.Count(spec.merges, []byte{','}) + 1)}
	c := &cursor{data: spec.merges}
	if err := c.array(func() error { return r.read(c) }); err != nil {
		return nil, err
	}
	m.merges = r.table
	return m, m.finish()
}

// mergeReader reads merges, "left right" or ["left", "right"].
type mergeReader struct {
	model       *model
	table       mergeTable
	rank        int32
	left, right []byte
	raw         []byte
}

func (r *mergeReader) read(c *cursor) error {
	var err error
	if c.peek() == '[' {
		part := 0
		err = c.array(func() error {
			var err error
			switch part++; part {
			case 1:
				r.left, err = c.text(r.left[:0])
			case 2:
				r.right, err = c.text(r.right[:0])
			default:
				err = c.fail("a merge of more than two")
			}
			return err
		})
		if err == nil && part != 2 {
			err = c.fail("a merge of fewer than two")
		}
	} else if r.raw, err = c.text(r.raw[:0]); err == nil {
		left, right, ok := bytes.Cut(r.raw, []byte{' '})
		if !ok || bytes.IndexByte(right, ' ') >= 0 {
			return c.fail("a merge that is not two tokens and one space")
		}
		r.left, r.right = append(r.left[:0], left...), append(r.right[:0], right...)
	}
	if err != nil {
		return err
	}
	if err := r.add(r.left, r.right); err != nil {
		return c.fail(err.Error())
	}
	return nil
}

// add records a merge. The slices are its own to change.
func (r *mergeReader) add(left, right []byte) error {
	rank := r.rank
	r.rank++
	v := r.model.vocabulary
	if v.byteLevel {
		var okLeft, okRight bool
		r.raw, okLeft = appendUnmapped(r.raw[:0], left)
		n := len(r.raw)
		r.raw, okRight = appendUnmapped(r.raw, right)
		if !okLeft || !okRight {
			return nil // no byte gives such a symbol
		}
		return r.set(r.raw[:n], r.raw[n:], r.raw, rank)
	}
	n := len(left)
	left = append(left, right...)
	r.left = left
	return r.set(left[:n], right, left, rank)
}

func (r *mergeReader) set(left, right, both []byte, rank int32) error {
	v := r.model.vocabulary
	l, ok := v.lexicon.find(v.pieces, viewString(left))
	if !ok {
		return fmt.Errorf("the left part %q of merge %d %w", clip(left), rank, errUnknownPart)
	}
	g, ok := v.lexicon.find(v.pieces, viewString(right))
	if !ok {
		return fmt.Errorf("the right part %q of merge %d %w", clip(right), rank, errUnknownPart)
	}
	b, ok := v.lexicon.find(v.pieces, viewString(both))
	if !ok {
		return fmt.Errorf("the result %q of merge %d %w", clip(both), rank, errUnknownPart)
	}
	r.table.set(l, g, rank, b)
	return nil
}
