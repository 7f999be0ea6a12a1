package token

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// Token types of llama.cpp (llama_token_type).
const (
	typeUndefined   = 0
	typeNormal      = 1
	typeUnknown     = 2
	typeControl     = 3
	typeUserDefined = 4
	typeUnused      = 5
	typeByte        = 6
)

// ggufSplit is how a tokenizer.ggml.pre splits: the tokenizers that the names
// of llama.cpp's convert_hf_to_gguf.py stand for.
type ggufSplit struct {
	splits       []splitter
	normalizer   normalizer
	ignoreMerges bool
}

func newGGUFSplit(pre string) (ggufSplit, error) {
	table := classes()
	switch pre {
	case "gpt-2", "phi-2", "mpt", "default", "": // files older than the key are of GPT-2's kin
		return ggufSplit{splits: []splitter{gpt2Scanner{table}}}, nil
	case "olmo", "gpt-neox": // OLMo 1 and Pythia
		return ggufSplit{splits: []splitter{gpt2Scanner{table}}, normalizer: unicodeForm("NFC")}, nil
	case "smollm", "starcoder", "refact", "codeshell":
		return ggufSplit{splits: []splitter{digitScanner{table, true}, gpt2Scanner{table}}}, nil
	case "command-r":
		return ggufSplit{splits: []splitter{digitScanner{table, true}, gpt2Scanner{table}}, normalizer: unicodeForm("NFC")}, nil
	case "llama-bpe", "llama3", "llama-v3":
		return ggufSplit{splits: []splitter{llama3Scanner{table, 3, letter}}, ignoreMerges: true}, nil
	case "dbrx": // OLMo 2 and Phi 4 too
		return ggufSplit{splits: []splitter{llama3Scanner{table, 3, letter}}}, nil
	case "qwen2", "deepseek-r1-qwen":
		return ggufSplit{splits: []splitter{llama3Scanner{table, 1, letter}}, normalizer: unicodeForm("NFC")}, nil
	case "qwen35":
		return ggufSplit{splits: []splitter{llama3Scanner{table, 1, letter | mark}}, normalizer: unicodeForm("NFC")}, nil
	case "stablelm2":
		return ggufSplit{splits: []splitter{llama3Scanner{table, 1, letter}}}, nil
	case "gpt-4o", "llama4":
		return ggufSplit{splits: []splitter{o200kScanner{table, 3, true}}, ignoreMerges: true}, nil
	case "tekken":
		return ggufSplit{splits: []splitter{o200kScanner{table, 1, false}}, ignoreMerges: true}, nil
	}
	return ggufSplit{}, fmt.Errorf("%w: tokenizer.ggml.pre %q", ErrUnsupported, clip([]byte(pre)))
}

// check refuses a vocabulary whose parts do not fit together.
func (g *Vocabulary) check() error {
	n := len(g.Tokens)
	switch {
	case n == 0:
		return fmt.Errorf("%w: tokenizer.ggml.tokens is empty", ErrMalformed)
	case len(g.Types) != 0 && len(g.Types) != n:
		return fmt.Errorf("%w: tokenizer.ggml.token_type has %d entries for %d tokens", ErrMalformed, len(g.Types), n)
	case len(g.Scores) != 0 && len(g.Scores) != n:
		return fmt.Errorf("%w: tokenizer.ggml.scores has %d entries for %d tokens", ErrMalformed, len(g.Scores), n)
	}
	for _, end := range []struct {
		key string
		id  int32
	}{{"bos", g.BOS}, {"eos", g.EOS}, {"unknown", g.UNK}, {"padding", g.PAD}} {
		if end.id < -1 || int(end.id) >= n {
			return fmt.Errorf("%w: tokenizer.ggml.%s_token_id is %d of %d tokens", ErrMalformed, end.key, end.id, n)
		}
	}
	for id, text := range g.Tokens {
		if !utf8.ValidString(text) {
			return fmt.Errorf("%w: tokenizer.ggml.tokens[%d] is not UTF-8", ErrMalformed, id)
		}
	}
	return nil
}

func (g *Vocabulary) typeOf(id int) int32 {
	if len(g.Types) == 0 {
		return typeNormal
	}
	return g.Types[id]
}

func newFromGGUF(g *Vocabulary) (*Tokenizer, error) {
	if err := g.check(); err != nil {
		return nil, err
	}
	switch g.Model {
	case "gpt2":
		return g.newByteLevel()
	case "llama":
		return g.newSentencePiece()
	}
	return nil, fmt.Errorf("%w: tokenizer.ggml.model %q, only gpt2 and llama are read", ErrUnsupported, clip([]byte(g.Model)))
}

// newByteLevel makes the tokenizer of model gpt2.
func (g *Vocabulary) newByteLevel() (*Tokenizer, error) {
	if len(g.Merges) == 0 {
		return nil, fmt.Errorf("%w: tokenizer.ggml.merges is empty", ErrMalformed)
	}
	split, err := newGGUFSplit(g.Pre)
	if err != nil {
		return nil, err
	}
	t := &Tokenizer{splits: split.splits, normalizer: split.normalizer, decoders: []decoderSpec{{Type: "ByteLevel"}}}
	if g.AddSpacePrefix {
		t.splits = append([]splitter{prefixSpace{}}, t.splits...)
	}
	if t.vocabulary, err = g.build(true); err != nil {
		return nil, err
	}
	t.model = &model{vocabulary: t.vocabulary, cache: newWordCache(), unknown: -1, ignoreMerges: split.ignoreMerges}
	r := &mergeReader{model: t.model, table: newMergeTable(len(g.Merges))}
	for rank, merge := range g.Merges {
		// A left part may begin with a space only where it is the space.
		left, right, ok := strings.Cut(merge, " ")
		if !ok {
			return nil, fmt.Errorf("%w: tokenizer.ggml.merges[%d] %q is not two tokens", ErrMalformed, rank, clip([]byte(merge)))
		}
		if err := r.add([]byte(left), []byte(right)); err != nil {
			return nil, fmt.Errorf("%w: tokenizer.ggml.merges: %w", ErrMalformed, err)
		}
	}
	t.model.merges = r.table
	return g.finish(t)
}

// newSentencePiece makes the tokenizer of model llama: SentencePiece BPE whose
// merges follow from the scores.
func (g *Vocabulary) newSentencePiece() (*Tokenizer, error) {
	if len(g.Scores) == 0 {
		return nil, fmt.Errorf("%w: tokenizer.ggml.scores is empty", ErrMalformed)
	}
	t := &Tokenizer{decoders: []decoderSpec{
		{Type: "Replace", literal: spaceMark, Content: " "}, {Type: "ByteFallback"}, {Type: "Fuse"},
	}}
	mark := func(text string) string { return strings.ReplaceAll(text, " ", spaceMark) }
	t.normalizer = always(mark)
	if g.AddSpacePrefix {
		t.normalizer = always(func(text string) string {
			if text == "" {
				return text
			}
			return spaceMark + mark(text)
		})
		t.decoders = append(t.decoders, decoderSpec{Type: "Strip", Content: " ", Start: 1, fused: true})
	}
	var err error
	if t.vocabulary, err = g.build(false); err != nil {
		return nil, err
	}
	t.model = &model{
		vocabulary: t.vocabulary, cache: newWordCache(),
		unknown: g.UNK, byteFallback: true, fuseUnknown: true,
	}
	t.model.merges = g.mergesOfScores(t.vocabulary)
	return g.finish(t)
}

func (g *Vocabulary) build(byteLevel bool) (*vocabulary, error) {
	b := &vocabularyBuilder{byteLevel: byteLevel}
	for id, text := range g.Tokens {
		if err := b.add(int64(id), []byte(text)); err != nil {
			return nil, err
		}
	}
	return b.build()
}

func (g *Vocabulary) finish(t *Tokenizer) (*Tokenizer, error) {
	if err := t.model.finish(); err != nil {
		return nil, err
	}
	var added []addedToken
	for id, text := range g.Tokens {
		switch kind := g.typeOf(id); kind {
		case typeControl, typeUnknown:
			added = append(added, addedToken{ID: int32(id), Content: text, Special: true})
		case typeUserDefined:
			added = append(added, addedToken{ID: int32(id), Content: text})
		case typeUndefined, typeNormal, typeUnused, typeByte:
		default:
			return nil, fmt.Errorf("%w: tokenizer.ggml.token_type[%d] is %d", ErrUnsupported, id, kind)
		}
	}
	var err error
	if t.added, err = newAddedTokens(t.vocabulary, added, t.normalizer); err != nil {
		return nil, err
	}
	t.bos, t.eos = g.BOS, g.EOS
	if g.AddBOS {
		if g.BOS < 0 {
			return nil, errors.Join(ErrMalformed, errors.New("tokenizer.ggml.add_bos_token is set, bos_token_id is not"))
		}
		t.template.before = []int32{g.BOS}
	}
	if g.AddEOS {
		if g.EOS < 0 {
			return nil, errors.Join(ErrMalformed, errors.New("tokenizer.ggml.add_eos_token is set, eos_token_id is not"))
		}
		t.template.after = []int32{g.EOS}
	}
	return t, nil
}

// scoredMerge is a pair that makes a token of the vocabulary.
type scoredMerge struct {
	left, right, result int32
	score               float32
}

// mergesOfScores lists, for each token, every pair of tokens that makes it;
// the best score ranks first, of equal ones the lower ids (generate_merges of
// transformers' convert_slow_tokenizer.py, as it made the published files).
func (g *Vocabulary) mergesOfScores(v *vocabulary) mergeTable {
	merges := make([]scoredMerge, 0, 2*len(g.Tokens))
	for id, text := range g.Tokens {
		if kind := g.typeOf(id); kind != typeNormal && kind != typeUserDefined || len(text) > maxPiece {
			continue
		}
		if last, ok := v.lexicon.find(v.pieces, text); !ok || int(last) != id {
			continue
		}
		first := len(merges)
		for at := range text {
			if at == 0 {
				continue
			}
			left, okLeft := v.lexicon.find(v.pieces, text[:at])
			right, okRight := v.lexicon.find(v.pieces, text[at:])
			if okLeft && okRight {
				merges = append(merges, scoredMerge{left, right, int32(id), g.Scores[id]})
			}
		}
		local := merges[first:]
		slices.SortStableFunc(local, func(a, b scoredMerge) int {
			return cmp.Or(cmp.Compare(a.left, b.left), cmp.Compare(a.right, b.right))
		})
	}
	slices.SortStableFunc(merges, func(a, b scoredMerge) int { return cmp.Compare(b.score, a.score) })
	table := newMergeTable(len(merges))
	for rank, m := range merges {
		table.set(m.left, m.right, int32(rank), m.result)
	}
	return table
}

// maxPiece bounds the bytes of a SentencePiece token that merges lead to; each
// costs two look-ups a character.
const maxPiece = 1 << 10
